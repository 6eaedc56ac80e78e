"""Relevances by short name, as values of compressor.relevance; any other class is named by `_target_`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from breviary.runtime.spelling import override
from breviary.selection.attention import Attention
from breviary.selection.bm25 import BM25
from breviary.selection.cosine import Cosine
from breviary.selection.embedding import Embedding
from breviary.selection.gold import Gold
from breviary.selection.random import Random
from breviary.selection.relevance import Relevance

# With default arguments. Those that only text selection uses have a YAML of their own in configs/compressor.
NAMED: dict[str, type[Relevance]] = {
    "cosine": Cosine,
    "attention": Attention,
    "bm25": BM25,
    "embedding": Embedding,
    "gold": Gold,
    "random": Random,
}


def build_relevance(value: str | Relevance) -> Relevance:
    """The relevance of a name, or the one given."""
    return NAMED[value]() if isinstance(value, str) else value


def relevance_class(value: str | Mapping[str, Any]) -> type[Relevance]:
    """The class of a configuration's compressor.relevance, whose problems have been checked."""
    return NAMED[value] if isinstance(value, str) else _imported(value)


def relevance_problems(value: Any, backbone: Any) -> list[str]:
    """Error messages for compressor.relevance: a name, or a section with `_target_` and its arguments."""
    allowed = f"allowed are {', '.join(NAMED)}, or a section with the _target_ of a subclass of Relevance"
    if isinstance(value, str):
        return [] if value in NAMED else [f"compressor.relevance={value}: {allowed}, e.g. bm25"]
    if not isinstance(value, Mapping) or "_target_" not in value:
        example = override("compressor.relevance", "bm25")
        return [f"compressor.relevance={value}: {allowed}, e.g. {example}"]
    cls = _imported(value)
    if not isinstance(cls, type) or not issubclass(cls, Relevance):
        return [f"compressor.relevance._target_={value['_target_']}: {allowed}"]
    return cls.problems({key: item for key, item in value.items() if key != "_target_"}, backbone)


def evidence_problems(value: str | Mapping[str, Any], name: str, items: Any) -> list[str]:
    """Error messages for examples of split `name` without marked evidence, where the relevance reads it."""
    if not relevance_class(value).needs_evidence:
        return []
    missing = [e.id for e in items.examples if e.context and not any(d.is_gold for d in e.documents)]
    if not missing:
        return []
    return [
        f"dataset {name}: {len(missing)} of {len(items.examples)} examples mark no gold passage (first id: "
        f"{missing[0]!r}), which this relevance keeps; give documents with is_gold (docs/own_data.md), or another "
        "relevance, e.g. compressor=bm25"
    ]


def _imported(value: Mapping[str, Any]) -> Any:
    """The class that `_target_` names; config.keys has checked that it can be imported."""
    module, _, name = str(value["_target_"]).rpartition(".")
    return getattr(importlib.import_module(module), name)
