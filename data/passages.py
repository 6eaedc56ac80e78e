"""Passages of running text to be written down again: what an autoencoder is trained on. Needs no labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

from breviary.contract import Example
from breviary.runtime.draws import random_below, seeded_rng, shuffled
from data.checks import integer_problems, raise_problems
from data.jsonl_contexts import JsonlContexts


class Passages:
    """The contexts of JSONL files, cut into consecutive passages.

    train, validation, test  a file in our JSONL format, or several (null = the split does not exist); a context that
                             stands in them more than once is cut once
    min_words, max_words     words of a passage, drawn uniformly for each; what is left of a context is dropped
    *_size                   passages of the split at most, drawn out of all
    question                 what a reader is told; the passage itself is the answer (GMSA's instruction, 2505.12215)
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
        """What is wrong with the arguments and files of `splits`, one sentence each."""
        found = self.texts.problems(splits)
        for split in splits:
            found += integer_problems(f"{split}_size", self.sizes[split], 1, None, 100)
        found += integer_problems("min_words", self.min_words, 1, None, 48)
        found += integer_problems("max_words", self.max_words, max(self.min_words, 1), None, 160)
        if not self.question.strip():
            found.append(
                "dataset.question is empty; it must tell what to do, for example 'Restate the aforementioned text.'"
            )
        return found + integer_problems("seed", self.seed, 0, None, 0)

    def examples(self, split: str) -> list[Example]:
        """Passages of `split`. Raises ValueError as `problems` tells, and where no context is long enough for one."""
        raise_problems(self.problems([split]))
        rng = seeded_rng("passages", self.seed, split)
        passages = [passage for example in self.texts.examples(split) for passage in self._cut(example.context, rng)]
        if not passages:
            raise ValueError(
                f"dataset.{split}: no context in {self.texts.file_names(split)} has as many words as "
                f"dataset.min_words={self.min_words}; give longer texts, or fewer words"
            )
        passages = shuffled(rng, passages)[: self.sizes[split]]
        return [Example(f"{split}-{self.seed}-{i}", text, self.question, (text,)) for i, text in enumerate(passages)]

    def _cut(self, context: str, rng) -> list[str]:
        """Consecutive passages, each from the first letter of its first word to the last of its last."""
        words = [match.span() for match in re.finditer(r"\S+", context)]
        passages, at = [], 0
        while True:
            length = self.min_words + random_below(rng, self.max_words - self.min_words + 1)
            if at + length > len(words):
                return passages
            passages.append(context[words[at][0] : words[at + length - 1][1]])
            at += length
