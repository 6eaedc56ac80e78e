"""Specifications of devices by name, and the memory available to this process."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

SUSTAINED = 120e12  # FLOP/s of one GPU in training: 38% of an A100's peak in bfloat16


@dataclass(frozen=True)
class Device:
    """Specification of a device.

    flops      sustained FLOP/s in training
    bandwidth  bytes/s of its memory, the bound of decoding
    memory     bytes
    unit       word for one of several devices
    """

    title: str
    flops: float
    bandwidth: float
    memory: float
    unit: str = "GPU"


# GPUs: 38% of the peak in bfloat16, as SUSTAINED, and the vendor's memory bandwidth. cpu: the training runs of results/
# sustained .025 to .18 TFLOP/s per core.
DEVICES = {
    "cpu": Device("two CPU cores, 16 GB", 0.1e12, 2e10, 16e9, "machine"),
    "rtx4090": Device("RTX 4090, 24 GB", 63e12, 1.0e12, 24e9),
    "l40s": Device("L40S, 48 GB", 138e12, 0.86e12, 48e9),
    "a100": Device("A100, 80 GB", SUSTAINED, 2.0e12, 80e9),
    "h100": Device("H100, 80 GB", 375e12, 3.35e12, 80e9),
    "h200": Device("H200, 141 GB", 375e12, 4.8e12, 141e9),
}


def find_device(name: str) -> Device:
    """The device of this name. Raises: ValueError for an unknown one."""
    if name not in DEVICES:
        raise ValueError(f"device={name}: allowed are {', '.join(DEVICES)}, for example device=h100")
    return DEVICES[name]


def parse_gpus(text: str) -> tuple[int, float]:
    """(number, bytes of each) of "8x80GB". Raises: ValueError for another form."""
    match = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)GB", text.strip(), re.IGNORECASE)
    if match is None or not int(match[1]) or not float(match[2]):
        raise ValueError(f"gpus={text}: must be their number and the memory of each, e.g. gpus=8x80GB")
    return int(match[1]), float(match[2]) * 1e9


# ------------------------------------------------------------------ this machine

CGROUP = Path("/sys/fs/cgroup/memory.max")


def device_memory(device: torch.device) -> tuple[float, str]:
    """(bytes available to this process, name of the device): a GPU's memory, or a share of the host's memory."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return float(found.total_memory), found.name
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if CGROUP.is_file() and (limit := CGROUP.read_text().strip()).isdecimal():  # in a container
        total = min(total, float(limit))
    return total / int(os.environ.get("LOCAL_WORLD_SIZE", 1)), "this machine's memory"
