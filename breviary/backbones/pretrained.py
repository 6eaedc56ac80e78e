"""A pretrained backbone: its configuration, tokenizer, weights and fingerprint, and the checks made before loading.

`stack.py` runs a loaded model, `trainable.py` declares its trained weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils import logging

from breviary.backbones.attention import ATTENTION, check_attention
from breviary.backbones.hub import hub_options, hub_problem
from breviary.backbones.recipes import BACKBONES
from breviary.backbones.sharding import load_partitioned
from breviary.runtime.files import file_sha256

FAMILIES = ("llama", "qwen2", "qwen3")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

# Rotary frequencies of other types, such as dynamic and longrope, change with the longest position of a batch.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@dataclass
class Backbone:
    """A pretrained causal language model: a folder in Hugging Face format, or a model of the hub.

    No weights are loaded before `load`; call `problems` first.
    path                 folder, or hub name
    dtype                of frozen weights and the residual stream; trained weights are float32
    device               auto | cpu | cuda[:i]
    attn_implementation  sdpa | eager | flash_attention_2 (GPU, half precision) | flex (training: GPU)
    compile              layers are compiled with torch.compile, those that run without a cache
    note                 printed next to every result; None = the note in the folder's provenance.json, if any
                         (for example how the weights were quantised)
    """

    path: str
    dtype: str = "bfloat16"
    device: str = "auto"
    attn_implementation: str = "sdpa"
    note: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.path.startswith("~"):
            self.path = str(Path(self.path).expanduser())

    @property
    def description(self) -> str:
        """Name and note, as printed in tables."""
        file = Path(self.path) / "provenance.json"
        note = json.loads(file.read_text())["note"] if self.note is None and file.is_file() else self.note
        return f"{Path(self.path).name} ({note})" if note else Path(self.path).name

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's configuration; loads no weights."""
        return self._from_pretrained(AutoConfig, "configuration")

    def tokenizer(self) -> Any:
        """The model's fast tokenizer."""
        return self._from_pretrained(AutoTokenizer, "tokenizer")

    def _from_pretrained(self, loader: Any, what: str) -> Any:
        try:
            return loader.from_pretrained(self.path, **self._hub_options())
        except (OSError, ValueError) as error:
            if self._is_hub_name and hub_problem():
                raise ValueError(
                    f"backbone.path={self.path}: no such folder, the hub's cache has no {what} of that name, and "
                    f"{hub_problem()}; give a folder in Hugging Face format"
                ) from error
            raise ValueError(
                f"backbone.path={self.path}: no {what} can be read ({str(error).splitlines()[0]}); give a folder in "
                "Hugging Face format, or a hub name that is in the cache or can be reached"
            ) from error

    def _hub_options(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`: only the cache for a hub name where the hub is not reached."""
        return hub_options() if self._is_hub_name else {}

    @property
    def _is_hub_name(self) -> bool:
        folder = Path(self.path)
        return not (folder.is_absolute() or self.path.startswith(".") or folder.is_dir())

    def problems(self) -> list[str]:
        """Error messages for settings, a folder or an architecture that cannot be used; loads no weights."""
        problems = check_choices(self.dtype, self.attn_implementation, self.device)
        folder = Path(self.path)
        looks_local = folder.is_absolute() or self.path.startswith(".")
        if looks_local and not folder.is_dir():
            known = folder.name in BACKBONES
            command = f"python scripts/get_backbone.py{f' {folder.name}' if known else ''}"
            return problems + [
                f"backbone.path={self.path}: no such folder; "
                f"{'' if known else 'for SmolLM2 '}run `{command}`, else give a folder or a hub name"
            ]
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                return problems + [
                    f"backbone.path={self.path}: no config.json in this folder; give a folder in Hugging Face format"
                ]
            problems += check_weight_files(folder)
        try:
            return problems + check_architecture(self.config)
        except ValueError as error:
            return problems + [str(error)]

    def load(self, layers: int | None = None, head: bool = True) -> nn.Module:
        """The model with all layers or the first `layers`, with or without the language-model head.

        Partitioned over the ranks within `sharding.partitioned_loading`.
        Raises: ValueError where the folder's weights do not match its config.json.
        """
        config = truncated_config(self.config, layers)
        # transformers rejects our names and checks for packages, so `ATTENTION` is set after loading.
        loading = "eager" if self.attn_implementation == "eager" else "sdpa"
        config._attn_implementation = loading
        loader = AutoModelForCausalLM if head else AutoModel
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # no list of every tensor of the omitted layers; missing keys are checked below
        try:
            with load_partitioned(DTYPES[self.dtype]):
                model, report = loader.from_pretrained(
                    self.path,
                    config=config,
                    dtype=DTYPES[self.dtype],
                    attn_implementation=loading,
                    output_loading_info=True,
                    **self._hub_options(),
                )
        finally:
            logging.set_verbosity(verbosity)
        if report["missing_keys"] or report["mismatched_keys"]:
            raise ValueError(
                f"backbone.path={self.path}: weights do not match config.json: missing "
                f"{sorted(report['missing_keys'])[:3]}, different shape {report['mismatched_keys'][:3]}"
            )
        model.config.dtype = DTYPES[self.dtype]
        model.config._attn_implementation = ATTENTION[self.attn_implementation]
        return model

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Name and sha256 that checkpoints store: a hash over the configuration and the bytes of the weight files.

        former_sha256 is what earlier versions stored in place of sha256; nothing stores it now.
        """
        folder = Path(self.path)
        contents = [
            _file_digest(file, file.stat().st_mtime_ns, file.stat().st_size)
            for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        ]
        if not folder.is_dir():  # a hub name, whose files may not be downloaded yet
            contents.append(f"{self.path}@{self.config._commit_hash}".encode())
        return {"name": Path(self.path).name} | fingerprint_hashes(self.config, contents)


def truncated_config(config: PretrainedConfig, layers: int | None) -> PretrainedConfig:
    """A copy of `config` for the first `layers` layers. Models share configurations, so the original is not edited."""
    config = copy.deepcopy(config)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    return config


@cache
def _file_digest(file: Path, modified_ns: int, size: int) -> bytes:
    """sha256 of a file. Its modification time and size are part of the cache key."""
    return bytes.fromhex(file_sha256(file))


def fingerprint_hashes(config: PretrainedConfig, contents: Sequence[bytes]) -> dict[str, str]:
    """{"sha256", "former_sha256"} of a configuration and what identifies its weights."""
    hashes = {}
    for name, identity in (("sha256", config_identity(config)), ("former_sha256", former_config_identity(config))):
        text = json.dumps(identity, sort_keys=True, default=str).encode()
        hashes[name] = hashlib.sha256(b"".join([text, *contents])).hexdigest()
    return hashes


# Keys of a Hugging Face configuration that do not change the function that a model computes: names and versions, how it
# is loaded and what it returns, its initialisation, and token ids that only the tokenizer or the decoding loop uses.
HARMLESS_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "return_dict_in_generate",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "use_return_dict",
    }
)


def config_identity(config: PretrainedConfig) -> dict[str, Any]:
    """All of `config` that changes the function, for a fingerprint: its keys but HARMLESS_KEYS and those that are None.

    The longest position counts only where rotary positions are scaled, which may depend on it.
    """
    keys = {key: value for key, value in config.to_dict().items() if key not in HARMLESS_KEYS and value is not None}
    keys.setdefault("head_dim", config.hidden_size // config.num_attention_heads)  # the default of every family
    rope = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    if rope.get("rope_type", "default") == "default":
        keys.pop("max_position_embeddings", None)
    return keys


def former_config_identity(config: PretrainedConfig) -> dict[str, Any]:
    """The keys of `config` in the fingerprints of earlier versions, which checkpoints may still store."""
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


def check_architecture(config: PretrainedConfig) -> list[str]:
    """Error messages for parts of a model configuration that `Stack` does not support."""
    problems = []
    if config.model_type not in FAMILIES:
        problems.append(
            f"backbone of type '{config.model_type}': supported are {', '.join(FAMILIES)} (key backbone.path)"
        )
    other = sorted(set(getattr(config, "layer_types", None) or []) - {"full_attention"})
    if other:
        problems.append(
            f"backbone with layers of type {', '.join(other)}: only full_attention is supported (key backbone.path)"
        )
    rope_type = rope_scaling(config)["rope_type"]
    if rope_type not in ROPE_TYPES:
        problems.append(
            f"backbone with {rope_type} rope scaling, whose frequencies depend on the batch: supported are rope_type "
            f"{', '.join(ROPE_TYPES)} in config.json (key backbone.path)"
        )
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        problems.append(
            f"backbone with quantised weights ({method or 'quantization_config'}, key quantization_config of its "
            "config.json): only float32, float16 and bfloat16 weights are supported; give the folder of the model "
            "before quantisation (key backbone.path)"
        )
    return problems


def rope_scaling(config: PretrainedConfig) -> dict[str, Any]:
    """The parameters of rotary positions in a model configuration; `rope_type` is always set."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return {**rope, "rope_type": rope.get("rope_type") or rope.get("type") or "default"}


def usable_positions(config: PretrainedConfig) -> int:
    """Positions for which a model is made: its scaled ones, where its rotary positions are scaled.

    Qwen's configurations of YaRN state the unscaled number as max_position_embeddings, Llama 3.1's states the scaled
    one: the larger of it and original_max_position_embeddings * factor is taken. Without the original number (linear
    scaling), max_position_embeddings is the unscaled one, as Hugging Face defined it.
    """
    rope, positions = rope_scaling(config), config.max_position_embeddings
    original = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(original * (rope.get("factor") or 1)))


def check_choices(dtype: str, attn_implementation: str, device: str) -> list[str]:
    """Error messages for a dtype, attention implementation or device outside the allowed values."""
    problems = []
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        problems.append(f"backbone.device={device}: allowed are auto, cpu, cuda, cuda:0 and so on")
    elif device.startswith("cuda") and not torch.cuda.is_available():
        problems.append(f"backbone.device={device}: there is no GPU here; set backbone.device=auto or cpu")
    if dtype not in DTYPES:
        problems.append(f"backbone.dtype={dtype}: allowed are {', '.join(DTYPES)}")
    return problems + check_attention(attn_implementation, dtype, device)


def check_weight_files(folder: Path) -> list[str]:
    """Error messages for a folder without weights, or without some of the files that its index lists."""
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        return [f"backbone.path={folder}: folder without weights; it needs one of {', '.join(WEIGHT_FILES)}"]
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    missing = sorted(name for name in files if not (folder / name).is_file())
    return [f"backbone.path={folder}: weights are incomplete, {', '.join(missing)} is missing"] if missing else []
