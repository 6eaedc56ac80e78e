"""FSDP2 (torch.distributed.fsdp.fully_shard): shards a reader, and stores its optimizer state as shards."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from breviary.backbones.pretrained import DTYPES
from breviary.backbones.stack import HALF
from breviary.runs.checkpoints import OPTIMIZER_SHARDS
from breviary.runs.plain_reading import load_shards
from breviary.runtime.distributed import world_size

GATHER = "gather_root"  # method of a sharded reader, see `gathered_root`


def shard_reader(reader: nn.Module, settings: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    """Shards a reader's weights over all ranks, in place; they move to `device` one module at a time.

    Each large linear map and embedding is an FSDP unit, gathered for its call. Whole layers cannot be units, because
    readers call parts of them (keys alone, adapters around shared maps). All other weights, tied embeddings included,
    are gathered for a whole step.

    settings  section engine.fsdp of the configuration
    dtype     of the residual stream: value `auto` of param_dtype
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    gathered, reduced = settings["param_dtype"], DTYPES[settings["reduce_dtype"]]
    param_dtype = (dtype if dtype in HALF else None) if gathered == "auto" else DTYPES[gathered]
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if settings["offload"] == "cpu" else OffloadPolicy()
    # No cast of inputs: autocast casts those of linear maps, and the rest of a layer computes in the stream's dtype.
    unit = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduced, cast_forward_inputs=False)
    root = MixedPrecisionPolicy(reduce_dtype=reduced, cast_forward_inputs=False)
    uses = Counter(id(p) for m in reader.modules() for p in m.parameters(recurse=False))
    for module in list(reader.modules()):
        weights = list(module.parameters(recurse=False))
        is_shared = any(uses[id(weight)] > 1 for weight in weights)
        is_large = sum(weight.numel() for weight in weights) >= settings["smallest"]
        if isinstance(module, (nn.Linear, nn.Embedding)) and is_large and not is_shared:
            keep = bool(settings["reshard_after_forward"])
            fully_shard(module, mesh=mesh, reshard_after_forward=keep, mp_policy=unit, offload_policy=offload)
    # No reader changes the output of a linear map in place, about which torch warns where that output is a view.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor", UserWarning)
    setattr(reader, GATHER, lambda: None)
    fully_shard(reader, mesh=mesh, mp_policy=root, offload_policy=offload)
    register_fsdp_forward_method(reader, GATHER)
    for module in reader.modules():
        if isinstance(module, FSDPModule):
            if device.type == "cpu":
                module.set_force_sum_reduction_for_comms(True)  # gloo has no mean
            if hasattr(module, "set_reduce_scatter_unused_params"):  # torch >= 2.13
                module.set_reduce_scatter_unused_params(True, recurse=False)
    reader._is_accelerate_prepared = True  # type: ignore[assignment]  # accelerate would wrap it in DDP
    for buffer in reader.buffers():
        buffer.data = buffer.data.to(device)


@contextlib.contextmanager
def gathered_root(reader: Any) -> Iterator[None]:
    """Context manager: the methods of a sharded reader can be called outside its `forward`. Entered by all ranks."""
    getattr(reader, GATHER)()
    try:
        yield
    finally:
        reader.reshard()


class OptimizerShards:
    """The optimizer state of a sharded reader in checkpoints: each rank writes its shard asynchronously."""

    def __init__(self, reader: nn.Module):
        self.reader = reader
        # A separate process group: the writing thread's collectives must not interleave with those of training.
        self.group = dist.new_group(backend="gloo")
        self.pending: Future | None = None

    def start(self, checkpoint: str | Path, optimizer: torch.optim.Optimizer) -> None:
        """Copies the state to the host's memory and starts to write it into `checkpoint`. Called by all ranks."""
        self.finish()
        state = get_optimizer_state_dict(self.reader, optimizer)
        folder = Path(checkpoint) / OPTIMIZER_SHARDS
        folder.mkdir(parents=True, exist_ok=True)
        self.pending = dcp.async_save(state, checkpoint_id=folder, process_group=self.group)  # type: ignore[assignment]

    @property
    def is_written(self) -> bool:
        """Whether nothing is being written on this rank."""
        return self.pending is None or self.pending.done()

    def finish(self) -> None:
        """Waits until the state is written. Raises: RuntimeError with the errors of all ranks, such as a full disk."""
        pending, self.pending = self.pending, None
        if pending is not None:
            try:
                pending.result()
            except CheckpointException as error:  # derives from BaseException, which passes every handler of errors
                raise RuntimeError(str(error)) from error

    def load(self, checkpoint: str | Path, optimizer: torch.optim.Optimizer) -> None:
        """Loads the state of a checkpoint, in place. Called by all ranks."""
        state = get_optimizer_state_dict(self.reader, optimizer)
        load_shards(state, Path(checkpoint) / OPTIMIZER_SHARDS)
        set_optimizer_state_dict(self.reader, optimizer, state)
