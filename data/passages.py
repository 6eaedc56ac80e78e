"""Passages of running text for reconstruction, the training data of autoencoders. Needs no labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

from breviary.contract import Example
from breviary.runtime.draws import random_below, seeded_rng, shuffled
from breviary.runtime.spelling import escape_problems, override, unescaped
from data.checks import integer_problems, raise_problems
from data.jsonl_contexts import JsonlContexts, remaining_texts


class Passages:
    """The contexts of JSONL files, cut into consecutive passages.

    train, validation, test  a file in our JSONL format, or several (null = the split does not exist); duplicate
                             contexts are used once. Documents of test are left out of train and validation, those of
                             validation out of train (data/jsonl_contexts.py); no passage crosses one
    min_words, max_words     words of a passage, uniformly random in this range; the rest of a context is dropped
    *_size                   maximum number of passages of the split, selected at random
    question                 the instruction; the answer is the passage itself. Default: GMSA's (arXiv 2505.12215).
                             Empty: none, as in ICAE (2307.06945)
    seed                     of lengths and order
    """

    def __init__(
        self,
        train: str | Sequence[str] | None,
        validation: str | Sequence[str] | None,
        test: str | Sequence[str] | None,
        min_words: int = 48,
        max_words: int = 160,
        train_size: int = 10000,
        validation_size: int = 100,
        test_size: int = 100,
        question: str = "Restate the aforementioned text.",
        seed: int = 0,
    ) -> None:
        self.texts = JsonlContexts(train, validation, test)
        self.sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        self.min_words, self.max_words, self.question, self.seed = min_words, max_words, question, seed

    def problems(self, splits: list[str]) -> list[str]:
        """An error message for each wrong argument, and for each wrong file of `splits` and of later splits."""
        problems = self.texts.problems_with_later(splits)
        for split in splits:
            problems += integer_problems(f"{split}_size", self.sizes[split], 1, None, 100)
        problems += integer_problems("min_words", self.min_words, 1, None, 48)
        problems += integer_problems("max_words", self.max_words, max(self.min_words, 1), None, 160)
        if self.question and not self.question.strip():
            problems.append(
                "dataset.question holds white space only; it must be an instruction, for example "
                f"{override('dataset.question', 'Restate the aforementioned text.')}, or empty for none "
                "(prompt.template must suit that)"
            )
        problems += escape_problems("dataset.question", self.question, unescaped(self.question))
        return problems + integer_problems("seed", self.seed, 0, None, 0)

    def examples(self, split: str) -> list[Example]:
        """The passages of `split`.

        Raises: ValueError with the messages of `problems`, or where all contexts are too short.
        """
        raise_problems(self.problems([split]))
        rng = seeded_rng("passages", self.seed, split)
        held = self.texts.held_by_later_splits(split)
        passages = [
            passage
            for example in self.texts.examples(split)
            for text in remaining_texts(example, held)
            for passage in self._cut(text, rng)
        ]
        if not passages:
            raise ValueError(
                f"dataset.{split}: no context in {self.texts.file_names(split)} has as many words as "
                f"dataset.min_words={self.min_words} (documents of later splits are left out); use longer texts, or a "
                "smaller dataset.min_words"
            )
        passages = shuffled(rng, passages)[: self.sizes[split]]
        return [Example(f"{split}-{self.seed}-{i}", text, self.question, (text,)) for i, text in enumerate(passages)]

    def _cut(self, context: str, rng) -> list[str]:
        """Consecutive passages, without surrounding white space."""
        words = [match.span() for match in re.finditer(r"\S+", context)]
        passages: list[str] = []
        at = 0
        while True:
            length = self.min_words + random_below(rng, self.max_words - self.min_words + 1)
            if at + length > len(words):
                return passages
            passages.append(context[words[at][0] : words[at + length - 1][1]])
            at += length
