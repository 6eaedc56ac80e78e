"""RULER's 13 tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data.ruler.frequencies import CommonWords, FrequentWords
from data.ruler.needles import Needles
from data.ruler.questions import DocumentQuestions, read_questions
from data.ruler.task import Task
from data.ruler.variables import VariableTracking
from data.synthetic.haystack import haystack
from data.synthetic.tokens import TokenCounter


@dataclass(frozen=True)
class Settings:
    """What a task may depend on: keys of the data set (data.ruler.suite.Ruler), and what counts tokens."""

    length: int
    template: str
    max_new_tokens: int
    seed: int
    haystack: str | None
    documents: str | None
    count: TokenCounter


@dataclass(frozen=True)
class Kind:
    """A task: how to build it, and which of the keys haystack and documents it reads."""

    build: Callable[[Settings], Task]
    reads: str | None = None


def _needles(kind: str, **settings: Any) -> Kind:
    return Kind(lambda given: Needles(kind, **settings))


def _free_text(**settings: Any) -> Kind:
    return Kind(lambda given: Needles(haystack(str(given.haystack)), **settings), "haystack")


_QUESTIONS = Kind(lambda given: DocumentQuestions(read_questions(str(given.documents))), "documents")

TASKS: dict[str, Kind] = {
    "niah_single_1": _needles("noise"),
    "niah_single_2": _free_text(),
    "niah_single_3": _free_text(value="uuids"),
    "niah_multikey_1": _free_text(keys=4),
    "niah_multikey_2": _needles("needles"),
    "niah_multikey_3": _needles("needles", key="uuids", value="uuids"),
    "niah_multivalue": _free_text(values=4),
    "niah_multiquery": _free_text(keys=4, asked=4),
    "vt": Kind(lambda given: VariableTracking(given.count, given.template, given.seed)),
    "cwe": Kind(lambda given: CommonWords(given.length, given.template)),
    "fwe": Kind(lambda given: FrequentWords(given.length, given.max_new_tokens)),
    "qa_1": _QUESTIONS,
    "qa_2": _QUESTIONS,
}
