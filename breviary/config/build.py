"""From a composed configuration to a reader. Hydra's `_target_` is the registry; no method is named here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from breviary.backbones.pretrained import DTYPES, Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import set_trainable
from breviary.config.compose import load_choice
from breviary.config.errors import collect_errors, raise_problems
from breviary.config.keys import CONFIGS
from breviary.contract import Compressor, Reader
from breviary.memory.budget import BudgetedCompressor
from breviary.objectives.answer import Answer
from breviary.readers.compressed import CompressedReader
from breviary.runtime.device import resolve_device, seed_everything


@dataclass(frozen=True)
class ReaderSpec:
    """The classes that a configuration names for a reader, and their constructor arguments as plain values."""

    compressor: type[Compressor] | type[Reader]
    settings: dict[str, Any]  # of the compressor
    objective: type[Answer]
    objective_settings: dict[str, Any]

    @classmethod
    def of(cls, cfg: DictConfig) -> ReaderSpec:
        """`compressor.bytes` becomes `slots`, as many as fit.

        Raises: hydra's InstantiationException where a `_target_` cannot be imported; ConfigError where no slot fits.
        """
        settings = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("compressor", "objective")}
        classes = {name: get_class(section.pop("_target_")) for name, section in settings.items()}
        _bytes_to_slots(cfg, classes["compressor"], settings["compressor"])
        return cls(classes["compressor"], settings["compressor"], classes["objective"], settings["objective"])

    def arguments(self) -> dict[str, Any]:
        """The compressor's settings with the objects that they name, such as a scorer."""
        return {
            key: instantiate(value) if isinstance(value, dict) and "_target_" in value else value
            for key, value in self.settings.items()
        }


def _bytes_to_slots(cfg: DictConfig, compressor: type[Any], settings: dict[str, Any]) -> None:
    """Replaces `bytes` in a compressor's settings. Left in place beside other budgets: check_budget reports it."""
    if settings.get("bytes") is None or not issubclass(compressor, BudgetedCompressor):
        settings.pop("bytes", None)
        return
    if any(settings.get(key) is not None for key in ("ratio", "slots", "ratio_choices")):
        return
    amount, backbone = settings.pop("bytes"), build_backbone(cfg)
    config = collect_errors([], lambda: backbone.config)  # reported by check_reader
    if config is None:
        settings["slots"] = 1
        return
    per_slot = compressor.bytes_per_slot(settings, config, DTYPES[backbone.dtype])
    if amount < per_slot:
        raise_problems(
            [f"compressor.bytes={amount}: less than one slot, which takes {per_slot} bytes; e.g. {64 * per_slot}"]
        )
    settings["slots"] = amount // per_slot


def build_backbone(cfg: DictConfig) -> Backbone | TinyBackbone:
    """The backbone that `cfg.backbone` names; no weights are loaded yet."""
    return instantiate(cfg.backbone)


def build_reader(
    cfg: DictConfig, backbone: Backbone | TinyBackbone, tokenizer: Any, device: torch.device | None = None
) -> Reader:
    """Loads weights, sets what is trained, and joins compressor and decoder, on the backbone's device.

    New weights (adapters, learned tokens) are drawn from `cfg.seed`. device: another than the backbone's.
    """
    seed_everything(cfg.seed)
    spec = ReaderSpec.of(cfg)
    decoder = Stack(backbone.load())
    set_trainable(decoder, **OmegaConf.to_container(cfg.decoder, resolve=True))
    objective = instantiate(cfg.objective)
    if issubclass(spec.compressor, Reader):
        reader: Reader = spec.compressor(backbone, decoder, objective, tokenizer, **spec.arguments())
    else:
        # Called, not instantiated: Hydra would turn the backbone, a dataclass, into a configuration.
        compressor = spec.compressor(backbone, decoder, **spec.arguments())
        reader = CompressedReader(compressor, decoder, objective, tokenizer)
    for module in reader.modules():
        if isinstance(module, Stack):
            module.checkpointing = cfg.train.gradient_checkpointing
            if backbone.compile:
                module.compile_layers()
    return reader.to(device or resolve_device(backbone.device))


def compressor_forms(only_compressors: bool = False) -> dict[str, list[str]]:
    """{name: overrides} of every YAML in configs/compressor, at both joins where it has the key `join`.

    only_compressors  leave out YAMLs that name a whole reader instead of a `Compressor`
    """
    forms = {}
    for file in sorted((CONFIGS / "compressor").glob("*.yaml")):
        settings = load_choice(file)
        if only_compressors and not issubclass(get_class(settings._target_), Compressor):
            continue
        for join in ("input", "depth") if "join" in settings else (None,):
            name = f"{file.stem}-{join}" if join else file.stem
            forms[name] = [f"compressor={file.stem}"] + ([f"compressor.join={join}"] if join else [])
    return forms
