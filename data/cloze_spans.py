"""Which words of a text are worth asking for: names, numbers and rare words, by rules alone.

No tagger and no model: the same text gives the same spans on every machine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# A sentence ends at a full stop, question or exclamation mark before a capital or a digit, unless an initial or one of
# the usual abbreviations stands before it, and at the end of a line.
_END = re.compile(
    r"\n+|(?<![A-Z])(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bNo)(?<!\bJr)(?<!\bvs)[.!?][\"'”’)\]]*\s+"
    r"(?=[\"'“‘(\[]?[A-Z0-9])"
)
_WORD = re.compile(r"\S+")
_CORE = re.compile(r"(?P<word>[^\W_](?:\S*?[^\W_])?)(?:['’]s)?[\W_]*$")  # a token without the punctuation around it
_SHORTEST_RARE = 5  # letters of a rare word: shorter ones are scraps and abbreviations


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a text, of the sentence [first, last) around it."""

    start: int
    end: int
    first: int
    last: int
    is_rare_word: bool  # a rare word, and neither name nor number


class Frequencies:
    """In how many texts each word stands.

    of(word)       case aside
    common(word)   whether some text has it without a capital: then a capital at a sentence's head is no name
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self._any, self._small = 0, Counter(), set()
        for text in texts:
            self.texts += 1
            words = {text[start:end] for start, end in _cores(text)}
            self._any.update({word.casefold() for word in words})
            self._small.update(word for word in words if word[0].islower())

    def of(self, word: str) -> int:
        """Texts with `word`."""
        return self._any[word.casefold()]

    def common(self, word: str) -> bool:
        """Whether `word` also stands without a capital."""
        return word.casefold() in self._small


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, the white space between them left out."""
    found, start = [], 0
    for end in [*_END.finditer(text), None]:
        last = len(text) if end is None else end.end()
        stripped = text[start:last].strip()
        if stripped:
            at = text.index(stripped, start)
            found.append((at, at + len(stripped)))
        start = last
    return found


def spans(text: str, frequencies: Frequencies, max_words: int, max_texts: float) -> list[Span]:
    """What can be asked for: runs of capitalised words and numbers, and rare words, of at most `max_words` words.

    A span stands once in its text, and its rarest word in at most `max_texts` texts.
    """
    found = []
    for first, last in sentences(text):
        words = list(_cores(text, first, last))
        rare = {start for start, end in words if frequencies.of(text[start:end]) <= max_texts}
        found += [
            Span(run[0][0], run[-1][1], first, last, False)
            for run in _runs(text, words, frequencies)
            if len(run) <= max_words and any(start in rare for start, _ in run)
        ]
        found += [
            Span(start, end, first, last, True)
            for start, end in words
            if start in rare
            and end - start >= _SHORTEST_RARE
            and text[start:end].isalpha()
            and text[start:end].islower()
        ]
    return [span for span in found if occurrences(text[span.start : span.end], text) == 1]


def _cores(text: str, first: int = 0, last: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, end) of each word without the punctuation around it, and without a possessive 's."""
    for word in _WORD.finditer(text, first, len(text) if last is None else last):
        if core := _CORE.search(word.group()):
            yield word.start() + core.start(), word.start() + core.end("word")


def _runs(text: str, words: list[tuple[int, int]], frequencies: Frequencies) -> list[list[tuple[int, int]]]:
    """Longest runs of capitalised words and numbers, broken by every punctuation mark between two words."""
    runs, run, at = [], [], 0
    for number, (start, end) in enumerate(words):
        word = text[start:end]
        marked = word[0].isupper() and not (number == 0 and frequencies.common(word)) or any(map(str.isdigit, word))
        if run and (not marked or text[at:start].strip()):
            runs, run = [*runs, run], []
        if marked:
            run.append((start, end))
        at = end
    return [*runs, run] if run else runs


def occurrences(span: str, text: str) -> int:
    """How often `span` stands in `text` as whole words, case aside."""
    if span.casefold() not in text.casefold():  # most texts, and a tenth of the time
        return 0
    return len(re.findall(rf"(?<!\w){re.escape(span)}(?!\w)", text, re.IGNORECASE))
