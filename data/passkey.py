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
MIN_WORDS = 60  # opening, needle and one line of filler


class Passkey:
    """Passkey retrieval at a given length and depth.

    context_words  words of each context, accurate to half a line of filler (10 words)
    least_words    the length of each context is random in least_words..context_words; None = always context_words
    depth          place of the key: 0 = directly after the opening, 1 = at the end; None = random for each example
    digits         of the key
    *_size         examples of the split
    Example i of a split depends only on (seed, split, i) and the first three arguments.
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
        """An error message for each wrong argument; sizes are checked for `splits` only."""
        problems = integer_problems("context_words", self.context_words, MIN_WORDS, None, 1000)
        if self.least_words is not None:
            most = self.context_words if isinstance(self.context_words, int) else None
            problems += integer_problems("least_words", self.least_words, MIN_WORDS, most, MIN_WORDS)
        if self.depth is not None and not (isinstance(self.depth, (int, float)) and 0 <= self.depth <= 1):
            problems.append(
                f"dataset.depth is {self.depth!r}; it must be in 0..1 or null, for example dataset.depth=0.5"
            )
        problems += integer_problems("digits", self.digits, 1, 15, 5)
        for split in splits:
            check_split(split)
            problems += integer_problems(f"{split}_size", self.sizes[split], 1, None, 100)
        return problems + integer_problems("seed", self.seed, 0, None, 0)

    def examples(self, split: str) -> list[Example]:
        """The examples of `split`. Raises: ValueError with the messages of `problems`."""
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
