"""Converters of QMSum (queries on meetings) and ContractNLI (statements on contracts)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data.converters.fields import (
    Converted,
    Skipped,
    converter,
    first_id,
    make_example,
    require,
    require_list,
    type_name,
)

NOISE = re.compile(r"\{[a-z]+\}")  # {vocalsound}, {disfmarker}, {gap}, ...
CHOICES = {"Entailment": "Entailment", "Contradiction": "Contradiction", "NotMentioned": "Not mentioned"}


@converter
def qmsum(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """QMSum (arXiv 2104.05938): a meeting with its general (g) and specific (s) queries. Noise marks are removed.

    {"meeting_transcripts": [{"speaker": str, "content": str}, ...], "general_query_list": [{"query": str,
     "answer": str}, ...], "specific_query_list": likewise}; the optional "meeting" is its name (see `RowReader`).
    """
    name = first_id(row, ("meeting",), f"qmsum-{number}")
    turns = []
    for place, turn in enumerate(require(row, "meeting_transcripts", list), 1):
        owner = f"turn {place}"
        words = NOISE.sub(" ", require(turn, "content", str, owner)).split()
        turns.append(f"{require(turn, 'speaker', str, owner)}: {' '.join(words)}")
    context = "\n".join(turns)
    for letter, field in (("g", "general_query_list"), ("s", "specific_query_list")):
        for place, query in enumerate(require(row, field, list)):
            owner = f"query {place + 1} in {field!r}"
            yield make_example(
                f"{name}-{letter}{place}",
                context,
                require(query, "query", str, owner),
                [require(query, "answer", str, owner)],
            )


@converter
def contract_nli(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """ContractNLI (arXiv 2110.01799): a contract and its statements. An answer is one of the values of CHOICES.

    {"id": int, "text": str, "annotation_sets": [{"annotations": {label: {"choice": str}}}],
     "labels": {label: {"hypothesis": str}}}; the labels are those of the file (see `contract_nli_rows`).
    """
    name, context = first_id(row, ("id",), f"contract-{number}"), require(row, "text", str)
    labels = require(row, "labels", dict)
    sets = require_list(row, "annotation_sets", dict)
    if not sets:
        yield Skipped("no annotations")
        return
    for label, annotation in require(sets[0], "annotations", dict, "the first annotation set").items():
        choice = require(annotation, "choice", str, f"the annotation {label!r}")
        if choice not in CHOICES:
            raise ValueError(f"'choice' of the annotation {label!r} is {choice!r}; allowed: {', '.join(CHOICES)}")
        if label not in labels:
            raise ValueError(
                f"the annotation {label!r} is not among the file's 'labels' ({', '.join(labels) or 'none'})"
            )
        hypothesis = require(labels[label], "hypothesis", str, f"the label {label!r}")
        yield make_example(f"{name}-{label}", context, hypothesis, [CHOICES[choice]])


def contract_nli_rows(value: Any) -> Iterator[Any]:
    """The contracts of a file's one object, each with the file's labels. Raises: ValueError for any other value."""
    if not isinstance(value, dict):
        raise ValueError(f"the file is {type_name(value)}; it must be one object with 'documents' and 'labels'")
    labels = require(value, "labels", dict, "the file")
    for document in require(value, "documents", list, "the file"):
        yield {**document, "labels": labels} if isinstance(document, dict) else document
