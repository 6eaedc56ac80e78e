"""BM25 (Robertson and Zaragoza 2009) over the units of one context: what a practitioner tries first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import bm25s
import numpy as np
import regex
import torch
from torch import Tensor

from breviary.selection.relevance import Candidates, Relevance

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every index that it builds

# Scripts without spaces between words: each character is a word, as in data/metrics.
_SCRIPTS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORDS = regex.compile(rf"(?V1)[{_SCRIPTS}]|[\w--[{_SCRIPTS}]]+")


class BM25(Relevance):
    """Lexical match of each unit with the question; the statistics of words are those of this context.

    score = sum over the question's words of ln(1 + (N - n + .5) / (n + .5)) f (k1 + 1) / (f + k1 (1 - b + b l / m))
    with f occurrences of the word in the unit, n units that have it, N units, l words of the unit, m of a mean unit.
    Words are lower-cased.
    k1  saturation of repeated words
    b   how far long units are discounted, 0 to 1
    Without a common word all scores are 0, which keeps the beginning of the context. Costs milliseconds on the host.
    """

    def __init__(self, k1: float = 1.5, b: float = 0.75):
        super().__init__()
        self.k1, self.b = k1, b

    def scores(self, candidates: Candidates) -> Tensor:
        """(B, U) float32."""
        rows = [
            bm25_scores([words(text) for text in texts], words(question), self.k1, self.b)
            for texts, question in zip(candidates.texts(), candidates.questions())
        ]
        scores = torch.zeros(len(rows), candidates.count)
        for row, values in zip(scores, rows):
            row[: len(values)] = torch.from_numpy(values)
        return scores.to(candidates.ids.device)

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As Relevance.problems."""
        problems = []
        if settings["k1"] < 0:
            problems.append(f"compressor.relevance.k1={settings['k1']}: must be 0 or more, e.g. 1.5")
        if not 0 <= settings["b"] <= 1:
            problems.append(f"compressor.relevance.b={settings['b']}: must be in 0..1, e.g. 0.75")
        return problems


def words(text: str) -> list[str]:
    """The lower-cased words of a text."""
    return _WORDS.findall(text.lower())


def bm25_scores(units: Sequence[list[str]], question: list[str], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Score of each unit, given as words, for the question's words: (U,) float32."""
    vocabulary = {word for unit in units for word in unit}
    known = [word for word in question if word in vocabulary]
    if not known:
        return np.zeros(len(units), np.float32)
    ranker = bm25s.BM25(k1=k1, b=b, method="lucene")
    ranker.index(list(units), show_progress=False)
    return ranker.get_scores(known) * np.float32(k1 + 1)  # Lucene leaves out this constant factor
