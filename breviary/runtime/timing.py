"""TODO DOC"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections import defaultdict
from collections.abc import Iterator

from breviary.runtime.device import synchronise

# ------------------------------------------------------------------ phases: where an answer's time goes

_phases: contextvars.ContextVar[dict[str, float] | None] = contextvars.ContextVar("phases", default=None)


@contextlib.contextmanager
def timed_phases() -> Iterator[dict[str, float]]:
    """Collects seconds per phase of everything that runs inside; costs nothing elsewhere."""
    seconds: dict[str, float] = defaultdict(float)
    token = _phases.set(seconds)
    try:
        yield seconds
    finally:
        _phases.reset(token)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Adds the time spent inside to phase `name`, devices synchronised, when somebody is timing."""
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
    """Adds `seconds` to phase `name` when somebody is timing: work whose result lies here already, from when it was done."""
    if (phases := _phases.get()) is not None:
        phases[name] += seconds
