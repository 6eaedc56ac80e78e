"""Queries on meetings (QMSum) and statements on contracts (ContractNLI)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data.converters.fields import Converted, Skipped, converter, example, identifier, kind_of, need, need_each

NOISE = re.compile(r"\{[a-z]+\}")  # {vocalsound}, {disfmarker}, {gap}, ...
CHOICES = {"Entailment": "Entailment", "Contradiction": "Contradiction", "NotMentioned": "Not mentioned"}


@converter
def qmsum(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """QMSum (arXiv 2104.05938): one meeting, its general (g) and specific (s) queries; marks of noise are taken out.

    {"meeting_transcripts": [{"speaker": str, "content": str}, ...], "general_query_list": [{"query": str,
     "answer": str}, ...], "specific_query_list": as that one}; "meeting", its name, where the file's name says it.
    """
    name = identifier(row, ("meeting",), f"qmsum-{number}")
    turns = []
    for place, turn in enumerate(need(row, "meeting_transcripts", list), 1):
        of = f"turn {place}"
        words = NOISE.sub(" ", need(turn, "content", str, of)).split()
        turns.append(f"{need(turn, 'speaker', str, of)}: {' '.join(words)}")
    context = "\n".join(turns)
    for letter, field in (("g", "general_query_list"), ("s", "specific_query_list")):
        for place, query in enumerate(need(row, field, list)):
            of = f"query {place + 1} in {field!r}"
            yield example(
                f"{name}-{letter}{place}", context, need(query, "query", str, of), [need(query, "answer", str, of)]
            )


@converter
def contract_nli(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """ContractNLI (arXiv 2110.01799): one contract and its statements; the answer is one of CHOICES' values.

    {"id": int, "text": str, "annotation_sets": [{"annotations": {label: {"choice": str}}}],
     "labels": {label: {"hypothesis": str}}}; the labels are the whole file's.
    """
    name, context = identifier(row, ("id",), f"contract-{number}"), need(row, "text", str)
    labels = need(row, "labels", dict)
    sets = need_each(row, "annotation_sets", dict)
    if not sets:
        yield Skipped("no annotations")
        return
    for label, annotation in need(sets[0], "annotations", dict, "the first annotation set").items():
        choice = need(annotation, "choice", str, f"the annotation {label!r}")
        if choice not in CHOICES:
            raise ValueError(f"'choice' of the annotation {label!r} is {choice!r}; allowed: {', '.join(CHOICES)}")
        if label not in labels:
            raise ValueError(f"the annotation {label!r} is none of the file's 'labels' ({', '.join(labels) or 'none'})")
        hypothesis = need(labels[label], "hypothesis", str, f"the label {label!r}")
        yield example(f"{name}-{label}", context, hypothesis, [CHOICES[choice]])


def contract_nli_rows(value: Any) -> Iterator[Any]:
    """The contracts of a file's one object, each with the file's labels. Raises ValueError for another value."""
    if not isinstance(value, dict):
        raise ValueError(f"the file is {kind_of(value)}; it must be one object with 'documents' and 'labels'")
    labels = need(value, "labels", dict, "the file")
    for document in need(value, "documents", list, "the file"):
        yield {**document, "labels": labels} if isinstance(document, dict) else document
