"""Answer metrics, each in [0, 1] and the best over the references.

Texts are compared after SQuAD's normalisation (Rajpurkar et al. 2016, arXiv 1606.05250, section 6): lower case,
no punctuation, no articles, single spaces. ROUGE-L (Lin 2004) is rouge_score's F-measure with its stemmer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from rouge_score import rouge_scorer

# Increased when any score of any answer changes, in this file or in data/restoration.py: results of another version
# are measured anew. 1: to July 2025; 2: symbols-only answers and unspaced scripts.
METRICS_VERSION = 2

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ROUGE = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and the words a, an, the; runs of white space become one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the normalised prediction equals a normalised reference, else 0."""
    assert references, (prediction, references)
    return float(normalise(prediction) in {normalise(reference) for reference in references})


def contains(prediction: str, references: Sequence[str]) -> float:
    """1 where the normalised prediction contains a normalised, non-empty reference, else 0.

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
