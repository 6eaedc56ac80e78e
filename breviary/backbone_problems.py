"""What keeps a backbone from being used, one sentence each; no weights are read for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from transformers import PretrainedConfig

FAMILIES = ("llama", "qwen2", "qwen3")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ATTENTION = ("sdpa", "eager")
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def architecture_problems(config: PretrainedConfig) -> list[str]:
    """What the stack does not support of a model configuration, one sentence each."""
    found = []
    if config.model_type not in FAMILIES:
        found.append(f"backbone of type '{config.model_type}': supported are {', '.join(FAMILIES)} (key backbone.path)")
    other = sorted(set(getattr(config, "layer_types", None) or []) - {"full_attention"})
    if other:
        found.append(f"backbone with layers of type {', '.join(other)}: only full_attention is supported (key backbone.path)")
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", "default") == "dynamic":
        found.append("backbone with dynamic rope scaling, which depends on what was read before: not supported (key backbone.path)")
    return found


def choice_problems(dtype: str, attn_implementation: str, device: str) -> list[str]:
    """Keys of a backbone that are none of the allowed values."""
    found = []
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        found.append(f"backbone.device={device}: allowed are auto, cpu, cuda, cuda:0 and so on")
    elif device.startswith("cuda") and not torch.cuda.is_available():
        found.append(f"backbone.device={device}: there is no GPU here; set backbone.device=auto or cpu")
    if dtype not in DTYPES:
        found.append(f"backbone.dtype={dtype}: allowed are {', '.join(DTYPES)}")
    if attn_implementation not in ATTENTION:
        found.append(f"backbone.attn_implementation={attn_implementation}: allowed are {', '.join(ATTENTION)}")
    return found


def weight_problems(folder: Path) -> list[str]:
    """A backbone's folder that lacks its weights, or some of their files."""
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        return [f"backbone.path={folder}: folder without weights; it needs one of {', '.join(WEIGHT_FILES)}"]
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    missing = sorted(name for name in files if not (folder / name).is_file())
    return [f"backbone.path={folder}: weights are incomplete, {', '.join(missing)} is missing"] if missing else []
