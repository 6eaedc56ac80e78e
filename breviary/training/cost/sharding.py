"""Bytes of weights, gradients and optimizer state of one process, by engine."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from breviary.backbones.pretrained import DTYPES
from breviary.backbones.shape import BackboneShape
from breviary.training.cost.layer import FLOAT32
from breviary.training.saving import STATE_BYTES

LIVE = 1e9  # maximum number of gathered weights in ZeRO-3: DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class Weights:
    """Bytes of one process, and the number of trained weights of the whole reader.

    bytes      of the weights
    gradients  once all of them exist
    optimizer  optimizer state, float32 master weights included
    trained    number of trained weights
    buffers    permanent buffers of the engine
    step       additional buffers during the optimizer step
    host       bytes of host memory where the engine offloads
    is_cast    whether autocast copies trained float32 weights to the stream's dtype
    """

    bytes: float
    gradients: float
    optimizer: float
    trained: float
    buffers: float = 0
    step: float = 0
    host: float = 0
    is_cast: bool = False


def engine_weights(cfg: DictConfig, shape: BackboneShape, total: float, trained: float, processes: int) -> Weights:
    """Weights of a reader with `total` weights, of which `trained` are trained, on `processes` processes."""
    size, state = DTYPES[cfg.backbone.dtype].itemsize, STATE_BYTES[cfg.train.optimizer]
    if cfg.engine.kind == "zero":
        return _zero(cfg.engine.deepspeed["zero_optimization"], total, trained, processes, size, state)
    frozen, is_cast = (total - trained) * size, size < FLOAT32
    if cfg.engine.kind == "fsdp":
        return _fsdp(cfg.engine.fsdp, shape, (total, trained), processes, size, state)
    buckets = FLOAT32 * trained if cfg.engine.kind == "ddp" and processes > 1 else 0  # DDP's gradient buckets
    return Weights(frozen + FLOAT32 * trained, FLOAT32 * trained, state * trained, trained, buckets, is_cast=is_cast)


def _zero(zero: DictConfig, total: float, trained: float, processes: int, size: int, state: int) -> Weights:
    """DeepSpeed: weights in the stream's dtype; float32 master weights and optimizer state sharded from stage 1 on."""
    stage, shard = zero["stage"], trained / processes
    optimizer, host = (FLOAT32 + state) * shard, 0.0
    gradients = size * (trained if stage == 1 else shard)
    weights = size * total / (processes if stage == 3 else 1)
    buffers = size * min(float(zero.get("reduce_bucket_size", 5e8)), trained)
    if stage == 3:
        live = float(zero.get("stage3_max_live_parameters", LIVE)) + float(zero.get("stage3_prefetch_bucket_size", 5e7))
        buffers += size * min(live, total * (1 - 1 / processes))
    else:
        buffers += size * min(float(zero.get("allgather_bucket_size", 5e8)), trained)
    step = FLOAT32 * shard
    if _offloads(zero, "offload_optimizer"):
        host, optimizer, gradients, step = optimizer + FLOAT32 * shard, 0.0, gradients if stage == 1 else 0.0, 0.0
    if _offloads(zero, "offload_param"):
        host, weights = host + weights, 0.0
    return Weights(weights, gradients, optimizer, trained, buffers, step, host)


def _offloads(zero: DictConfig, key: str) -> bool:
    return bool(zero.get(key)) and zero[key].get("device", "none") != "none"


def _fsdp(
    fsdp: DictConfig, shape: BackboneShape, weights: tuple[float, float], processes: int, size: int, state: int
) -> Weights:
    """FSDP2: everything is sharded; matrices are gathered when called, tied embeddings for a whole step."""
    total, trained = weights
    shard, stored = trained / processes, ((total - trained) * size + FLOAT32 * trained) / processes
    gradients, optimizer, host = FLOAT32 * shard, state * shard, 0.0
    largest = max(shape.width * shape.inner, 0 if shape.tied else shape.embedding_weights)
    buffers = 2.0 * largest * size + FLOAT32 * largest * (trained > 0)  # this matrix and the next; one gradient
    is_whole = trained > total / 2  # all weights are trained, embeddings too
    if shape.tied:
        buffers += shape.embedding_weights * (2 * FLOAT32 if is_whole else size)
    if not fsdp.reshard_after_forward:
        buffers += total * size
    if fsdp.offload == "cpu":
        host, stored, gradients, optimizer = stored + gradients + optimizer, 0.0, 0.0, 0.0
    return Weights(stored, gradients, optimizer, trained, buffers, 0.0, host)
