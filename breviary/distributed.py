"""Ranks, and the few collectives that training and evaluation need."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks (itself without a process group)."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def from_rank_zero(value: Any) -> Any:
    """Rank 0's value (any picklable object) on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def all_ranks_rows(rows: list[Any]) -> list[Any]:
    """The rows of all ranks, rank by rank, on every rank."""
    if not dist.is_initialized():
        return rows
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]


def prepare_single_process() -> None:
    """Lets a bare `python train.py engine=zero2` run as one process: without these DeepSpeed looks for MPI."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def start_process_group(device: torch.device) -> None:
    """Joins the process group that torchrun or deepspeed announced in the environment, if any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
