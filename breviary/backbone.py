"""Which backbone: naming weights, checking and loading them, and declaring which are trained.

What is done with a loaded model is in breviary/stack.py.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils import logging

from breviary.backbone_problems import DTYPES, FAMILIES, architecture_problems, choice_problems, weight_problems
from breviary.stack import Stack

TRAIN_MODES = ("lora", "attention", "qkv", "frozen", "full")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
                "Hugging Face form, or a hub name that is in the cache or can be reached") from error

    def problems(self) -> list[str]:
        """What keeps this backbone from being used, one sentence each; reads no weights."""
        found = choice_problems(self.dtype, self.attn_implementation, self.device)
        folder = Path(self.path)
        looks_local = folder.is_absolute() or self.path.startswith(".")
        if looks_local and not folder.is_dir():
            return found + [f"backbone.path={self.path}: no such folder; "
                            "for SmolLM2 run `python scripts/get_backbone.py`, else give a folder or a hub name"]
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                return found + [f"backbone.path={self.path}: no config.json in this folder; "
                                "give a folder in Hugging Face form"]
            found += weight_problems(folder)
        try:
            return found + architecture_problems(self.config)
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
            model, found = loader.from_pretrained(self.path, config=config, dtype=DTYPES[self.dtype],
                                                  attn_implementation=self.attn_implementation, output_loading_info=True)
        finally:
            logging.set_verbosity(verbosity)
        if found["missing_keys"] or found["mismatched_keys"]:
            raise ValueError(f"backbone.path={self.path}: weights do not fit config.json: missing "
                             f"{sorted(found['missing_keys'])[:3]}, of another shape {found['mismatched_keys'][:3]}")
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


@dataclass
class TinyBackbone:
    """Random weights, built in code from a seed: tests and plumbing, no download.

    family is llama | qwen2 | qwen3. The tokenizer is byte-level, built in code as well.
    """

    family: str = "llama"
    layers: int = 4
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    positions: int = 8192
    seed: int = 0
    dtype: str = "float32"
    device: str = "auto"
    attn_implementation: str = "sdpa"

    @property
    def description(self) -> str:
        """Name and note, for tables."""
        return f"tiny {self.family} (random weights)"

    @cached_property
    def config(self) -> PretrainedConfig:
        """Configuration of the tiny model."""
        problems = self._shape_problems()
        if problems:
            raise ValueError("\n".join(problems))
        tokenizer = self.tokenizer()
        return AutoConfig.for_model(
            self.family, vocab_size=len(tokenizer), hidden_size=self.width, intermediate_size=2 * self.width,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            head_dim=self.width // self.heads, max_position_embeddings=self.positions, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
        )

    def tokenizer(self) -> Any:
        """The byte-level tokenizer of the tests."""
        from breviary.testing import tiny_tokenizer

        return tiny_tokenizer()

    def problems(self) -> list[str]:
        """As `Backbone.problems`."""
        return choice_problems(self.dtype, self.attn_implementation, self.device) + self._shape_problems()

    def _shape_problems(self) -> list[str]:
        found = []
        for key in ("layers", "width", "heads", "kv_heads", "positions"):
            if getattr(self, key) < 1:
                example = getattr(TinyBackbone, key)
                found.append(f"backbone.{key}={getattr(self, key)}: must be at least 1, e.g. {example}")
        if not found and (self.width % (2 * self.heads) or self.heads % self.kv_heads):
            found.append(f"backbone.width={self.width}, heads={self.heads}, kv_heads={self.kv_heads}: width must be a "
                         "multiple of 2 * heads, heads of kv_heads; e.g. 64, 4, 2")
        if self.family not in FAMILIES:
            found.append(f"backbone.family={self.family}: allowed are {', '.join(FAMILIES)}")
        return found

    def load(self, layers: int | None = None, head: bool = True) -> nn.Module:
        """As `Backbone.load`: the first layers are the full model's first layers."""
        config = copy.deepcopy(self.config)
        config._attn_implementation = self.attn_implementation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            # Weights are scaled up: at the default 0.02 a tiny model's logits are flat and hide bugs.
            config.initializer_range = 0.15
            full = AutoModelForCausalLM.from_config(config, dtype=DTYPES[self.dtype])
        full.config.dtype = DTYPES[self.dtype]
        if layers is not None:
            del full.model.layers[layers:]
            full.config.num_hidden_layers = layers
        return full if head else full.model

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """As `Backbone.fingerprint`."""
        identity = json.dumps([_identity(self.config), self.seed], sort_keys=True)
        return {"name": f"tiny_{self.family}", "sha256": hashlib.sha256(identity.encode()).hexdigest()}


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
    keys = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "rms_norm_eps")
    return {key: getattr(config, key, None) for key in keys}


# ------------------------------------------------------------------ what is trained


def set_trainable(stack: Stack, train: str, lora_rank: int = 16, lora_alpha: float = 32, lora_dropout: float = 0.0,
                  lora_targets: str | list[str] = "all-linear", adapter: str = "default") -> None:
    """Declares which weights of a stack are trained, in place; trained weights become float32.

    train  lora: adapters on `lora_targets` of every layer ('all-linear' or projection names);
           attention: q, k, v and o projections in full; qkv: without o; frozen: nothing; full: everything the stack holds
    """
    assert train in TRAIN_MODES, f"train={train!r} is none of {TRAIN_MODES}"
    stack.requires_grad_(train == "full")
    if train == "lora":
        targets = list(LINEAR if lora_targets == "all-linear" else lora_targets)
        config = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=targets)
        inject_adapters(config, stack.layers, adapter)
        for name, parameter in stack.layers.named_parameters():
            parameter.requires_grad_("lora_" in name)
    elif train in ("attention", "qkv"):
        projections = "qkvo" if train == "attention" else "qkv"
        for name, parameter in stack.layers.named_parameters():
            parameter.requires_grad_(any(f"self_attn.{p}_proj." in name for p in projections))
    for parameter in stack.parameters():
        # Updates of 1e-5 vanish in bfloat16 weights; DeepSpeed's bf16 engine keeps float32 masters by itself.
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def inject_adapters(config: LoraConfig, layers: nn.Module, adapter: str) -> None:
    """peft's adapters in every module that `config` names, in place."""
    inject_adapter_in_model(config, layers, adapter_name=adapter)
    for module in layers.modules():
        if isinstance(module, LoraLayer):
            # peft would make the stream float32 for the adapters' weights, and autocast half again for their product:
            # the same numbers for an eighth of a training step.
            module.cast_input_dtype_enabled = False


def hold(module: nn.Module) -> None:
    """Freezes a module's trained weights, in place, and marks them as `held`: they are no pretrained ones, so that
    checkpoints keep them with the trained (breviary.checkpoint)."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.held = True


@contextlib.contextmanager
def adapters_off(stack: Stack) -> Iterator[None]:
    """Within it the stack computes with its own weights alone; what is trained stays as it was. For use without gradient:
    checkpointed layers would be recomputed with adapters."""
    adapted = [module for module in stack.modules() if isinstance(module, BaseTunerLayer)]
    trained = [parameter for parameter in stack.parameters() if parameter.requires_grad]
    for module in adapted:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in adapted:
            module.enable_adapters(True)
        for parameter in stack.parameters():
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def merge_adapters(module: nn.Module) -> None:
    """Adds every low-rank adapter to the weight it adapts, and takes it out, in place; rounded once, to the weight's type."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLayer):
                base = layer.get_base_layer()
                for adapter in layer.active_adapters:
                    merged = base.weight.float() + layer.get_delta_weight(adapter).float()
                    base.weight.data = merged.to(base.weight.dtype)
                setattr(parent, name, base)
