"""A Hugging Face decoder as a stack that one may enter and leave at any layer.

Shape letters: B rows, N new tokens, K keys (cached + new), D hidden width, V vocabulary.
This file alone knows the layer signatures of Llama, Qwen2 and Qwen3; all three share one.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils import logging

from breviary.backbone_problems import DTYPES, FAMILIES, architecture_problems, choice_problems, weight_problems

TRAIN_MODES = ("lora", "attention", "qkv", "frozen", "full")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Stack(nn.Module):
    """embed -> run(layers i..j) -> norm -> head, each callable by itself.

    Every submodule is used by calling it, which is what ZeRO-3 hooks into. `checkpointing` recomputes each
    layer's activations in the backward pass (non-reentrant: frozen memory that enters at a layer would break the
    reentrant form).
    """

    def __init__(self, model: nn.Module, keep_embedding: bool = True):
        super().__init__()
        core = getattr(model, model.base_model_prefix, model)
        self.config: PretrainedConfig = model.config
        self.embed_tokens = core.embed_tokens if keep_embedding else None
        self.layers = core.layers
        self.final_norm = core.norm
        self.rotary = core.rotary_emb
        self.lm_head = getattr(model, "lm_head", None)
        self.checkpointing = False
        # Chat models often end a turn with another token than the tokenizer's (Llama-3, Qwen).
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        self.end_ids: tuple[int, ...] = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stack:
        # .to(bfloat16), and DeepSpeed's engine, which calls .bfloat16(), would round the rotary frequencies as well:
        # an error of 7% in the angle's cosine at position 2,000.
        exact = dict(self.rotary.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self.rotary.get_buffer(name)
            if moved.dtype != buffer.dtype:
                setattr(self.rotary, name, buffer.to(moved.device))
        return self

    @property
    def width(self) -> int:
        """Hidden width D."""
        return self.config.hidden_size

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the residual stream, as loaded; weights trained in float32 do not change it."""
        return self.config.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, N) -> stream before layer 0 (B, N, D)."""
        return self.embed_tokens(ids).to(self.dtype)

    def run(self, states: Tensor, layers: range, positions: Tensor, key_mask: Tensor | None = None,
            cache: Any = None) -> Tensor:
        """Runs decoder layers `layers` on the stream.

        states     (B, N, D)
        positions  (B, N) rotary positions
        key_mask   (B, K) bool over cached keys and then the new ones, causal on top of it by slot;
                   None = plain causal over N tokens padded on the right only, whose padding no valid token can see
        cache      anything with `update(keys, values, layer) -> (keys, values)`; one that hands out earlier keys
                   needs a key_mask (without one sdpa would drop keys)
        """
        if not len(layers):
            return states
        assert key_mask is not None or cache is None or isinstance(cache, CapturingCache), f"{cache} without a key mask"
        rope = self.rotary(states, positions)
        mask = self._attention_mask(states, key_mask)
        for index in layers:
            layer = self.layers[index]
            call = dict(attention_mask=mask, position_ids=positions, past_key_values=cache,
                        use_cache=cache is not None, position_embeddings=rope)
            if self.checkpointing and self.training and torch.is_grad_enabled():
                states = checkpoint(layer, states, use_reentrant=False, **call)
            else:
                states = layer(states, **call)
        return states

    def norm(self, states: Tensor) -> Tensor:
        """The backbone's final norm, (..., D) -> (..., D)."""
        return self.final_norm(states)

    def head(self, rows: Tensor) -> Tensor:
        """Logits of normed rows, (..., D) -> (..., V)."""
        return self.lm_head(rows)

    def key_value_bytes(self, layers: int) -> int:
        """Bytes that one position's keys and values take in `layers` layers of cache."""
        config = self.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return layers * 2 * config.num_key_value_heads * head_dim * self.dtype.itemsize

    def _attention_mask(self, states: Tensor, key_mask: Tensor | None) -> Tensor | None:
        """Causal by slot, valid keys only; every slot sees itself, so that no row is fully masked (NaN)."""
        eager = self.config._attn_implementation == "eager"
        if key_mask is None and not eager:
            return None
        N = states.shape[1]
        K = N if key_mask is None else key_mask.shape[1]
        slots_K = torch.arange(K, device=states.device)
        query_slots_N1 = slots_K[K - N :, None]
        visible = (slots_K <= query_slots_N1)[None]  # (1, N, K)
        if key_mask is not None:
            visible = (visible & key_mask[:, None, :]) | (slots_K == query_slots_N1)[None]
        visible = visible[:, None]  # (B or 1, 1, N, K)
        if not eager:
            return visible  # sdpa takes booleans in every type; eager would add them
        zeros = torch.zeros((), dtype=states.dtype, device=states.device)
        return zeros.masked_fill(~visible, torch.finfo(states.dtype).min)


class CapturingCache:
    """Keeps the keys and values of one pass over a context. Safe under recomputation: it never appends."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores (B, heads, N, head width) and hands them on."""
        self.layers[layer] = (keys, values)
        return keys, values


class ReadOnlyCache:
    """Lets new tokens attend to stored keys and values without changing them, any number of times."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        self.layers = layers

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stored and new keys (B, heads, K, head width), likewise values."""
        stored_keys, stored_values = self.layers[layer]
        return (torch.cat([stored_keys.to(keys.dtype), keys], dim=2),
                torch.cat([stored_values.to(values.dtype), values], dim=2))


# ------------------------------------------------------------------ naming weights before loading them


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
    positions: int = 4096
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
        inject_adapter_in_model(config, stack.layers, adapter_name=adapter)
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
