"""Cloze questions on plain text: a sentence is quoted with a span blanked out, which must be found in the context.

Reading comprehension without labels, as in span selection (Glass et al. 2020, 1909.04120) and cloze pretraining (Dhingra
et al. 2018, 1804.00720): rewriting a text from its slots teaches what slots hold, this teaches which slot to look at.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from breviary.contract import Document, Example
from breviary.runtime.draws import choose, random_below, seeded_rng, shuffled
from data.checks import SPLITS, check_split, integer_problems, raise_problems
from data.cloze_spans import Frequencies, Span, occurrences, spans
from data.jsonl import join_passages
from data.jsonl_contexts import JsonlContexts

BLANK = "___"


@dataclass(frozen=True)
class Passage:
    """A piece of a text; `context` is the number of the context it was read in first."""

    text: str
    title: str
    context: int


class Cloze:
    """Cloze questions on the contexts of JSONL files, whose own questions and answers are not looked at.

    A passage gives one question: a few words of a sentence, a span of it blanked out (a name or number; a rare word where
    there is none). The context is this passage and distractors without the span, in an order drawn. The span stands once in
    the passage, not in its title, and holds a word that few passages have, so that question and title alone do not tell it.

    train, validation, test  a file in our JSONL format, or several (null = the split does not exist). A document, told by
                             its title (without titles: a context), that stands in test is left out of the two others,
                             one that stands in validation out of train
    passages                 of a context, the asked one included
    near                     distractors from the same context of the file, at most; the others are from anywhere
    min_words, max_words     of a passage; longer documents are cut into consecutive passages, shorter rests are dropped
    max_span                 words of the answer
    min_window, max_window   words quoted on each side of the blank, drawn; a sentence's end cuts them. All words of the
                             question but template and blank; min_window is asked of both sides together
    rarity                   share of the split's passages that may have the span's rarest word; one passage always may
    *_size                   questions of the split at most
    question                 what is asked; holds {text}
    seed                     of what is asked, distractors and order
    """

    def __init__(
        self,
        train: str | Sequence[str] | None,
        validation: str | Sequence[str] | None,
        test: str | Sequence[str] | None,
        passages: int = 5,
        near: int = 2,
        min_words: int = 40,
        max_words: int = 120,
        max_span: int = 5,
        min_window: int = 4,
        max_window: int = 12,
        rarity: float = 0.002,
        train_size: int = 10000,
        validation_size: int = 100,
        test_size: int = 100,
        question: str = "which words are missing: {text}",
        seed: int = 0,
    ) -> None:
        self.texts = JsonlContexts(train, validation, test)
        self.sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        self.passages, self.near, self.min_words, self.max_words = passages, near, min_words, max_words
        self.max_span, self.min_window, self.max_window, self.rarity = max_span, min_window, max_window, rarity
        self.question, self.seed = question, seed

    def problems(self, splits: list[str]) -> list[str]:
        """What is wrong with the arguments, one sentence each, and with the files of `splits` and of later splits."""
        for split in splits:
            check_split(split)
        found = self.texts.problems(
            [split for split in SPLITS if split in splits or any(split in self._later(other) for other in splits)]
        )
        for split in splits:
            found += integer_problems(f"{split}_size", self.sizes[split], 1, None, 100)
        found += integer_problems("passages", self.passages, 1, None, 5)
        found += integer_problems("near", self.near, 0, None, 2)
        found += integer_problems("min_words", self.min_words, 1, None, 40)
        found += integer_problems("max_words", self.max_words, max(self.min_words, 1), None, 120)
        found += integer_problems("max_span", self.max_span, 1, None, 5)
        found += integer_problems("min_window", self.min_window, 1, None, 4)
        found += integer_problems("max_window", self.max_window, max(self.min_window, 1), None, 12)
        if not (isinstance(self.rarity, (int, float)) and 0 <= self.rarity <= 1):
            found.append(f"dataset.rarity is {self.rarity!r}; it must be in 0..1, for example dataset.rarity=0.002")
        if "{text}" not in self.question:
            found.append(
                f"dataset.question is {self.question!r}; it must hold {{text}}, for example "
                "'which words are missing: {text}'"
            )
        return found + integer_problems("seed", self.seed, 0, None, 0)

    def examples(self, split: str) -> list[Example]:
        """Questions of `split`. Raises ValueError as `problems` tells, and where the texts give no question at all."""
        raise_problems(self.problems([split]))
        passages = shuffled(seeded_rng("cloze", self.seed, split), self._passages(split))
        frequencies = Frequencies(passage.text for passage in passages)
        of_context: dict[int, list[Passage]] = {}
        for passage in passages:
            of_context.setdefault(passage.context, []).append(passage)
        examples = []
        for number, passage in enumerate(passages):
            if len(examples) == self.sizes[split]:
                break
            rng = seeded_rng("cloze", self.seed, split, passage.title, passage.text)
            span = self._span(passage, frequencies, rng)
            distractors = span and self._distractors(passage, span, of_context[passage.context], passages, rng)
            if distractors is not None:
                examples.append(self._example(f"{split}-{self.seed}-{number}", passage, span, distractors, rng))
        if not examples:
            raise ValueError(
                f"dataset.{split}: {len(passages)} passages of {self.texts.file_names(split)} give no question with "
                f"dataset.passages={self.passages} a context; give more texts (documents of later splits are "
                "left out), fewer dataset.passages or dataset.min_words, or a larger dataset.rarity"
            )
        return examples

    # -------------------------------------------------------------- the texts

    def _later(self, split: str) -> list[str]:
        """The splits whose documents are left out of `split`."""
        return [later for later in SPLITS[SPLITS.index(split) + 1 :] if self.texts.has_split(later)]

    def _passages(self, split: str) -> list[Passage]:
        """Every distinct passage of `split`, in the files' order."""
        taken = {
            name
            for later in self._later(split)
            for example in self.texts.examples(later)
            for name, _, _ in _documents(example)
        }
        found: dict[str, Passage] = {}
        for number, example in enumerate(self.texts.examples(split)):
            for name, title, text in _documents(example):
                pieces = [] if name in taken else self._cut(text)
                for i, piece in enumerate(pieces, 1):
                    found.setdefault(piece, Passage(piece, title or f"part {i}", number))
        return list(found.values())

    def _cut(self, text: str) -> Iterator[str]:
        """Consecutive passages, each from the first letter of its first word to the last of its last."""
        words = [match.span() for match in re.finditer(r"\S+", text)]
        for at in range(0, len(words), self.max_words):
            piece = words[at : at + self.max_words]
            if len(piece) >= self.min_words:
                yield text[piece[0][0] : piece[-1][1]]

    # -------------------------------------------------------------- one question

    def _span(self, passage: Passage, frequencies: Frequencies, rng: random.Random) -> Span | None:
        """The span to ask for; None where the passage has none."""
        found = [
            span
            for span in spans(passage.text, frequencies, self.max_span, max(1, self.rarity * frequencies.texts))
            if not occurrences(passage.text[span.start : span.end], passage.title)
            and len((passage.text[span.first : span.start] + passage.text[span.end : span.last]).split())
            >= self.min_window
        ]
        better = [span for span in found if not span.is_rare_word] or found
        return choose(rng, better) if better else None

    def _distractors(
        self, passage: Passage, span: Span, near: list[Passage], everywhere: list[Passage], rng: random.Random
    ) -> list[Passage] | None:
        """Passages without the span; None where there are too few."""
        answer, wanted, found = passage.text[span.start : span.end], self.passages - 1, []

        def add(candidates: Iterator[Passage], most: int) -> None:
            for candidate in candidates:
                if len(found) >= most:
                    return
                if (
                    candidate is not passage
                    and all(candidate is not other for other in found)
                    and not occurrences(answer, f"{candidate.title} {candidate.text}")
                ):
                    found.append(candidate)

        add(iter(shuffled(rng, near)), min(self.near, wanted))
        start = random_below(rng, len(everywhere))  # in random order already
        add((everywhere[(start + i) % len(everywhere)] for i in range(len(everywhere))), wanted)
        return found if len(found) == wanted else None

    def _example(
        self, id: str, passage: Passage, span: Span, distractors: list[Passage], rng: random.Random
    ) -> Example:
        before, after = (
            re.split(r"\s+", passage.text[a:b]) for a, b in ((span.first, span.start), (span.end, span.last))
        )
        # The nearest piece is what touches the blank: nothing, or an opening bracket, a comma; no word of its own.
        left, right = (self.min_window + random_below(rng, self.max_window - self.min_window + 1) for _ in range(2))
        quoted = " ".join(before[-left - 1 :]) + BLANK + " ".join(after[: right + 1])
        pieces = shuffled(rng, [passage, *distractors])
        context, places = join_passages([{"title": piece.title, "text": piece.text} for piece in pieces])
        documents = tuple(
            Document(piece.title, *place, is_gold=piece is passage) for piece, place in zip(pieces, places)
        )
        question = self.question.replace("{text}", quoted.strip())
        return Example(id, context, question, (passage.text[span.start : span.end],), documents)


def _documents(example: Example) -> list[tuple[str, str, str]]:
    """(what tells the document, its title, its text) of each document of a context, or of the context itself."""
    if not example.documents:
        return [(example.context, "", example.context)]
    return [
        (document.title, document.title, example.context[document.start : document.end])
        for document in example.documents
    ]
