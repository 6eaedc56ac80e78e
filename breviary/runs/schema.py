"""Schema versions of run folders: configurations of earlier versions are upgraded when they are loaded.

config.yaml of a run begins with `schema`. The number increases when an earlier configuration would no longer mean the
same. Runs without a schema have schema 1. A new key whose default changes nothing needs no new schema: missing keys get
the defaults of their constructors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

SCHEMA = 3


def _from_1(cfg: DictConfig) -> None:
    """From schema 1, in which several forms exist; oldest first."""
    # The tiny backbone had an unused key `note`.
    if cfg.backbone._target_.endswith(".TinyBackbone"):
        cfg.backbone.pop("note", None)
    # lsa_layers=0 meant no alignment, before there were several kinds of alignment.
    if "lsa_layers" in cfg.compressor and "alignment" not in cfg.compressor:
        cfg.compressor.alignment = "lsa" if cfg.compressor.lsa_layers else "none"
        cfg.compressor.lsa_layers = cfg.compressor.lsa_layers or 1
        cfg.compressor.question = "after_context"
    # There was no pipeline: one process per batch.
    for key, value in (("ranks", 1), ("schedule", "cyclic")):
        cfg.engine.setdefault(key, value)


# Classes that moved between schema 2 and 3: {old _target_: new _target_}.
MOVED = {
    "breviary.backbone.Backbone": "breviary.backbones.pretrained.Backbone",
    "breviary.backbone.TinyBackbone": "breviary.backbones.tiny.TinyBackbone",
    "breviary.baselines.KeepTokens": "breviary.readers.keep_tokens.KeepTokens",
    "breviary.distillation.Distill": "breviary.objectives.distillation.Distill",
    "breviary.memory_tokens.MemoryTokens": "breviary.readers.memory_tokens.MemoryTokens",
    "breviary.objective.Answer": "breviary.objectives.answer.Answer",
    "breviary.objective.AnswerAndCopy": "breviary.objectives.answer.AnswerAndCopy",
    "breviary.objective.Continue": "breviary.objectives.text.Continue",
    "breviary.objective.Reconstruct": "breviary.objectives.text.Reconstruct",
    "breviary.pooling.MeanPool": "breviary.readers.mean_pool.MeanPool",
}
FORMER_TARGETS = {new: old for old, new in MOVED.items()}


def rename_targets(node: Any, names: Mapping[str, str]) -> Any:
    """A configuration as plain values with every `_target_` renamed by `names`."""
    if isinstance(node, dict):
        return {
            key: names.get(value, value) if key == "_target_" else rename_targets(value, names)
            for key, value in node.items()
        }
    return [rename_targets(value, names) for value in node] if isinstance(node, list) else node


def _from_2(cfg: DictConfig) -> None:
    """From schema 2: classes of breviary moved into sub-packages."""
    for section in ("backbone", "compressor", "dataset", "objective"):
        if section in cfg:
            cfg[section] = rename_targets(OmegaConf.to_container(cfg[section]), MOVED)


# Keys added without a new schema, {section: {key or key.key: value}}: with that value a configuration means what it
# meant without the key, and has the same hash. `...` = any value: the key acts through another one, which is hashed.
ADDED: dict[str, dict[str, Any]] = {
    "backbone": {"compile": False},
    # relevance: RAM and COMI had the cosine alone, reading by attention (None) its own; so had skim and gate one value.
    "compressor": {"relevance": ("cosine", None), "relevance_size": 50, "skim": "none", "gate": "none", "bytes": None},
    "prompt": {"date": "26 Jul 2024"},
    # max_new_tokens to truncation: defaults of sections generation, prompt and limits. metrics: of evaluations alone.
    "dataset": {
        **dict.fromkeys(("max_new_tokens", "stop", "instruction", "template", "chat", "truncation", "metrics"), ...),
        "passage_format": "numbered",
    },
    "engine": {"fsdp": None, "deepspeed.communication_data_type": None},
    "objective": {"continuation_above": 0, "teacher": None},
    # epochs and global_batch act through steps and accumulation; save_every, tracker and check_memory change no result.
    "train": {
        "epochs": ...,
        "global_batch": ...,
        "save_every": ...,
        "tracker": ...,
        "pack_tokens": None,
        "check_memory": ...,
        "not_finite": "stop",
    },
}


def without_added(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as plain values without the keys of ADDED that change nothing."""
    return {
        section: _without(values, ADDED[section]) if section in ADDED and isinstance(values, Mapping) else values
        for section, values in plain.items()
    }


def _without(values: Mapping[str, Any], added: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`values` without those of `added`, whose keys may lie deeper: a.b."""
    inner = {key.rpartition(".")[0] for key in added}
    return {
        key: _without(value, added, f"{prefix}{key}.") if f"{prefix}{key}" in inner and value else value
        for key, value in values.items()
        if f"{prefix}{key}" not in added or not _is_former(added[f"{prefix}{key}"], value)
    }


def _is_former(default: Any, value: Any) -> bool:
    """Whether the value is the one, or in a tuple one of those, that earlier versions had; ... = any."""
    return default is ... or (value in default if isinstance(default, tuple) else value == default)


UPGRADES: dict[int, Callable[[DictConfig], None]] = {1: _from_1, 2: _from_2}


def upgrade_config(cfg: DictConfig, source: str) -> DictConfig:
    """Upgrades a run's configuration in place to the schema of this version, and removes key `schema`.

    source  file name for error messages
    Raises: ValueError for an unknown schema.
    """
    with open_dict(cfg):
        schema = cfg.pop("schema", 1)
        if schema not in (*UPGRADES, SCHEMA):
            raise ValueError(
                f"{source}: a run of schema {schema}, this version reads 1 to {SCHEMA}; open it with the "
                "version of Breviary that wrote it (environment.json beside it names the commit)"
            )
        for version in range(schema, SCHEMA):
            UPGRADES[version](cfg)
    return cfg
