"""Which backbone: naming weights, checking and loading them, and declaring which are trained.

What is done with a loaded model is in breviary/backbones/stack.py.


What keeps a backbone from being used, one sentence each; no weights are read for it."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils import logging


@dataclass
class Backbone:
    """A pretrained causal language model: a folder in Hugging Face form, or a name of the hub.

    Nothing is loaded before `load`; `problems` is asked first.
    path                 folder, or hub name
    dtype                of frozen weights and of the stream; trained weights are kept in float32
    device               auto | cpu | cuda[:i]
    attn_implementation  sdpa | eager
    note                 printed beside every result; None = the folder's own provenance, where it has one (how the
                         weights were quantised, say)
    """

    path: str
    dtype: str = "bfloat16"
    device: str = "auto"
    attn_implementation: str = "sdpa"
    note: str | None = None

    def __post_init__(self) -> None:
        if self.path.startswith("~"):
            self.path = str(Path(self.path).expanduser())

    @property
    def description(self) -> str:
        """Name and note, for tables."""
        file = Path(self.path) / "provenance.json"
        note = json.loads(file.read_text())["note"] if self.note is None and file.is_file() else self.note
        return f"{Path(self.path).name} ({note})" if note else Path(self.path).name

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's configuration; reads no weights."""
        return self._read(AutoConfig, "configuration")

    def tokenizer(self) -> Any:
        """The model's fast tokenizer."""
        return self._read(AutoTokenizer, "tokenizer")

    def _read(self, loader: Any, what: str) -> Any:
        try:
            return loader.from_pretrained(self.path)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"backbone.path={self.path}: no {what} can be read ({str(error).splitlines()[0]}); give a folder in "
                "Hugging Face form, or a hub name that is in the cache or can be reached"
            ) from error

    def problems(self) -> list[str]:
        """What keeps this backbone from being used, one sentence each; reads no weights."""
        found = check_choices(self.dtype, self.attn_implementation, self.device)
        folder = Path(self.path)
        looks_local = folder.is_absolute() or self.path.startswith(".")
        if looks_local and not folder.is_dir():
            return found + [
                f"backbone.path={self.path}: no such folder; "
                "for SmolLM2 run `python scripts/get_backbone.py`, else give a folder or a hub name"
            ]
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                return found + [
                    f"backbone.path={self.path}: no config.json in this folder; give a folder in Hugging Face form"
                ]
            found += check_weight_files(folder)
        try:
            return found + check_architecture(self.config)
        except ValueError as error:
            return found + [str(error)]

    def load(self, layers: int | None = None, head: bool = True) -> nn.Module:
        """The model, all layers or the first `layers`, with or without the language-model head."""
        config = truncated_config(self.config, layers)
        config._attn_implementation = self.attn_implementation
        loader = AutoModelForCausalLM if head else AutoModel
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it lists every tensor of the layers that are left out; what is missing we check
        try:
            model, found = loader.from_pretrained(
                self.path,
                config=config,
                dtype=DTYPES[self.dtype],
                attn_implementation=self.attn_implementation,
                output_loading_info=True,
            )
        finally:
            logging.set_verbosity(verbosity)
        if found["missing_keys"] or found["mismatched_keys"]:
            raise ValueError(
                f"backbone.path={self.path}: weights do not fit config.json: missing "
                f"{sorted(found['missing_keys'])[:3]}, of another shape {found['mismatched_keys'][:3]}"
            )
        model.config.dtype = DTYPES[self.dtype]
        return model

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Name and hash that a checkpoint carries: sha256 over the configuration and the weight files' bytes."""
        digest = hashlib.sha256(json.dumps(_identity(self.config), sort_keys=True).encode())
        folder = Path(self.path)
        for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
            digest.update(_file_digest(file, file.stat().st_mtime_ns))
        if not folder.is_dir():  # a name of the hub, whose files may not be here yet
            digest.update(f"{self.path}@{self.config._commit_hash}".encode())
        return {"name": Path(self.path).name, "sha256": digest.hexdigest()}


def truncated_config(config: PretrainedConfig, layers: int | None) -> PretrainedConfig:
    """A copy of `config` with the first `layers` layers; configurations are shared by models and never edited."""
    config = copy.deepcopy(config)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    return config


@cache
def _file_digest(file: Path, changed: int) -> bytes:
    """sha256 of a file; `changed`, its time of change, makes a changed file another one."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _identity(config: PretrainedConfig) -> dict[str, Any]:
    keys = (
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
    )
    return {key: getattr(config, key, None) for key in keys}


FAMILIES = ("llama", "qwen2", "qwen3")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

ATTENTION = ("sdpa", "eager")

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def check_architecture(config: PretrainedConfig) -> list[str]:
    """What the stack does not support of a model configuration, one sentence each."""
    found = []
    if config.model_type not in FAMILIES:
        found.append(f"backbone of type '{config.model_type}': supported are {', '.join(FAMILIES)} (key backbone.path)")
    other = sorted(set(getattr(config, "layer_types", None) or []) - {"full_attention"})
    if other:
        found.append(
            f"backbone with layers of type {', '.join(other)}: only full_attention is supported (key backbone.path)"
        )
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", "default") == "dynamic":
        found.append(
            "backbone with dynamic rope scaling, which depends on what was read before: not supported (key backbone.path)"
        )
    return found


def check_choices(dtype: str, attn_implementation: str, device: str) -> list[str]:
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


def check_weight_files(folder: Path) -> list[str]:
    """A backbone's folder that lacks its weights, or some of their files."""
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        return [f"backbone.path={folder}: folder without weights; it needs one of {', '.join(WEIGHT_FILES)}"]
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    missing = sorted(name for name in files if not (folder / name).is_file())
    return [f"backbone.path={folder}: weights are incomplete, {', '.join(missing)} is missing"] if missing else []
