"""The process around a run: which checkout, which device and precision, how long each phase took."""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import os
import random
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# Before torch starts its threads: on a machine that others use too, threads that spin while they wait cost several
# times the work itself (measured here: 15 s against 5 s a step).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import datasets
import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("breviary", "ram", "comi", "comet", "data")


def require_checkout() -> None:
    """Fails when one of our package names resolves outside this checkout.

    `data`, `comet` and `ram` are also other people's packages; an installed one must never be imported in
    place of ours.

    Raises: RuntimeError naming the package and where it came from.
    """
    for name in (name for name in PACKAGES if (ROOT / name).is_dir()):
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [p for p in [spec.origin, *(spec.submodule_search_locations or [])] if p]
        if not any(Path(place).resolve().is_relative_to(ROOT) for place in places):
            raise RuntimeError(f"package '{name}' resolves to {places or 'nothing'}, not to {ROOT}: "
                               "run train.py, eval.py and scripts from this checkout")


def resolve_device(device: str) -> torch.device:
    """'auto' = the GPU of this process's LOCAL_RANK where there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def quiet_libraries() -> None:
    """Silences other libraries' bars and start-up notes; our own lines say what happens."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def peak_memory_bytes() -> int:
    """Peak memory of this process: of the GPU where one is used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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


def spent(name: str, seconds: float) -> None:
    """Adds `seconds` to phase `name` when somebody is timing: work whose result lies here already, from when it was done."""
    if (phases := _phases.get()) is not None:
        phases[name] += seconds


def synchronise() -> None:
    """Waits for the accelerator, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fast_dtype() -> str:
    """float32 or bfloat16, whichever this machine multiplies matrices in faster: a CPU that only emulates bfloat16 takes three
    times as long with it. bfloat16 where there is a GPU."""
    if torch.cuda.is_available():
        return "bfloat16"
    seconds = {}
    for name in ("bfloat16", "float32"):
        rows, weights = (torch.randn(*shape).to(getattr(torch, name)) for shape in ((512, 576), (576, 1536)))
        taken = []
        for _ in range(6):  # the first warms up
            start = time.perf_counter()
            rows @ weights
            taken.append(time.perf_counter() - start)
        seconds[name] = min(taken[1:])
    return min(seconds, key=seconds.get)
