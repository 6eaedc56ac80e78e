"""Free running text around what a task hides, from any text file, in words or in sentences."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from breviary.runtime.spelling import override

BUILT_IN = "alice"
_FILES = {BUILT_IN: Path(__file__).with_name("alice.txt.gz")}
_ABBREVIATIONS = {
    "mr",
    "mrs",
    "ms",
    "dr",
    "prof",
    "st",
    "vs",
    "etc",
    "e.g",
    "i.e",
    "cf",
    "fig",
    "no",
    "vol",
    "al",
    "u.s",
}
MIN_WORDS = 1000


def haystack_problems(key: str, name: str | None) -> list[str]:
    """An error message where `name` is neither a text file of enough words nor the built-in text."""
    example = f"for example {override(f'dataset.{key}', BUILT_IN)}"
    if name is None:
        return [f"dataset.{key} is null; it must be a text file, or {BUILT_IN}, {example}"]
    if name not in _FILES and not Path(name).is_file():
        return [f"dataset.{key} is {name!r}, which is not a file; name a text file, or {BUILT_IN}, {example}"]
    try:
        words = len(Haystack(name).words)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        return [f"dataset.{key}: {name} cannot be read ({error}); it must be UTF-8 text, {example}"]
    if words < MIN_WORDS:
        return [f"dataset.{key}: {name} has {words} words; it must have {MIN_WORDS} or more, {example}"]
    return []


def haystack(name: str) -> Haystack:
    """The text of a file, read once a process for each version of the file."""
    file = _FILES.get(name, Path(name))
    return _read(name, file.stat().st_mtime_ns)


@cache
def _read(name: str, modified_ns: int) -> Haystack:
    return Haystack(name)


class Haystack:
    """A text file, plain or gzipped, or the built-in text.

    name  a file, or BUILT_IN
    words      all words, split at white space
    Raises: OSError and UnicodeDecodeError of reading the file.
    """

    def __init__(self, name: str) -> None:
        file = _FILES.get(name, Path(name))
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt", encoding="utf-8-sig") as stream:
            self.words: list[str] = stream.read().split()
        self._sentences: dict[int, list[str]] = {}

    def sentences(self, words: int | None = None) -> list[str]:
        """Sentences of the first so many words, which are repeated where used up; None = of the whole text once.

        Split by Punkt's rules (Kiss and Strunk 2006) with a fixed list of abbreviations: nothing is downloaded.
        """
        count = len(self.words) if words is None else words
        if count not in self._sentences:
            rounds = -(-count // len(self.words))
            text = " ".join((self.words * rounds)[:count])
            parameters = PunktParameters()
            parameters.abbrev_types = _ABBREVIATIONS
            self._sentences[count] = PunktSentenceTokenizer(parameters).tokenize(text)
        return self._sentences[count]
