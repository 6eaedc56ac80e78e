"""Frequencies: the most common words of a numbered list (cwe), the most frequent of coded words (fwe)."""

from __future__ import annotations

import math
import random
import string

from breviary.runtime.draws import seeded_rng, shuffled
from data.ruler.task import Draft
from data.synthetic.words import distinct, random_letters, sample, words_of

CWE_INSTRUCTION = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
CWE_QUESTION = "What are the 10 most common words in the above list?"
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
COMMON = 10
SHORT = 4096  # lists below this length repeat their words less often

FWE_QUESTION = (
    "Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared words "
    "in the above coded text?"
)
FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
CODED_LETTERS, NOISE = 6, "..."


class CommonWords:
    """cwe: ten words occur often, all others seldom. Units: distinct words.

    length    of the examples in tokens; decides how often words occur
    template  text between context and answer prefix
    """

    least: int = COMMON + 1
    step: int = 10

    def __init__(self, length: int, template: str) -> None:
        self.template = template
        is_short = length < SHORT
        self.repeats = (6, 1) if is_short else (30, 3)  # of common and other words
        self.example = (20, 3, 1) if is_short else (40, 10, 3)  # distinct words of the worked example, and its repeats
        self.words = words_of("noun", "adjective", "verb")
        self.most: int | None = len(self.words)

    def draft(self, rng: random.Random, units: int, index: int) -> Draft:
        """See Task. The list follows a worked example; its order is the same permutation in every example."""
        count, *repeats = self.example
        common, text = self._listing(sample(rng, self.words, count), *repeats)
        worked = CWE_INSTRUCTION + text + self.template.replace("{question}", CWE_QUESTION) + CWE_PREFIX
        worked += _numbered(common) + "\n"
        answers, text = self._listing(sample(rng, self.words, units), *self.repeats)
        return Draft(worked + CWE_INSTRUCTION + text, CWE_QUESTION, CWE_PREFIX, tuple(answers))

    def _listing(self, words: list[str], common: int, uncommon: int) -> tuple[list[str], str]:
        """The common words, and the numbered list."""
        occurrences = words[:COMMON] * common + words[COMMON:] * uncommon
        return words[:COMMON], _numbered(shuffled(seeded_rng("ruler cwe", len(occurrences)), occurrences))


class FrequentWords:
    """fwe: coded words whose frequencies follow Zipf's law with exponent 2. Units: L//32 drawn words each.

    length          of the examples in tokens, answer included
    max_new_tokens  of the answer
    """

    least: int = 1
    most: int | None = None
    step: int = 1

    def __init__(self, length: int, max_new_tokens: int) -> None:
        self.vocabulary = max((length - max_new_tokens) // 50, 5)
        self.unit = max(length // 32, 1)

    def draft(self, rng: random.Random, units: int, index: int) -> Draft:
        """See Task. The most frequent word is replaced by dots; the answer is ranks 2 to 4."""
        words = distinct(rng, lambda rng: random_letters(rng, CODED_LETTERS, string.ascii_lowercase), self.vocabulary)
        words[0] = NOISE
        counts = occurrences(units * self.unit, self.vocabulary)
        text = [word for word, count in zip(words, counts) for _ in range(count)]
        context = " ".join(shuffled(seeded_rng("ruler fwe", len(text)), text))
        return Draft(context, FWE_QUESTION, FWE_PREFIX, tuple(words[1:4]))


def occurrences(total: int, ranks: int) -> list[int]:
    """int(total k^-2 / zeta(2)) for rank k = 1 .. ranks."""
    zeta = math.pi**2 / 6
    return [int(total / (rank * rank * zeta)) for rank in range(1, ranks + 1)]


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
