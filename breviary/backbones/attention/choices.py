"""The values of `backbone.attn_implementation`, and what each of them needs."""

from __future__ import annotations

import importlib.util

import torch

from breviary.backbones.attention.flash import FLASH
from breviary.backbones.attention.flex import FLEX

# Values of backbone.attn_implementation, with the names of their functions in transformers.
ATTENTION = {"sdpa": "sdpa", "eager": "eager", "flash_attention_2": FLASH, "flex": FLEX}


def check_attention(implementation: str, dtype: str, device: str) -> list[str]:
    """Error messages for an attention that does not exist, or cannot run with this dtype on this device."""
    key = f"backbone.attn_implementation={implementation}"
    if implementation not in ATTENTION:
        return [f"{key}: allowed are {', '.join(ATTENTION)}"]
    if implementation != "flash_attention_2":
        return []
    problems = []
    if importlib.util.find_spec("flash_attn") is None:
        problems.append(
            f"{key}: the package flash-attn is not installed; python -m pip install flash-attn on a machine with a "
            "GPU, or set backbone.attn_implementation=sdpa"
        )
    if device == "cpu" or not torch.cuda.is_available():
        problems.append(f"{key}: runs on a GPU only; set backbone.attn_implementation=sdpa")
    if dtype not in ("bfloat16", "float16"):
        problems.append(f"{key} with backbone.dtype={dtype}: allowed are bfloat16 and float16")
    return problems


def check_training_attention(implementation: str, device: str) -> list[str]:
    """Error messages for training with flex on a CPU, where it has no backward pass."""
    if implementation != "flex" or (device != "cpu" and torch.cuda.is_available()):
        return []
    return [
        "backbone.attn_implementation=flex: has no backward pass on a CPU; set backbone.attn_implementation=sdpa, or "
        "train on a GPU"
    ]


def check_head_masks(implementation: str, has_head_masks: bool) -> list[str]:
    """Error messages for flash-attn with a memory whose heads attend to different keys.

    has_head_masks  as Compressor.keeps_cache
    """
    if implementation != "flash_attention_2" or not has_head_masks:
        return []
    return [
        "backbone.attn_implementation=flash_attention_2: this compressor keeps different keys in each head, which "
        "flash-attn does not support; set backbone.attn_implementation=sdpa or flex"
    ]
