"""Which classes the configuration of a run may name.

A run folder may come from somebody else, and Hydra imports and calls whatever `_target_` names. Each section is
therefore limited to subclasses of the types that belong there.
"""

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
class TextMetrics(Protocol):
    """Metrics of an objective in addition to the answer scores, such as data.restoration.Restoration."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The metrics of one example."""

    def corpus(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """The metrics over all examples."""


READER_SECTIONS = ("backbone", "compressor")  # sections that a reader is built from
ALL_SECTIONS = (*READER_SECTIONS, "dataset", "objective")

# Allowed base classes of a section's own `_target_`.
SECTION_CLASSES: dict[str, tuple[type, ...]] = {
    "backbone": (Backbone, TinyBackbone),
    "compressor": (Compressor, Reader),
    "dataset": (Dataset,),
    "objective": (Answer,),
}
# Allowed base classes of a `_target_` nested in a section; torch modules in every other section.
NESTED_CLASSES: dict[str, tuple[type, ...]] = {
    "objective": (TextMetrics,),
    # A backbone's tokenizer counts the tokens of generated examples; a mixture has data sets as its parts.
    "dataset": (Backbone, TinyBackbone, Dataset),
}


def untrusted_targets(cfg: DictConfig, sections: Sequence[str]) -> Iterator[str]:
    """An error message for each `_target_` in `sections` that is not allowed there. Imports modules, calls nothing."""
    for section in sections:
        for key, target in named_targets(OmegaConf.to_container(cfg[section], resolve=True), section):
            allowed = SECTION_CLASSES[section] if key == section else NESTED_CLASSES.get(section, (nn.Module,))
            try:
                cls = get_class(target)
            except Exception as error:  # importing an arbitrary module may raise anything
                yield f"{key}._target_={target}: cannot be imported ({error})"
                continue
            if not issubclass(cls, allowed):
                yield f"{key}._target_={target}: must be a subclass of {' or '.join(base.__name__ for base in allowed)}"


def named_targets(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """(key, value of `_target_`) of every dictionary in `node`, plain values whose key is `key`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, str(node["_target_"])
        for name, value in node.items():
            yield from named_targets(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from named_targets(value, f"{key}.{index}")
