"""Exact match, containment and F1 of words, each in [0, 1] and the best over the references.

A prediction and a reference are compared by one of five rules, which the reference's text chooses:

squad       SQuAD's normalisation (Rajpurkar et al. 2016, arXiv 1606.05250, section 6): lower case, no ASCII
            punctuation, no articles, single spaces
unicode     a letter or digit of another script than Latin, or East Asian punctuation, in either text: also without
            Unicode punctuation; full-width and half-width forms become ordinary ones
characters  a script without spaces between words (Chinese, Japanese, Thai, ...): as `unicode`, each character is a
            word, articles stay and white space does not count, as for the Chinese tasks of LongBench (Bai et al.
            2023, arXiv 2308.14508), whose words are a segmenter's
articles    the rules above leave nothing of the reference ("A", "The"): articles stay
unstripped  nor does that ("+", "!"): lower case and single spaces alone
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data.metrics.scripts import fold, has_other_script, has_unspaced_script, normalise, separate

RULES = ("squad", "unicode", "characters", "articles", "unstripped")


@dataclass(frozen=True)
class _Pair:
    """Words of a prediction and a reference under one rule."""

    rule: str
    prediction: list[str]
    reference: list[str]

    def texts(self) -> tuple[str, str]:
        """Both texts, single-spaced; without any space under the rule `characters`."""
        space = "" if self.rule == "characters" else " "
        return space.join(self.prediction), space.join(self.reference)


def _compare(prediction: str, reference: str) -> _Pair:
    """Both texts under the rule that the reference needs."""
    unicode = has_other_script(prediction) or has_other_script(reference)
    characters = has_unspaced_script(reference)
    first = "characters" if characters else "unicode" if unicode else "squad"
    for rule in (first, "articles", "unstripped"):
        if rule == "unstripped":
            texts = [fold(text) for text in (prediction, reference)]
        else:
            articles = characters or rule == "articles"
            texts = [normalise(text, articles, unicode) for text in (prediction, reference)]
        if texts[1].strip():
            break
    own, gold = ((separate(text) if unicode else text).split() for text in texts)
    return _Pair(rule, own, gold)


def rules(prediction: str, references: Sequence[str]) -> list[str]:
    """The distinct rules by which a prediction is compared with its references, sorted."""
    return sorted({_compare(prediction, reference).rule for reference in references})


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the normalised prediction equals a normalised reference, else 0."""
    assert references, (prediction, references)
    texts = [_compare(prediction, reference).texts() for reference in references]
    return float(any(own == gold for own, gold in texts))


def contains(prediction: str, references: Sequence[str]) -> float:
    """1 where the normalised prediction contains a normalised, non-empty reference, else 0.

    The accuracy of lost-in-the-middle (Liu et al. 2023, arXiv 2307.03172, section 2.1). References of articles alone
    must occur as words, all others as characters.
    """
    assert references, (prediction, references)
    return float(any(_contains(_compare(prediction, reference)) for reference in references))


def _contains(pair: _Pair) -> bool:
    own, gold = pair.texts()
    if pair.rule == "articles":  # else "A" would be in "banana"
        return f" {gold} " in f" {own} "
    return bool(gold) and gold in own


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, words counted with repetition; 1 where both texts are empty."""
    assert references, (prediction, references)
    pairs = [_compare(prediction, reference) for reference in references]
    return max(f1_of_words(pair.prediction, pair.reference) for pair in pairs)


def f1_of_words(predicted: list[str], gold: list[str]) -> float:
    """F1 of two lists of words, counted with repetition; 1 where both are empty."""
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold))
