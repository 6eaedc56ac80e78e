"""Seconds per phase of an answer (encode, compress, prefill, decode), collected only inside `timed_phases`."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections import defaultdict
from collections.abc import Iterator

from breviary.runtime.device import synchronise

_phases: contextvars.ContextVar[dict[str, float] | None] = contextvars.ContextVar("phases", default=None)


@contextlib.contextmanager
def timed_phases() -> Iterator[dict[str, float]]:
    """Yields {phase: seconds} of the code inside the block, filled while it runs."""
    seconds: dict[str, float] = defaultdict(float)
    token = _phases.set(seconds)
    try:
        yield seconds
    finally:
        _phases.reset(token)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Adds the time of the block to phase `name`, with the device synchronised; no effect outside `timed_phases`."""
    seconds = _phases.get()
    if seconds is None:
        yield
        return
    synchronise()
    start = time.perf_counter()
    yield
    synchronise()
    seconds[name] += time.perf_counter() - start


def add_phase_seconds(name: str, seconds: float) -> None:
    """Adds `seconds`, measured when a cached result was computed, to phase `name`; no effect outside `timed_phases`."""
    if (phases := _phases.get()) is not None:
        phases[name] += seconds
