"""Small things built in code for tests and for the tiny configurations: nothing is downloaded."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from breviary.config.build import build_backbone, build_reader
from breviary.contract import Batch, Compressor, Generation, Reader

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

FEW_MATRICES = ["q_proj", "v_proj", "down_proj"]


def compose_tiny(overrides: Sequence[str] = (), config: str = "train") -> DictConfig:
    """Configuration `config` with `overrides`, each group=choice or key=value; where they do not say otherwise, the
    tiny backbone gets 4 layers instead of its usual number, and 2 of them read the context; chunks are as small; adapters
    sit on three matrices of a layer instead of on all seven, which halves the time to build a reader."""
    # Composing takes a tenth of a second: done once for each choice of groups, keys are set afterwards.
    # Where Hydra looks for choices (hydra.searchpath) belongs to composing as well.
    is_choice = [o.startswith("hydra.") or (CONFIGS / o.partition("=")[0]).is_dir() for o in overrides]
    cfg = copy.deepcopy(_composed(config, tuple(o for o, choice in zip(overrides, is_choice) if choice)))
    for section, key, small in (
        ("backbone", "layers", 4),
        ("compressor", "encoder_layers", 2),
        ("compressor", "chunk_size", 16),
        ("compressor", "stride", 4),
        ("compressor", "global_slots", 3),
        ("compressor", "queue_budget", 8),
        ("decoder", "lora_targets", FEW_MATRICES),
        ("compressor", "lora_targets", FEW_MATRICES),
    ):
        if key in cfg[section]:
            cfg[section][key] = small
    cfg.merge_with_dotlist([o for o, choice in zip(overrides, is_choice) if not choice])
    return cfg


@functools.cache
def _composed(config: str, choices: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(config, list(choices))


def tiny_reader(cfg: DictConfig) -> Reader:
    """The reader of a composed configuration, in training mode."""
    backbone = build_backbone(cfg)
    return build_reader(cfg, backbone, backbone.tokenizer())


def compressor_forms(only_compressors: bool = False) -> dict[str, list[str]]:
    """{name: overrides} of every YAML in configs/compressor, at both joins where it has the key.

    only_compressors leaves out readers that are no `Compressor`.
    """
    forms = {}
    for file in sorted((CONFIGS / "compressor").glob("*.yaml")):
        settings = OmegaConf.load(file)
        if only_compressors and not issubclass(get_class(settings._target_), Compressor):
            continue
        joins = ("input", "depth") if "join" in settings else (None,)
        for join in joins:
            overrides = [f"compressor={file.stem}"] + ([f"compressor.join={join}"] if join else [])
            forms[f"{file.stem}-{join}" if join else file.stem] = overrides
    return forms


@torch.no_grad()
def disturb(module: nn.Module, scale: float = 0.05, seed: int = 1) -> None:
    """Adds noise to every trained weight, in place: a fresh adapter's B is 0, and with it A's gradient."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter += scale * torch.randn(parameter.shape, generator=generator)


class _Recorder:
    """A tokenizer that keeps the ids of the latest batch it decoded."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.ids: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tokenizer(*args, **kwargs)

    def batch_decode(self, ids: list[list[int]], **kwargs: Any) -> list[str]:
        self.ids = [list(row) for row in ids]
        return self._tokenizer.batch_decode(ids, **kwargs)


@contextlib.contextmanager
def recorded_ids(reader: Reader) -> Iterator[_Recorder]:
    """Gives an object whose `ids` are those of the reader's latest answers, end tokens included."""
    tokenizer, recorder = reader.tokenizer, _Recorder(reader.tokenizer)
    reader.tokenizer = recorder
    try:
        yield recorder
    finally:
        reader.tokenizer = tokenizer


def greedy_ids(reader: Reader, batch: Batch, tokens: int = 6) -> list[list[int]]:
    """Ids of the greedy answers of at most `tokens` tokens, one list a row."""
    with recorded_ids(reader) as recorder:
        reader.answer(batch, Generation(max_new_tokens=tokens))
    return recorder.ids


def row_ids(batch: Batch, row: int, *parts: str) -> Tensor:
    """The real tokens of the named parts of one row, in that order, (N,)."""
    tokens = [getattr(batch, part) for part in parts]
    return torch.cat([part.ids[row][part.mask[row]] for part in tokens])


@torch.no_grad()
def plain_nll(model: nn.Module, prompt_ids: Tensor, answer_ids: Tensor) -> Tensor:
    """Nats that a Hugging Face causal model spends on `answer_ids` (A,) after `prompt_ids` (N,): a scalar."""
    logits = model(torch.cat([prompt_ids, answer_ids])[None]).logits[0, len(prompt_ids) - 1 : -1]
    return nn.functional.cross_entropy(logits.float(), answer_ids, reduction="sum")
