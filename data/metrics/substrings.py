"""Metrics of generated suites: which of the expected strings an answer holds."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")

# Labels of BABILong's tasks (arXiv 2406.10149): rooms in qa1 to qa4, people and objects in qa5.
ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
PEOPLE_AND_OBJECTS = ("bill", "fred", "jeff", "mary", "apple", "football", "milk")


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that are substrings of the answer, case ignored: RULER (arXiv 2404.06654)."""
    return sum(_found(prediction, references)) / len(references)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """1 where any reference is a substring of the answer, case ignored: the question answering of RULER."""
    return float(any(_found(prediction, references)))


def _found(prediction: str, references: Sequence[str]) -> list[bool]:
    assert references, (prediction, references)
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    return [reference.lower() in text for reference in references]


def babilong(prediction: str, references: Sequence[str], labels: Sequence[str], question: str) -> float:
    """1 where the labels in the answer, without those of the question, are exactly the reference: BABILong.

    The answer counts up to its first ".", "<context>" or "<example>".
    labels  of the task; empty = ROOMS or PEOPLE_AND_OBJECTS, whichever holds the reference
    """
    text = re.split(r"\.|<context>|<example>", prediction.lower(), maxsplit=1)[0]
    return max(_only_label(text, reference.lower().strip(), labels, question.lower()) for reference in references)


def _only_label(text: str, target: str, labels: Sequence[str], question: str) -> float:
    known = {label.lower() for label in labels} or set(ROOMS if target in ROOMS else PEOPLE_AND_OBJECTS)
    return float({label for label in known if label in text and label not in question} == {target})
