"""TODO DOC"""

from __future__ import annotations

import os
import random
import resource
import sys
import time

import numpy as np
import torch

# Before torch starts its threads: on a machine that others use too, threads that spin while they wait cost several
# times the work itself (measured here: 15 s against 5 s a step).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def resolve_device(device: str) -> torch.device:
    """'auto' = the GPU of this process's LOCAL_RANK where there is one, else the CPU."""
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


def peak_memory_bytes() -> int:
    """Peak memory of this process: of the GPU where one is used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
