"""Device, seeds, peak memory and the faster dtype of this machine."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

# Set before torch starts its threads. On a shared machine, threads that spin while waiting slow a step down by several
# times (measured: 15 s against 5 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def resolve_device(device: str) -> torch.device:
    """The named device; 'auto' is the GPU with index LOCAL_RANK if a GPU is available, else the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


PROCESS = Path("/proc/self")


def reset_peak_memory() -> bool:
    """Frees unused memory and starts a new peak of `peak_memory_bytes`.

    Returns False where the system cannot start a new peak (resident memory outside Linux): it stays the process's.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if not (PROCESS / "clear_refs").exists():
        return False
    ctypes.CDLL(None).malloc_trim(0)  # freed memory would otherwise stay resident
    try:
        (PROCESS / "clear_refs").write_text("5")
    except PermissionError:  # in some containers
        return False
    return True


def peak_memory_bytes() -> int:
    """Peak memory of this process since `reset_peak_memory`, in bytes: of the GPU if one is used, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    if (PROCESS / "status").exists():
        [peak] = [line for line in (PROCESS / "status").read_text().splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(peak.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def synchronise() -> None:
    """Waits until the GPU, if any, has finished all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fast_dtype() -> str:
    """Name of the dtype, float32 or bfloat16, in which this machine multiplies matrices faster; bfloat16 on a GPU.

    A CPU that emulates bfloat16 takes three times as long with it as with float32.
    """
    if torch.cuda.is_available():
        return "bfloat16"
    seconds = {}
    for name in ("bfloat16", "float32"):
        rows, weights = (torch.randn(*shape).to(getattr(torch, name)) for shape in ((512, 576), (576, 1536)))
        measured = []
        for _ in range(6):  # the first is a warm-up
            start = time.perf_counter()
            rows @ weights
            measured.append(time.perf_counter() - start)
        seconds[name] = min(measured[1:])
    return min(seconds, key=seconds.__getitem__)
