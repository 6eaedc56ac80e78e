"""Answer metrics, each in [0, 1] and the best over the references; one implementation for loops and for `evaluate`.

Texts are compared after SQuAD's normalisation (Rajpurkar et al. 2016, arXiv 1606.05250, section 6): lower case,
no punctuation, no articles, single spaces. ROUGE-L (Lin 2004) is rouge_score's F-measure with its stemmer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import datasets
import evaluate
from rouge_score import rouge_scorer

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ROUGE = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def normalise(text: str) -> str:
    """Lower case, ASCII punctuation and the words a, an, the removed, runs of white space as one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the normalised prediction equals a normalised reference, else 0."""
    assert references, (prediction, references)
    return float(normalise(prediction) in {normalise(reference) for reference in references})


def contains(prediction: str, references: Sequence[str]) -> float:
    """1 where a normalised, non-empty reference stands in the normalised prediction, else 0.

    The accuracy of lost-in-the-middle (Liu et al. 2023, arXiv 2307.03172, section 2.1).
    """
    assert references, (prediction, references)
    golds = [normalise(reference) for reference in references]
    text = normalise(prediction)
    return float(any(gold and gold in text for gold in golds))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, words counted with repetition; 1 where both texts are empty."""
    assert references, (prediction, references)
    return max(_f1(normalise(prediction).split(), normalise(reference).split()) for reference in references)


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold))


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of stemmed words; 0 where a text has no Latin letter or digit."""
    assert references, (prediction, references)
    return max(_ROUGE.score(reference, prediction)["rougeL"].fmeasure for reference in references)


def scores(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Every metric of one answer: em, em_contains, f1, rouge_l, each in [0, 1]."""
    return {
        "em": exact_match(prediction, references),
        "em_contains": contains(prediction, references),
        "f1": token_f1(prediction, references),
        "rouge_l": rouge_l(prediction, references),
    }


class AnswerMetric(evaluate.Metric):
    """An `evaluate` metric whose value is the mean of one of the functions above. Needs no hub and no network."""

    key: str
    score: Callable[[str, Sequence[str]], float]

    def __init__(self, **kwargs) -> None:
        # The examples already lie in memory: without this `evaluate` writes them to a cache file first.
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=type(self).score.__doc__,
            citation="",
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        values = [type(self).score(prediction, golds) for prediction, golds in zip(predictions, references)]
        return {self.key: sum(values) / len(values)}


class ExactMatch(AnswerMetric):
    """Mean of `exact_match`."""

    key, score = "em", staticmethod(exact_match)


class Contains(AnswerMetric):
    """Mean of `contains`."""

    key, score = "em_contains", staticmethod(contains)


class TokenF1(AnswerMetric):
    """Mean of `token_f1`."""

    key, score = "f1", staticmethod(token_f1)


class RougeL(AnswerMetric):
    """Mean of `rouge_l`."""

    key, score = "rouge_l", staticmethod(rouge_l)
