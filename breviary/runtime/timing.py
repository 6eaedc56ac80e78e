"""Seconds per phase of an answer, collected only inside `timed_phases`.

read      all that depends on the context alone: encoding, and where the memory needs no question (full context, mean
          pooling) also compressing and the decoder's keys and values of [prefix ; memory]. Once for each context
compress  the memory for a question
prefill   the decoder on the prompt, and on the memory where it depends on the question
decode    the answer's tokens
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from breviary.runtime.device import synchronise

READ = "read"


@dataclass
class _Clock:
    """Seconds of each phase, and the phases that are open, outermost first: (name, seconds of phases inside)."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    open: list[tuple[str, list[float]]] = field(default_factory=list)


_clock: contextvars.ContextVar[_Clock | None] = contextvars.ContextVar("clock", default=None)


@contextlib.contextmanager
def timed_phases() -> Iterator[dict[str, float]]:
    """Yields {phase: seconds} of the code inside the block, filled while it runs."""
    clock = _Clock()
    token = _clock.set(clock)
    try:
        yield clock.seconds
    finally:
        _clock.reset(token)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Adds the time of the block to phase `name`, with the device synchronised; no effect outside `timed_phases`.

    Of two phases inside each other the time of the inner one counts for the inner one only. All phases inside `read`
    count as reading.
    """
    clock = _clock.get()
    if clock is None or any(outer == READ for outer, _ in clock.open):
        yield
        return
    inside = [0.0]
    synchronise()
    start = time.perf_counter()
    clock.open.append((name, inside))
    try:
        yield
        synchronise()
    finally:
        clock.open.pop()
    elapsed = time.perf_counter() - start
    clock.seconds[name] += elapsed - inside[0]
    if clock.open:
        clock.open[-1][1][0] += elapsed


def add_phase_seconds(name: str, seconds: float) -> None:
    """Adds `seconds`, measured when a cached result was computed, to phase `name`; no effect outside `timed_phases`."""
    if (clock := _clock.get()) is not None:
        clock.seconds[name] += seconds
