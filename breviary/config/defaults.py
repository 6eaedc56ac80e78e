"""Keys whose default depends on other keys: null in the YAML file stands for the value."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig

from breviary.runtime.markup import ANSWER_TEMPLATES

# Values of generation.KEY=null for data sets without a key dataset.KEY, or with null there.
ANSWERS: dict[str, Any] = {"max_new_tokens": 16, "stop": ["\n"]}


def fill_defaults(cfg: DictConfig) -> None:
    """Replaces, in place, each null that stands for a value by that value. Runs and hashes hold the values.

    prompt.answer_template     " {answer}", with prompt.chat "{answer}"
    generation.max_new_tokens  dataset.max_new_tokens, where the data set has it, else 16
    generation.stop            dataset.stop, where the data set has it, else a line break
    """
    if cfg.prompt.answer_template is None:
        cfg.prompt.answer_template = ANSWER_TEMPLATES[bool(cfg.prompt.chat)]
    for key in ANSWERS:
        if cfg.generation[key] is None:
            cfg.generation[key] = _of_dataset(cfg, key)


def release_defaults(cfg: DictConfig, keys: Collection[str]) -> None:
    """Sets, in place, values of a run to null that `fill_defaults` gave them, where `keys` change what they depend on.

    keys  keys of the command line. Limits of runs from before the data sets had such values stay, so that their
          evaluations are found again.
    """
    if "prompt.chat" in keys and cfg.prompt.answer_template == ANSWER_TEMPLATES[bool(cfg.prompt.chat)]:
        cfg.prompt.answer_template = None
    changed = {"dataset", *(f"dataset.{key}" for key in ANSWERS)}.intersection(keys)
    own = all(cfg.generation[key] == _of_dataset(cfg, key) for key in ANSWERS)  # none was set by hand
    is_recent = "date" in cfg.prompt  # written since data sets have such values
    if changed and own and is_recent:
        for key in ANSWERS:
            cfg.generation[key] = None


def _of_dataset(cfg: DictConfig, key: str) -> Any:
    own = cfg.dataset.get(key)
    return ANSWERS[key] if own is None else own
