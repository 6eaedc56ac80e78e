"""Files from elsewhere must not choose what is called here: which classes a run's configuration may name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import nn

from breviary.backbones.pretrained import Backbone
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Compressor, Dataset, Reader
from breviary.objectives.answer import Answer


@runtime_checkable
class Measures(Protocol):
    """What an objective measures beside the scores of answers, such as data.restoration.Restoration."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """One example's parts."""

    def corpus(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """What is measured over all examples."""


READER = ("backbone", "compressor")  # what a reader of texts is made of

ALL = (*READER, "dataset", "objective")

MADE_OF: dict[str, tuple[type, ...]] = {
    "backbone": (Backbone, TinyBackbone),
    "compressor": (Compressor, Reader),
    "dataset": (Dataset,),
    "objective": (Answer,),
}

WITHIN: dict[str, tuple[type, ...]] = {"objective": (Measures,)}  # elsewhere: modules


def untrusted_targets(cfg: DictConfig, sections: Sequence[str]) -> Iterator[str]:
    """A sentence for each class that `sections` name and that has no business there; nothing is called but imports."""
    for section in sections:
        for key, node in _named(OmegaConf.to_container(cfg[section], resolve=True), section):
            allowed = MADE_OF[section] if key == section else WITHIN.get(section, (nn.Module,))
            try:
                found = get_class(str(node["_target_"]))
            except Exception as error:  # whatever importing a module that somebody named raises
                yield f"{key}._target_={node['_target_']}: cannot be imported ({error})"
                continue
            if not issubclass(found, allowed):
                yield f"{key}._target_={node['_target_']}: is no {' or '.join(base.__name__ for base in allowed)}"


def _named(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dictionary with a _target_ in a section, with its key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from _named(value, f"{key}.{name}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _named(value, f"{key}.{number}")
