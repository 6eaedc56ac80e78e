"""Helpers for tests: tiny configurations and readers built in code, reference computations. Nothing is downloaded."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn

from breviary.config.build import build_backbone, build_reader
from breviary.config.compose import compose_config
from breviary.config.defaults import fill_defaults
from breviary.config.keys import CONFIGS
from breviary.contract import Batch, Generation, Reader
from breviary.evaluation.resolve import resolve_run_config
from breviary.evaluation.session import EvaluationSession
from data.text_pipeline import TEXT

LORA_TARGETS = ["q_proj", "v_proj", "down_proj"]  # three matrices of a layer in place of seven: half the time to build


def compose_tiny(overrides: Sequence[str] = (), config: str = "train") -> DictConfig:
    """Configuration `config` with `overrides` (group=choice or key=value) and small sizes where they set none.

    Small sizes: 4 layers of the tiny backbone, 2 encoder layers, short chunks, few LoRA matrices.
    """
    # Composing takes 0.1 s: cached for each combination of choices; values are set afterwards. hydra.searchpath decides
    # where choices are found, so it counts as a choice.
    is_choice = [o.startswith("hydra.") or (CONFIGS / o.partition("=")[0]).is_dir() for o in overrides]
    cfg = copy.deepcopy(_compose_choices(config, tuple(o for o, choice in zip(overrides, is_choice) if choice)))
    for section, key, small in (
        ("backbone", "layers", 4),
        ("compressor", "encoder_layers", 2),
        ("compressor", "chunk_size", 16),
        ("compressor", "stride", 4),
        ("compressor", "global_slots", 3),
        ("compressor", "queue_budget", 8),
        ("compressor", "window", 4),
        ("decoder", "lora_targets", LORA_TARGETS),
        ("compressor", "lora_targets", LORA_TARGETS),
    ):
        if key in cfg[section]:
            cfg[section][key] = small
    cfg.merge_with_dotlist([o for o, choice in zip(overrides, is_choice) if not choice])
    fill_defaults(cfg)
    return cfg


@functools.cache
def _compose_choices(config: str, choices: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(config, list(choices))


@functools.cache
def composed_choice(choice: str) -> DictConfig:
    """configs/train.yaml with one choice, group=name. Callers copy what they change."""
    return compose_config("train", [choice])


def tiny_reader(cfg: DictConfig) -> Reader:
    """The reader of a composed configuration, in training mode."""
    backbone = build_backbone(cfg)
    return build_reader(cfg, backbone, backbone.tokenizer())


@torch.no_grad()
def disturb(module: nn.Module, scale: float = 0.05, seed: int = 1) -> None:
    """Adds noise to every trained weight, in place. A new adapter's B is 0, so the gradient of its A is 0 too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter += scale * torch.randn(parameter.shape, generator=generator)


class _RecordingTokenizer:
    """A tokenizer that stores the ids of the last batch it decoded."""

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
def recorded_ids(reader: Reader) -> Iterator[_RecordingTokenizer]:
    """Yields an object whose `ids` are the token ids of the reader's last answers, end tokens included."""
    tokenizer, recorder = reader.tokenizer, _RecordingTokenizer(reader.tokenizer)
    reader.tokenizer = recorder
    try:
        yield recorder
    finally:
        reader.tokenizer = tokenizer


def greedy_ids(reader: Reader, batch: Batch, tokens: int = 6) -> list[list[int]]:
    """Token ids of the greedy answers, at most `tokens` for each row."""
    with recorded_ids(reader) as recorder:
        reader.answer(batch, Generation(max_new_tokens=tokens))
    return recorder.ids


def row_ids(batch: Batch, row: int, *parts: str) -> Tensor:
    """The real tokens of the named parts of one row, concatenated in that order, (N,)."""
    tokens = [getattr(batch, part) for part in parts]
    return torch.cat([part.ids[row][part.mask[row]] for part in tokens])


@torch.no_grad()
def plain_nll(model: nn.Module, prompt_ids: Tensor, answer_ids: Tensor) -> Tensor:
    """NLL of `answer_ids` (A,) after `prompt_ids` (N,) under a Hugging Face causal model: a scalar, nats."""
    logits = model(torch.cat([prompt_ids, answer_ids])[None]).logits[0, len(prompt_ids) - 1 : -1]
    return nn.functional.cross_entropy(logits.float(), answer_ids, reduction="sum")


def evaluate_tiny(words: Sequence[str]) -> list[dict[str, Any]]:
    """Results of `eval.py WORDS` on tiny shapes, one for each row of its table."""
    return EvaluationSession(TEXT).evaluate(resolve_run_config(compose_tiny(words, "eval"), words))
