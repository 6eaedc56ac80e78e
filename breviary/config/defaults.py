"""Keys whose default depends on other keys: null in the YAML file stands for the value."""

from __future__ import annotations

from omegaconf import DictConfig

from breviary.runtime.markup import ANSWER_TEMPLATES


def fill_defaults(cfg: DictConfig) -> None:
    """Replaces, in place, each null that stands for a value by that value. Runs and hashes hold the values.

    prompt.answer_template  " {answer}", with prompt.chat "{answer}"
    """
    if cfg.prompt.answer_template is None:
        cfg.prompt.answer_template = ANSWER_TEMPLATES[bool(cfg.prompt.chat)]
