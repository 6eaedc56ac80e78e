"""Estimated and measured peak memory of a training step of small random models (scripts/bench/training_memory.py)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from breviary.backbones.shape import BackboneShape
from breviary.config.build import build_backbone, build_reader
from breviary.config.compose import compose_config
from breviary.config.defaults import fill_defaults
from breviary.evaluation.timing import random_batch
from breviary.training.cost.estimate import estimate_training
from breviary.training.cost.measured import measured_step
from breviary.training.cost.parts import TextLengths

TOKENS = 24  # of the question, and of the answer
ROWS = 2  # examples of the batch

# {name: (family, width, heads, key/value heads, layers)} of the random backbones.
SHAPES: dict[str, tuple[str, int, int, int, int]] = {
    "llama": ("llama", 128, 8, 8, 4),
    "llama-gqa": ("llama", 192, 12, 4, 5),
    "qwen2": ("qwen2", 128, 8, 2, 6),
    "qwen3": ("qwen3", 256, 8, 4, 4),
}


def compare_memory(shape: str, dtype: str, reader: Sequence[str], context: int) -> dict[str, Any]:
    """{measured, estimated: bytes; moment of the estimated peak} of a training step.

    shape    of SHAPES
    reader   overrides of train.py: a compressor, then its settings and those of the training
    context  tokens of each of ROWS examples
    """
    names = ("family", "width", "heads", "kv_heads", "layers")
    sizes = [f"backbone.{key}={value}" for key, value in zip(names, SHAPES[shape])]
    fixed = [f"backbone.dtype={dtype}", "backbone.device=cpu", f"train.batch_size={ROWS}", "train.eval_examples=0"]
    choice, *settings = reader
    cfg = copy.deepcopy(_composed(choice))
    cfg.merge_with_dotlist([*sizes, *fixed, *settings])
    fill_defaults(cfg)
    backbone = build_backbone(cfg)
    reader = build_reader(cfg, backbone, backbone.tokenizer())
    batch = random_batch(reader, context + 2 * TOKENS, TOKENS, TOKENS, evidence=context // 4, rows=ROWS)
    lengths = TextLengths(context, TOKENS, TOKENS)
    estimate = estimate_training(cfg, BackboneShape.from_config(backbone.config), lengths)
    measured = measured_step(reader, batch)
    return {"measured": measured, "estimated": round(estimate.bytes), "moment": estimate.memory.peak.name}


@functools.cache
def _composed(choice: str) -> DictConfig:
    """The composed configuration, cached because composing takes 0.25 s. Callers must copy it."""
    return compose_config("train", ["backbone=tiny", choice])
