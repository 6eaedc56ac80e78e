"""ROUGE (Lin 2004), F-measures in [0, 1].

rouge_l               stemmed; its words are those of rouge_score in Latin script, single characters in scripts without
                      spaces, and runs of letters and digits in all others
rouge_1, rouge_n      rouge_score without stemmer, ASCII letters and digits alone: SCROLLS, InfiniteBench
rouge_l_of_sentences  ROUGE-L of LongBench, that of package rouge 1.0.1: distinct words, joined over sentences
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer, tokenizers

from data.metrics.scripts import ROUGE_WORD, fold

UNSTEMMED = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, those of Latin script stemmed."""
    assert references, (prediction, references)
    return max(rouge(prediction, reference, ("rougeL",))["rougeL"] for reference in references)


def rouge_1(prediction: str, references: Sequence[str]) -> float:
    """F-measure of common words, unstemmed, the best of the references: ROUGE-1 of SCROLLS. Not one of `scores`."""
    assert references, (prediction, references)
    scorer = rouge_scorer.RougeScorer(["rouge1"])
    return max(scorer.score(reference, prediction)["rouge1"].fmeasure for reference in references)


def rouge_n(prediction: str, references: Sequence[str], type: str) -> float:
    """Unstemmed F-measure of rouge_score, the best of the references.

    type  one of UNSTEMMED; rougeLsum takes each line of a text as a sentence
    """
    assert references, (prediction, references)
    return max(_unstemmed(prediction, reference)[type] for reference in references)


@functools.lru_cache(maxsize=64)  # callers request the types of one pair one after another
def _unstemmed(prediction: str, reference: str) -> dict[str, float]:
    found = _unstemmed_scorer().score(reference, prediction)
    return {name: found[name].fmeasure for name in UNSTEMMED}


@functools.cache
def _unstemmed_scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(UNSTEMMED))


class _Words(tokenizers.Tokenizer):
    """ROUGE's own tokens for Latin script (ASCII letters and digits, stemmed), and words of every other script."""

    def __init__(self) -> None:
        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        words = ROUGE_WORD.findall(fold(text))
        # Only words of more than 3 characters, as rouge_score.
        return [self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in words]


class _Unstripped(tokenizers.Tokenizer):
    """Everything between white space, for references without letters and digits: "+", emoji."""

    def tokenize(self, text: str) -> list[str]:
        return fold(text).split()


@functools.cache
def _scorer(types: tuple[str, ...], is_stripped: bool) -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(types), tokenizer=_Words() if is_stripped else _Unstripped())


def rouge(prediction: str, reference: str, types: tuple[str, ...]) -> dict[str, float]:
    """{type: F-measure} (Lin 2004) of words, those of Latin script stemmed.

    types  names of rouge_score: rouge1, rouge2, rougeL, ...
    A reference without letters and digits is compared as it is, word by word.
    """
    is_stripped = ROUGE_WORD.search(fold(reference)) is not None
    found = _scorer(types, is_stripped).score(reference, prediction)
    return {name: found[name].fmeasure for name in types}


# ------------------------------------------------------------------ ROUGE-L of LongBench


def rouge_l_of_sentences(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L as package rouge 1.0.1 computes it, the best of the references; 0 for an empty text.

    Sentences end at ".", words at blanks; case and punctuation count. For each reference sentence the distinct words of
    its longest common subsequences with the prediction's sentences are joined. Recall and precision divide by distinct
    words.
    """
    assert references, (prediction, references)
    return max(_sentence_rouge(_sentences(prediction), _sentences(reference)) for reference in references)


def _sentences(text: str) -> list[list[str]]:
    """The words of each sentence. A sentence of blanks has one empty word, as in the package."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _sentence_rouge(own: list[list[str]], gold: list[list[str]]) -> float:
    if not own or not gold:
        return 0.0
    joined: set[str] = set()
    for sentence in gold:
        for other in own:
            joined |= _common_words(sentence, other)
    recall, precision = (len(joined) / len({word for words in text for word in words}) for text in (gold, own))
    return 2 * precision * recall / (precision + recall + 1e-8)


def _common_words(gold: list[str], own: list[str]) -> set[str]:
    """The distinct words of the longest common subsequence that the package finds among those of equal length."""
    lengths = [[0] * (len(own) + 1) for _ in range(len(gold) + 1)]
    for i, word in enumerate(gold, 1):
        for j, other in enumerate(own, 1):
            is_equal = word == other
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if is_equal else max(lengths[i - 1][j], lengths[i][j - 1])
    words, i, j = set(), len(gold), len(own)
    while i and j:
        if gold[i - 1] == own[j - 1]:
            words.add(gold[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
