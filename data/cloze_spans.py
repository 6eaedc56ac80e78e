"""Candidate answers of cloze questions: names, numbers and rare words, selected by rules.

No tagger and no model: the same text yields the same spans on every machine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# A sentence ends at a line break, or at a full stop, question or exclamation mark before a capital or a digit, except
# after an initial or one of the usual abbreviations.
_SENTENCE_END = re.compile(
    r"\n+|(?<![A-Z])(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bNo)(?<!\bJr)(?<!\bvs)[.!?][\"'”’)\]]*\s+"
    r"(?=[\"'“‘(\[]?[A-Z0-9])"
)
_WORD = re.compile(r"\S+")
# A word without the punctuation around it and without a possessive 's.
_CORE = re.compile(r"(?P<word>[^\W_](?:\S*?[^\W_])?)(?:['’]s)?[\W_]*$")
_MIN_RARE_LETTERS = 5  # shorter rare words are fragments and abbreviations


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a text, in the sentence [sentence_start, sentence_end)."""

    start: int
    end: int
    sentence_start: int
    sentence_end: int
    is_rare_word: bool  # a rare word that is neither name nor number


class DocumentFrequencies:
    """Number of texts that contain each word, ignoring case.

    num_texts  number of texts
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.num_texts = 0
        self._counts: Counter[str] = Counter()
        self._lower_case: set[str] = set()
        for text in texts:
            self.num_texts += 1
            words = {text[start:end] for start, end in _words(text)}
            self._counts.update({word.casefold() for word in words})
            self._lower_case.update(word for word in words if word[0].islower())

    def count(self, word: str) -> int:
        """Number of texts that contain `word`."""
        return self._counts[word.casefold()]

    def occurs_in_lower_case(self, word: str) -> bool:
        """Whether a text contains `word` without a capital: then it is no name where it starts a sentence."""
        return word.casefold() in self._lower_case


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, without surrounding white space."""
    spans, start = [], 0
    for end in [*_SENTENCE_END.finditer(text), None]:
        last = len(text) if end is None else end.end()
        stripped = text[start:last].strip()
        if stripped:
            at = text.index(stripped, start)
            spans.append((at, at + len(stripped)))
        start = last
    return spans


def candidate_spans(text: str, frequencies: DocumentFrequencies, max_words: int, max_texts: float) -> list[Span]:
    """Runs of at most `max_words` capitalised words and numbers, and rare words.

    A span occurs once in its text, and its rarest word in at most `max_texts` texts.
    """
    candidates = []
    for first, last in sentence_spans(text):
        words = list(_words(text, first, last))
        rare = {start for start, end in words if frequencies.count(text[start:end]) <= max_texts}
        candidates += [
            Span(run[0][0], run[-1][1], first, last, False)
            for run in _name_runs(text, words, frequencies)
            if len(run) <= max_words and any(start in rare for start, _ in run)
        ]
        candidates += [
            Span(start, end, first, last, True)
            for start, end in words
            if start in rare
            and end - start >= _MIN_RARE_LETTERS
            and text[start:end].isalpha()
            and text[start:end].islower()
        ]
    return [span for span in candidates if count_occurrences(text[span.start : span.end], text) == 1]


def _words(text: str, first: int = 0, last: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, end) of each word without the punctuation around it, and without a possessive 's."""
    for word in _WORD.finditer(text, first, len(text) if last is None else last):
        if core := _CORE.search(word.group()):
            yield word.start() + core.start(), word.start() + core.end("word")


def _name_runs(
    text: str, words: list[tuple[int, int]], frequencies: DocumentFrequencies
) -> list[list[tuple[int, int]]]:
    """Longest runs of capitalised words and numbers without a punctuation mark between two words."""
    runs: list[list[tuple[int, int]]] = []
    run: list[tuple[int, int]] = []
    at = 0
    for number, (start, end) in enumerate(words):
        word = text[start:end]
        is_name = word[0].isupper() and not (number == 0 and frequencies.occurs_in_lower_case(word))
        is_marked = is_name or any(map(str.isdigit, word))
        if run and (not is_marked or text[at:start].strip()):
            runs, run = [*runs, run], []
        if is_marked:
            run.append((start, end))
        at = end
    return [*runs, run] if run else runs


def count_occurrences(span: str, text: str) -> int:
    """Number of times that `text` contains `span` as whole words, ignoring case."""
    if span.casefold() not in text.casefold():  # true for most texts, and ten times faster than the search below
        return 0
    return len(re.findall(rf"(?<!\w){re.escape(span)}(?!\w)", text, re.IGNORECASE))
