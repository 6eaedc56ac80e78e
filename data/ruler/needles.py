"""Needles in a haystack (niah_*): which value belongs to a key that is stated once in much other text."""

from __future__ import annotations

import random
from dataclasses import dataclass

from breviary.contract import Document
from breviary.runtime.draws import seeded_rng, shuffled
from data.ruler.task import Draft
from data.synthetic.haystack import Haystack
from data.synthetic.layout import Piece, insert, join_pieces
from data.synthetic.words import distinct, random_number, random_uuid, random_word, sample

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
QUESTION = "What are all the special magic {kind} for {query} mentioned in the provided text?"
PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"
DEPTHS = [round(100 * i / 39) for i in range(40)]  # per cent
DRAWS = {"words": random_word, "numbers": random_number, "uuids": random_uuid}


@dataclass(frozen=True)
class Needles:
    """Needles, in noise, in other needles or in free text.

    haystack   noise | needles | free text. Units: lines of noise, other needles, words
    keys       keys in the text; values: of each key; asked: keys that the question names
    key, value kinds of DRAWS
    """

    haystack: str | Haystack
    keys: int = 1
    values: int = 1
    asked: int = 1
    key: str = "words"
    value: str = "numbers"

    @property
    def step(self) -> int:
        """500 words, or 25 lines."""
        return 500 if isinstance(self.haystack, Haystack) else 25

    @property
    def least(self) -> int:
        """At least as many places as needles: lines, or 50 words."""
        return 50 if isinstance(self.haystack, Haystack) else self.keys * self.values

    @property
    def most(self) -> int | None:
        """No bound: free text is repeated."""
        return None

    def draft(self, rng: random.Random, units: int, index: int) -> Draft:
        """See Task. Needles stand in the same permutation in every example."""
        keys = distinct(rng, DRAWS[self.key], self.keys)
        values = [[DRAWS[self.value](rng) for _ in range(self.values)] for _ in keys]
        asked = sample(rng, range(self.keys), self.asked)
        needles = [
            Piece(self._needle(key, value), f"{key}: {value}", number in asked)
            for number, key in enumerate(keys)
            for value in values[number]
        ]
        needles = shuffled(seeded_rng("ruler needles", len(needles)), needles)
        context, documents = self._hide(rng, units, needles)
        query = _listing([keys[number] for number in asked])
        answers = tuple(value for number in asked for value in values[number])
        is_single = len(answers) == 1
        kind = self.value[:-1] if is_single else self.value
        question, prefix = (_single(text) if is_single else text for text in (QUESTION, PREFIX))
        question, prefix = (text.format(kind=kind, query=query) for text in (question, prefix))
        return Draft(context, question, prefix, answers, documents)

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.value, key=key, value=value)

    def _hide(self, rng: random.Random, units: int, needles: list[Piece]) -> tuple[str, tuple[Document, ...]]:
        if isinstance(self.haystack, Haystack):
            sentences = self.haystack.sentences(units)
            depths = sorted(sample(rng, DEPTHS, len(needles)))
            places = [len(sentences) * depth // 100 for depth in depths]
            return join_pieces(insert([Piece(text) for text in sentences], places, needles), " ")
        places = sorted(sample(rng, range(units), len(needles)))
        return join_pieces(insert(self._lines(rng, units), places, needles), "\n")

    def _lines(self, rng: random.Random, units: int) -> list[Piece]:
        if self.haystack == "noise":
            return [Piece(NOISE)] * units
        others = (self._needle(DRAWS[self.key](rng), DRAWS[self.value](rng)) for _ in range(units))
        return [Piece(text) for text in others]


def _single(text: str) -> str:
    """RULER's wording for a question about one value; it replaces every "are", also in a chat template."""
    return text.replace("are all", "is").replace("are", "is")


def _listing(names: list[str]) -> str:
    """a, b, c, and d"""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"
