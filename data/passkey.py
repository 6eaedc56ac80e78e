"""Passkey retrieval: a number hidden in repeated filler (Mohtashami and Jaggi 2023, arXiv 2305.16300, section 4.2)."""

from __future__ import annotations

from breviary.contract import Document, Example
from breviary.runtime.draws import random_below, seeded_rng
from data.checks import check_split, integer_problems, raise_problems

OPENING = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key?"
FEWEST_WORDS = 60  # opening, needle and one line of filler


class Passkey:
    """Passkey retrieval at a chosen length and depth.

    context_words is reached to within half a line of filler (10 words). least_words draws each example's length between it
    and context_words; None: all have context_words. depth 0 puts the key right after the opening, 1 at the end; None draws
    it uniformly for each example. Example i of a split depends on (seed, split, i) and the shape of the context only.
    """

    def __init__(
        self,
        context_words: int = 1000,
        least_words: int | None = None,
        depth: float | None = None,
        digits: int = 5,
        train_size: int = 1000,
        validation_size: int = 100,
        test_size: int = 100,
        seed: int = 0,
    ) -> None:
        self.context_words, self.least_words = context_words, least_words
        self.depth = depth
        self.digits = digits
        self.sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        self.seed = seed

    def problems(self, splits: list[str]) -> list[str]:
        """What is wrong with the arguments, one sentence each; only the sizes of `splits` are looked at."""
        found = integer_problems("context_words", self.context_words, FEWEST_WORDS, None, 1000)
        if self.least_words is not None:
            most = self.context_words if isinstance(self.context_words, int) else None
            found += integer_problems("least_words", self.least_words, FEWEST_WORDS, most, FEWEST_WORDS)
        if self.depth is not None and not (isinstance(self.depth, (int, float)) and 0 <= self.depth <= 1):
            found.append(f"dataset.depth is {self.depth!r}; it must be in 0..1 or null, for example dataset.depth=0.5")
        found += integer_problems("digits", self.digits, 1, 15, 5)
        for split in splits:
            check_split(split)
            found += integer_problems(f"{split}_size", self.sizes[split], 1, None, 100)
        return found + integer_problems("seed", self.seed, 0, None, 0)

    def examples(self, split: str) -> list[Example]:
        """Every example of `split`. Raises ValueError as `problems` tells."""
        raise_problems(self.problems([split]))
        return [self._example(split, index) for index in range(self.sizes[split])]

    def _example(self, split: str, index: int) -> Example:
        rng = seeded_rng("passkey", self.seed, split, index)
        lowest = 10 ** (self.digits - 1)
        key = str(lowest + random_below(rng, 9 * lowest))
        needle = NEEDLE.format(key=key)
        fixed_words = len(OPENING.split()) + len(needle.split())
        words = self.context_words
        if self.least_words is not None:
            words = self.least_words + random_below(rng, self.context_words - self.least_words + 1)
        lines = max(1, round((words - fixed_words) / len(FILLER.split())))
        depth = rng.random() if self.depth is None else self.depth
        before = min(int(depth * (lines + 1)), lines)  # lines + 1 places, equally likely
        head = "\n".join([OPENING, *[FILLER] * before]) + "\n"
        context = head + "\n".join([needle, *[FILLER] * (lines - before)])
        document = Document("pass key", len(head), len(head) + len(needle), is_gold=True)
        return Example(f"{split}-{self.seed}-{index}", context, QUESTION, (key,), (document,))
