"""Cloze questions on plain text: a sentence with a blank, whose missing words are in the context.

Reading comprehension without labels, as in span selection (Glass et al. 2020, arXiv 1909.04120) and cloze pretraining
(Dhingra et al. 2018, arXiv 1804.00720). Reconstruction trains what the slots hold; cloze questions train which slot to
attend to.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from breviary.contract import Document, Example
from breviary.runtime.draws import choose, random_below, seeded_rng, shuffled
from breviary.runtime.markup import missing_field, unknown_fields
from breviary.runtime.spelling import escape_problems, override, unescaped
from data.checks import integer_problems, raise_problems
from data.cloze_spans import DocumentFrequencies, Span, candidate_spans, count_occurrences
from data.jsonl import join_passages
from data.jsonl_contexts import JsonlContexts, remaining_documents

BLANK = "___"


@dataclass(frozen=True)
class Passage:
    """A piece of a text. `context` is the number of the first context that contains it."""

    text: str
    title: str
    context: int


class Cloze:
    """Cloze questions on the contexts of JSONL files, whose own questions and answers are ignored.

    Each passage yields one question: some words of a sentence, in which a name or number is replaced by a blank, or a
    rare word where there is neither. The context is this passage and distractors without the missing span, in random
    order. The span occurs once in the passage and not in its title. It has a word that few passages have, so that
    question and title alone do not determine it.

    train, validation, test  a file in our JSONL format, or several (null = the split does not exist). Documents of
                             test are left out of train and validation, those of validation out of train
                             (data/jsonl_contexts.py)
    passages                 of a context, including the question's
    near                     maximum number of distractors from the same context; the others are from any context
    min_words, max_words     of a passage; longer documents are cut into consecutive passages, shorter rests are dropped
    max_span                 maximum number of words of the answer
    min_window, max_window   number of words quoted on each side of the blank, random in this range; fewer where the
                             sentence ends. A sentence needs min_window words beside the answer
    rarity                   share of the split's passages that may contain the span's rarest word; at least one passage
    *_size                   maximum number of questions of the split
    question                 must hold {text}
    seed                     of spans, windows, distractors and order
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
        """An error message for each wrong argument, and for each wrong file of `splits` and of later splits."""
        problems = self.texts.problems_with_later(splits)
        for split in splits:
            problems += integer_problems(f"{split}_size", self.sizes[split], 1, None, 100)
        problems += integer_problems("passages", self.passages, 1, None, 5)
        problems += integer_problems("near", self.near, 0, None, 2)
        problems += integer_problems("min_words", self.min_words, 1, None, 40)
        problems += integer_problems("max_words", self.max_words, max(self.min_words, 1), None, 120)
        problems += integer_problems("max_span", self.max_span, 1, None, 5)
        problems += integer_problems("min_window", self.min_window, 1, None, 4)
        problems += integer_problems("max_window", self.max_window, max(self.min_window, 1), None, 12)
        if not (isinstance(self.rarity, (int, float)) and 0 <= self.rarity <= 1):
            problems.append(f"dataset.rarity is {self.rarity!r}; it must be in 0..1, for example dataset.rarity=0.002")
        example = override("dataset.question", "which words are missing: {text}")
        problems += missing_field("dataset.question", self.question, "text", example)
        problems += unknown_fields("dataset.question", self.question, "text", example)
        problems += escape_problems("dataset.question", self.question, unescaped(self.question))
        return problems + integer_problems("seed", self.seed, 0, None, 0)

    def examples(self, split: str) -> list[Example]:
        """The questions of `split`. Raises: ValueError with the messages of `problems`, or where there are none."""
        raise_problems(self.problems([split]))
        passages = shuffled(seeded_rng("cloze", self.seed, split), self._passages(split))
        frequencies = DocumentFrequencies(passage.text for passage in passages)
        of_context: dict[int, list[Passage]] = {}
        for passage in passages:
            of_context.setdefault(passage.context, []).append(passage)
        examples: list[Example] = []
        for number, passage in enumerate(passages):
            if len(examples) == self.sizes[split]:
                break
            rng = seeded_rng("cloze", self.seed, split, passage.title, passage.text)
            span = self._choose_span(passage, frequencies, rng)
            if span is None:
                continue
            distractors = self._choose_distractors(passage, span, of_context[passage.context], passages, rng)
            if distractors is not None:
                examples.append(self._example(f"{split}-{self.seed}-{number}", passage, span, distractors, rng))
        if not examples:
            raise ValueError(
                f"dataset.{split}: no question can be made of {len(passages)} passages of "
                f"{self.texts.file_names(split)} with dataset.passages={self.passages} per context; use more texts "
                "(documents of later splits are left out), fewer dataset.passages or dataset.min_words, or a larger "
                "dataset.rarity"
            )
        return examples

    # -------------------------------------------------------------- passages

    def _passages(self, split: str) -> list[Passage]:
        """Every distinct passage of `split`, in the order of the files."""
        held = self.texts.held_by_later_splits(split)
        passages: dict[str, Passage] = {}
        for number, example in enumerate(self.texts.examples(split)):
            for document in remaining_documents(example, held):
                for i, piece in enumerate(self._cut(example.context[document.start : document.end]), 1):
                    passages.setdefault(piece, Passage(piece, document.title or f"part {i}", number))
        return list(passages.values())

    def _cut(self, text: str) -> Iterator[str]:
        """Consecutive passages, without surrounding white space."""
        words = [match.span() for match in re.finditer(r"\S+", text)]
        for at in range(0, len(words), self.max_words):
            piece = words[at : at + self.max_words]
            if len(piece) >= self.min_words:
                yield text[piece[0][0] : piece[-1][1]]

    # -------------------------------------------------------------- one question

    def _choose_span(self, passage: Passage, frequencies: DocumentFrequencies, rng: random.Random) -> Span | None:
        """The answer's span; None where the passage has no candidate."""
        max_texts = max(1, self.rarity * frequencies.num_texts)
        candidates = [
            span
            for span in candidate_spans(passage.text, frequencies, self.max_span, max_texts)
            if not count_occurrences(passage.text[span.start : span.end], passage.title)
            and len("".join(_around(passage, span)).split()) >= self.min_window
        ]
        names = [span for span in candidates if not span.is_rare_word]
        return choose(rng, names or candidates) if candidates else None

    def _choose_distractors(
        self, passage: Passage, span: Span, near: list[Passage], everywhere: list[Passage], rng: random.Random
    ) -> list[Passage] | None:
        """Passages without the span; None where there are too few."""
        answer, number = passage.text[span.start : span.end], self.passages - 1
        distractors: list[Passage] = []

        def extend(candidates: Iterator[Passage], limit: int) -> None:
            for candidate in candidates:
                if len(distractors) >= limit:
                    return
                if (
                    candidate is not passage
                    and all(candidate is not other for other in distractors)
                    and not count_occurrences(answer, f"{candidate.title} {candidate.text}")
                ):
                    distractors.append(candidate)

        extend(iter(shuffled(rng, near)), min(self.near, number))
        start = random_below(rng, len(everywhere))  # `everywhere` is shuffled already
        extend((everywhere[(start + i) % len(everywhere)] for i in range(len(everywhere))), number)
        return distractors if len(distractors) == number else None

    def _example(
        self, id: str, passage: Passage, span: Span, distractors: list[Passage], rng: random.Random
    ) -> Example:
        before, after = (re.split(r"\s+", part) for part in _around(passage, span))
        # The piece next to the blank is empty or punctuation, and does not count as a word.
        left, right = (self.min_window + random_below(rng, self.max_window - self.min_window + 1) for _ in range(2))
        quoted = " ".join(before[-left - 1 :]) + BLANK + " ".join(after[: right + 1])
        pieces = shuffled(rng, [passage, *distractors])
        context, places = join_passages([{"title": piece.title, "text": piece.text} for piece in pieces])
        documents = tuple(
            Document(piece.title, *place, is_gold=piece is passage) for piece, place in zip(pieces, places)
        )
        question = self.question.replace("{text}", quoted.strip())
        return Example(id, context, question, (passage.text[span.start : span.end],), documents)


def _around(passage: Passage, span: Span) -> tuple[str, str]:
    """The span's sentence before and after the span."""
    text = passage.text
    return text[span.sentence_start : span.start], text[span.end : span.sentence_end]
