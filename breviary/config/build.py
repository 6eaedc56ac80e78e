"""From a composed configuration to a reader. Hydra's `_target_` is the registry; no method is named here."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import set_trainable
from breviary.contract import Compressor, Reader
from breviary.objectives.answer import Answer
from breviary.readers.compressed import CompressedReader
from breviary.runtime.device import resolve_device, seed_everything


def build_backbone(cfg: DictConfig) -> Backbone | TinyBackbone:
    """The named backbone; nothing is loaded yet."""
    return instantiate(cfg.backbone)


def compressor_class(cfg: DictConfig) -> type[Compressor] | type[Reader]:
    """The class that `compressor._target_` names: a compressor, or a whole reader."""
    return get_class(cfg.compressor._target_)


def compressor_settings(cfg: DictConfig) -> dict[str, Any]:
    """The compressor's constructor arguments as plain values."""
    settings = OmegaConf.to_container(cfg.compressor, resolve=True)
    settings.pop("_target_")
    return settings


def objective_class(cfg: DictConfig) -> type[Answer]:
    """The class that `objective._target_` names."""
    return get_class(cfg.objective._target_)


def objective_settings(cfg: DictConfig) -> dict[str, Any]:
    """The objective's constructor arguments as plain values."""
    settings = OmegaConf.to_container(cfg.objective, resolve=True)
    settings.pop("_target_")
    return settings


def build_reader(cfg: DictConfig, backbone: Backbone | TinyBackbone, tokenizer: Any) -> Reader:
    """Loads weights, declares what is trained, and joins compressor and decoder; on the backbone's device.

    New weights (adapters, learned tokens) are drawn from `seed`.
    """
    seed_everything(cfg.seed)
    decoder = Stack(backbone.load())
    set_trainable(decoder, **OmegaConf.to_container(cfg.decoder, resolve=True))
    # Called, not instantiated: Hydra would turn the backbone, a dataclass, into a configuration.
    settings = {
        key: instantiate(value) if isinstance(value, dict) and "_target_" in value else value
        for key, value in compressor_settings(cfg).items()
    }
    cls, objective = compressor_class(cfg), instantiate(cfg.objective)
    if issubclass(cls, Reader):
        reader = cls(backbone, decoder, objective, tokenizer, **settings)
    else:
        reader = CompressedReader(cls(backbone, decoder, **settings), decoder, objective, tokenizer)
    for module in reader.modules():
        if isinstance(module, Stack):
            module.checkpointing = cfg.train.gradient_checkpointing
    return reader.to(resolve_device(backbone.device))
