"""Keys whose default depends on other keys: null in the YAML file stands for the value."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf

from breviary.runtime.markup import ANSWER_TEMPLATES, QUESTION_TEMPLATE

# Values of SECTION.KEY=null for data sets without a key dataset.KEY, or with null there.
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "prompt": {"instruction": "", "template": QUESTION_TEMPLATE, "chat": False},
    "limits": {"truncation": "middle"},
    "generation": {"max_new_tokens": 16, "stop": ["\n"]},
}
# {key: default}: examples in messages
EXAMPLES = {f"prompt.{key}": value for key, value in DATASET_DEFAULTS["prompt"].items()}


def fill_defaults(cfg: DictConfig) -> None:
    """Replaces, in place, each null that stands for a value by that value. Runs and hashes hold the values.

    keys of DATASET_DEFAULTS  dataset.KEY, where the data set has it, else the default there
    prompt.answer_template    " {answer}", with prompt.chat "{answer}"
    A data set with `tasks` has the keys of its `task`, where null, from there; `tasks` becomes null.
    """
    _fill_task(cfg.dataset)
    for section, defaults in DATASET_DEFAULTS.items():
        for key in defaults:
            if cfg[section][key] is None:
                cfg[section][key] = _of_dataset(cfg, section, key)
    if cfg.prompt.answer_template is None:
        cfg.prompt.answer_template = ANSWER_TEMPLATES[bool(cfg.prompt.chat)]


def _fill_task(dataset: DictConfig) -> None:
    """Sets the null keys of a data set of several tasks to those of its task; a wrong task stays for its checks."""
    tasks = dataset.get("tasks")
    if not OmegaConf.is_dict(tasks) or dataset.get("task") not in tasks:
        return
    for key, value in tasks[dataset.task].items():
        if key in dataset and dataset[key] is None:
            dataset[key] = value
    dataset.tasks = None


def release_defaults(cfg: DictConfig, keys: Collection[str]) -> None:
    """Sets, in place, values of a run to null that `fill_defaults` gave them, where `keys` change what they depend on.

    keys  keys of the command line. Limits of runs from before the data sets had such values stay, so that their
          evaluations are found again.
    """
    defaults = {key for values in DATASET_DEFAULTS.values() for key in values}
    changed = {"dataset", *(f"dataset.{key}" for key in ("task", *defaults))}.intersection(keys)
    if "prompt.chat" in keys and cfg.prompt.answer_template == ANSWER_TEMPLATES[bool(cfg.prompt.chat)]:
        cfg.prompt.answer_template = None
    for section, values in DATASET_DEFAULTS.items():
        own = all(cfg[section].get(key) == _of_dataset(cfg, section, key) for key in values)  # none was set by hand
        is_recent = section != "generation" or "date" in cfg.prompt  # written since data sets have such values
        if changed and own and is_recent:
            if section == "prompt" and cfg.prompt.answer_template == ANSWER_TEMPLATES[bool(cfg.prompt.chat)]:
                cfg.prompt.answer_template = None
            for key in values:
                cfg[section][key] = None


def _of_dataset(cfg: DictConfig, section: str, key: str) -> Any:
    own = cfg.dataset.get(key)
    return DATASET_DEFAULTS[section][key] if own is None else own
