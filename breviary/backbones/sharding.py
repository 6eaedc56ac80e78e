"""Parameters that are sharded over the ranks, by FSDP2 (DTensor) or by DeepSpeed's ZeRO.

Without an engine that shards, every function acts on plain parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_partitioning: dict[str, Any] | None = None  # DeepSpeed's configuration while `partitioned_loading` is active


def full_weight(parameter: nn.Parameter) -> Tensor:
    """The full value of a parameter: under ZeRO, the gathered float32 master. Called by all ranks."""
    if isinstance(parameter.data, DTensor):
        return parameter.detach().full_tensor()
    if hasattr(parameter, "_z3_optimizer") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)
    with gathered([parameter]):
        return parameter.detach().clone() if is_partitioned(parameter) else parameter.detach()


@torch.no_grad()
def assign_weight(parameter: nn.Parameter, value: Tensor) -> None:
    """Sets a parameter to `value` (its full shape), in place; under ZeRO the float32 master as well.

    Called by all ranks with the same value.
    """
    if isinstance(parameter.data, DTensor):
        own = value.to(parameter.device, parameter.dtype)
        parameter.copy_(distribute_tensor(own, parameter.device_mesh, parameter.placements, src_data_rank=None))
        return
    with gathered([parameter], modifier_rank=0):
        parameter.copy_(value)
    if hasattr(parameter, "_z3_optimizer") or hasattr(parameter, "_hp_mapping"):
        _assign_master(parameter, value.to(parameter.device, torch.float32))


def _assign_master(parameter: nn.Parameter, value: Tensor) -> None:
    """Sets the float32 master of a parameter where DeepSpeed's engine has one."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if hasattr(parameter, "_z3_optimizer"):
        # By its partition: with the full value, DeepSpeed 0.19 fails where the last rank's partition is padded.
        size = parameter.ds_tensor.numel()
        padded = torch.nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
        safe_set_local_fp32_param(parameter, padded[dist.get_rank() * size :][:size])
    elif hasattr(parameter, "_hp_mapping"):
        safe_set_full_fp32_param(parameter, value)


def full_shape(parameter: Tensor) -> torch.Size:
    """Shape of the full value."""
    return torch.Size(parameter.ds_shape) if is_partitioned(parameter) else parameter.shape


def full_size(parameter: Tensor) -> int:
    """Number of elements of the full value."""
    return full_shape(parameter).numel()


def local_bytes(module: nn.Module) -> int:
    """Bytes of the parameters stored on this rank."""
    total = 0
    for parameter in module.parameters():
        data = parameter.data
        held = data.to_local() if isinstance(data, DTensor) else data
        total += held.numel() * held.element_size()
        if is_partitioned(parameter) and parameter.ds_tensor.data_ptr() != held.data_ptr():
            total += parameter.ds_tensor.numel() * parameter.ds_tensor.element_size()
    return total


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has partitioned a parameter: between calls of its module it has no elements."""
    return hasattr(parameter, "ds_id")


def cast_unpartitioned(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts the new weights of a partitioned module to the dtype of the loaded ones, in place.

    DeepSpeed's engine casts modules itself, but assumes that one with partitioned weights is cast already. Its float32
    master weights are then copies of the rounded values, as in every ZeRO stage.
    """
    if any(map(is_partitioned, module.parameters())):
        for parameter in module.parameters():
            if not is_partitioned(parameter):
                parameter.data = parameter.data.to(dtype)


def gathered(parameters: Sequence[nn.Parameter], modifier_rank: int | None = None) -> contextlib.AbstractContextManager:
    """Context manager: gathers the parameters that ZeRO-3 has partitioned. Entered and left by all ranks.

    modifier_rank  rank whose changes are broadcast on exit; None = changes are discarded
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        return contextlib.nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters(partitioned, modifier_rank=modifier_rank)


@contextlib.contextmanager
def partitioned_loading(deepspeed: dict[str, Any] | None) -> Iterator[None]:
    """Context manager: models loaded within `load_partitioned` are partitioned by ZeRO-3 during loading.

    deepspeed  DeepSpeed's configuration; None, or a stage other than 3 = every rank loads full models
    """
    global _partitioning
    stage = (deepspeed or {}).get("zero_optimization", {}).get("stage")
    before, _partitioning = _partitioning, deepspeed if stage == 3 else None
    try:
        yield
    finally:
        _partitioning = before


@contextlib.contextmanager
def load_partitioned(dtype: torch.dtype) -> Iterator[None]:
    """Context manager around `from_pretrained`; no effect outside `partitioned_loading`.

    Each layer's weights are partitioned as soon as it is built. Only rank 0 reads the files, one module at a time.
    """
    if _partitioning is None:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    zero = {key: value for key, value in _partitioning["zero_optimization"].items() if key != "offload_optimizer"}
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    config = HfDeepSpeedConfig(settings | {"bf16": {"enabled": dtype == torch.bfloat16}})  # found by transformers
    try:
        yield
    finally:
        del config
        unset_hf_deepspeed_config()
