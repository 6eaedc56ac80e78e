"""Rank, world size, and the collectives that training and evaluation use."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
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
    """Sum of a tensor over all ranks, in place; unchanged without a process group."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def sum_scalars_over_ranks(values: dict[str, torch.Tensor | float]) -> dict[str, float]:
    """Sums of named scalars over all ranks, in one collective with one host sync. All ranks pass the same names."""
    names = sorted(values)
    device = next((v.device for v in values.values() if isinstance(v, torch.Tensor)), None)
    sums = torch.stack([torch.as_tensor(values[name], dtype=torch.float64, device=device) for name in names])
    return dict(zip(names, sum_over_ranks(sums).tolist()))


def max_over_ranks(values: torch.Tensor) -> list[float]:
    """Maxima of the entries of a tensor (N,) over all ranks, in one collective with one host sync."""
    if dist.is_initialized():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values.tolist()


def broadcast_from_rank_zero(value: Any) -> Any:
    """Rank 0's value (any picklable object) on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def own_share(rows: list[Any]) -> list[Any]:
    """This process's share of the rows, every N-th of N processes; all of them without a process group."""
    return rows[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else rows


def gather_rows(rows: list[Any]) -> list[Any]:
    """The rows of all ranks on every rank, in order of rank."""
    if not dist.is_initialized():
        return rows
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]


def call_on_rank_zero(function: Callable[[], Any]) -> Any:
    """The result of `function`, called on rank 0 only, on every rank. Its exceptions are raised on every rank, too."""
    result, error = None, None
    if rank() == 0:
        try:
            result = function()
        except Exception as raised:  # raised again below, after the other ranks know
            error = raised
    message, result = broadcast_from_rank_zero((None if error is None else str(error), result))
    if error is not None:
        raise error
    if message is not None:
        raise ValueError(f"process 0 failed: {message}")
    return result


def require_shared_folder(folder: Path, wait: float = 10) -> None:
    """Makes `folder` and checks that every process sees what process 0 writes there.

    wait  seconds until a file of another machine must be visible
    Raises: ValueError on every process where some do not see it.
    """
    if world_size() == 1:
        return
    written = call_on_rank_zero(lambda: _write_token(folder))
    file = folder / written.name
    end = time.monotonic() + wait
    while not (seen := folder.is_dir() and file.name in os.listdir(folder)) and time.monotonic() < end:
        time.sleep(0.05)  # listed, not looked up: network file systems remember for seconds what does not exist
    blind = [str(number) for number, sees in enumerate(gather_rows([seen])) if not sees]
    if rank() == 0:
        file.unlink()
    if blind:
        raise ValueError(
            f"processes {', '.join(blind)} of {world_size()} do not see the files that process 0 writes into "
            f"{written.parent}: processes on several machines need a common file system; set paths.outputs (or the "
            "run's folder) to a folder that all machines share"
        )


def _write_token(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f".shared-{secrets.token_hex(8)}"
    file.touch()
    return file


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def print_rank0(text: str) -> None:
    """Prints `text` on rank 0 and flushes."""
    if rank() == 0:
        print(text, flush=True)


PROGRESS_S = 60.0  # seconds between lines of progress in a file

_last_progress = time.monotonic()


def print_progress(text: str) -> None:
    """Prints how far a long loop is, on rank 0: on a terminal in place of the last such text, in a file once a minute.

    What follows the loop prints a line of its own.
    """
    global _last_progress
    if rank() != 0:
        return
    if sys.stdout.isatty():
        print(text, end="\r", flush=True)
    elif time.monotonic() - _last_progress > PROGRESS_S:
        _last_progress = time.monotonic()
        print(text, flush=True)


# ------------------------------------------------------------------ start and end of a process


def strip_launcher_arguments() -> None:
    """Moves `--local_rank=N` from sys.argv to LOCAL_RANK: the deepspeed launcher adds it and Hydra rejects it."""
    remaining, arguments = [], iter(sys.argv)
    for argument in arguments:
        name, equals, number = argument.partition("=")
        if name not in ("--local_rank", "--local-rank"):
            remaining.append(argument)
            continue
        os.environ.setdefault("LOCAL_RANK", number if equals else next(arguments))
    sys.argv[:] = remaining


def start_process_group(device: torch.device, timeout: float | None = None, always: bool = False) -> None:
    """Joins the process group that torchrun or deepspeed declares in the environment, if any.

    timeout  seconds; collectives fail after twice as long. None = the backend's default
    always   also a group of one process, which the environment declares as well
    """
    if (always or int(os.environ.get("WORLD_SIZE", 1)) > 1) and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL sends objects from the current device
        limit = timedelta(seconds=2 * timeout) if timeout else None
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=limit)


def end_process_group() -> None:
    """Waits for all ranks, then leaves the process group, if any."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
