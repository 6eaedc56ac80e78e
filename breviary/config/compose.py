"""Compose and resolve: from names and overrides to one configuration in which every key has a value."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from breviary.config.keys import CONFIGS, drop_unused_keys
from breviary.config.training_length import choose_given
from breviary.runtime.distributed import print_rank0

# Cached for each configuration, which Hydra copies to the jobs of a sweep: all have the same folder.
OmegaConf.register_new_resolver(
    "name_or_time",
    lambda name: name if name not in (None, "None") else datetime.now().strftime("%Y%m%dT%H%M%S"),
    use_cache=True,
    replace=True,
)


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """configs/NAME.yaml with overrides (`group=choice`, `key=value`), inside or outside an @hydra.main function."""
    cfg = _compose(name, list(overrides))
    choose_given(cfg, overrides)
    return cfg


def _compose(name: str, overrides: list[str]) -> DictConfig:
    if GlobalHydra.instance().is_initialized():  # by an @hydra.main on the same folder
        return compose(name, overrides)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, overrides)


def load_choice(file: Path) -> DictConfig:
    """A YAML of a config group, merged into those of its group that its defaults list names, as Hydra composes it.

    NAME@a.b in the list is that choice as the section a.b.
    """
    own = OmegaConf.load(file)
    names = list(own.pop("defaults", []))
    if "_self_" not in names:
        names.append("_self_")
    return OmegaConf.merge(*(own if name == "_self_" else _named_choice(file, name) for name in names))


def _named_choice(file: Path, name: str) -> DictConfig:
    """A choice NAME or NAME@a.b of the defaults list of `file`."""
    choice, _, package = name.partition("@")
    part = load_choice(file.with_name(f"{choice}.yaml"))
    if not package:
        return part
    nested = OmegaConf.create({})
    OmegaConf.update(nested, package, part, force_add=True)
    return nested


def chosen_compressor(overrides: Sequence[str]) -> str | None:
    """The compressor that the overrides choose: its YAML, or its class; None where they choose none."""
    chosen = None
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group in ("compressor", "compressor._target_") and isinstance(override.value(), str):
            chosen = override.value().rpartition(".")[2]
    return chosen


def resolve_choices(cfg: DictConfig) -> list[str]:
    """Adapts what @hydra.main composed, in place, to the choices of the command line; returns its overrides.

    `reader`, the row name in tables, defaults to the compressor's YAML. Keys that an experiment sets for another
    compressor or dataset than the chosen one are dropped, with a note. train.steps replaces an experiment's
    train.epochs, and the like (`choose_given`).
    """
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    if cfg.reader is None:
        cfg.reader = hydra.runtime.choices["compressor"]
    choose_given(cfg, overrides)
    unused = drop_unused_keys(cfg, overrides)
    if unused:
        print_rank0(f"not used with the chosen compressor or data: {', '.join(unused)}")
    return overrides
