"""The content of a checkpoint: each learned weight once, in float32, and the optimizer state without weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from breviary.backbones.sharding import full_size, full_weight
from breviary.backbones.trainable import learned_parameters
from breviary.runs.checkpoints import OPTIMIZER_SHARDS, save_shard
from breviary.runtime.distributed import barrier, broadcast_from_rank_zero, rank, world_size
from breviary.runtime.files import update_hash

KEPT_CHECKPOINTS = 2  # the best and the last; the last two where one is both, or without validation
FLOAT32 = 4  # bytes
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "sgd": 0}  # of the optimizer's state, per trained weight
MASTERS = ("single_partition_of_fp32_groups", "fp32_flat_groups")  # DeepSpeed's names of its float32 weights


def save_learned(folder: str | Path, reader: nn.Module, fingerprint: dict[str, str], is_sharded: bool) -> None:
    """Writes the learned weights in float32. Called by every rank, because engines that shard gather them.

    is_sharded  True: every rank writes one file with its shard; False: rank 0 writes one file with all weights
    Besides its own shard, a rank has at most one gathered weight in memory.
    """
    learned, shards = learned_parameters(reader), world_size() if is_sharded else 1
    owners = assign_shards([full_size(learned[name]) for name in sorted(learned)], shards)
    digest, own = hashlib.sha256(), {}
    for name, owner in zip(sorted(learned), owners):
        weight = full_weight(learned[name]).float().contiguous()
        if rank() == 0:
            update_hash(digest, name, weight)
        if rank() == owner:
            own[name] = weight.cpu()
    sha256 = broadcast_from_rank_zero(digest.hexdigest())
    if rank() < shards:
        save_shard(folder, own, fingerprint, sha256, rank(), shards)
    barrier()  # complete before the file that marks a checkpoint as complete


def check_optimizer_state(checkpoint: str | Path, kind: str, processes: int) -> None:
    """Raises ValueError where a checkpoint has no optimizer state for an engine, or for another number of processes.

    kind  plain: one process or DDP | zero | fsdp
    """
    folder = Path(checkpoint)
    stored = {"plain": (folder / "optimizer.pt").is_file(), "fsdp": (folder / OPTIMIZER_SHARDS).is_dir()}
    if next((name for name, is_stored in stored.items() if is_stored), "zero") != kind:
        raise ValueError(
            f"resume: {checkpoint} has no optimizer state for this engine; resume a run with the engine that started "
            "it (init_from loads weights only)"
        )
    shards = len(list(folder.glob("global_step*/*_optim_states.pt")))
    if kind == "zero" and shards != processes:
        raise ValueError(
            f"resume: {checkpoint} holds its optimizer state in {shards} shards, one per process; start {shards} "
            f"processes, for any engine.ranks, not {processes} (init_from loads weights only)"
        )


def assign_shards(sizes: Sequence[int], shards: int) -> list[int]:
    """The shard of each weight, greedily: the smallest shard so far."""
    totals, owners = [0] * shards, []
    for size in sizes:
        owners.append(totals.index(min(totals)))
        totals[owners[-1]] += size
    return owners


def describe_checkpoint(reader: nn.Module, optimizer: str, is_sharded: bool, most: int, is_concurrent: bool) -> str:
    """One line about the size of a checkpoint.

    optimizer      train.optimizer
    most           checkpoints that stay
    is_concurrent  written while the training goes on
    """
    learned = learned_parameters(reader).values()
    weights = FLOAT32 * sum(map(full_size, learned))
    state = STATE_BYTES[optimizer] * sum(full_size(parameter) for parameter in learned if parameter.requires_grad)
    files = f", in shards of {world_size()} processes" if is_sharded and world_size() > 1 else ""
    while_training = ", written while training goes on" if is_concurrent else ""
    return (
        f"a checkpoint takes {_size(weights + state)}: weights {_size(weights)}, optimizer {_size(state)}{files}"
        f"{while_training}; at most {most} stay, and one more while it is written"
    )


def _size(amount: float) -> str:
    """Bytes in words: 12 kB, 3.4 MB, 85 GB."""
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 1000 or unit == "GB":
            break
    return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"


def store_weights_once(engine: Any) -> None:
    """DeepSpeed's own files leave out all weights, which `save_learned` writes. engine: of `deepspeed.initialize`."""
    engine.save_checkpoint = functools.partial(engine.save_checkpoint, exclude_frozen_parameters=True)
    engine.module_state_dict = lambda *args, **kwargs: {}
    state_dict = engine.optimizer.state_dict

    def without_masters() -> dict[str, Any]:
        return {name: [] if name in MASTERS else value for name, value in state_dict().items()}

    engine.optimizer.state_dict = without_masters
