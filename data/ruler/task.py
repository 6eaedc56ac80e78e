"""What a task of RULER is: something that drafts an example of any number of units."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from breviary.contract import Document


@dataclass(frozen=True)
class Draft:
    """The texts of an example. Its context stands behind the task's instruction."""

    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    documents: tuple[Document, ...] = ()


class Task(Protocol):
    """A task. A unit is a word, a line or a document, whatever its text grows by."""

    @property
    def least(self) -> int:
        """Units of the shortest example."""

    @property
    def most(self) -> int | None:
        """Units of the longest example; None = no bound."""

    @property
    def step(self) -> int:
        """Units by which an example that is still too long is shortened."""

    def draft(self, rng: random.Random, units: int, index: int) -> Draft:
        """An example of `units` units: words, lines or documents.

        rng    decides everything but the length
        index  of the example among those of all splits, for tasks with a given list of questions
        """
