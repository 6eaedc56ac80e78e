"""Answer metrics, each in [0, 1] and the best over the references.

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

ROUGE (Lin 2004) is rouge_score's F-measure with its stemmer. Its words are those of rouge_score in Latin script, single
characters in scripts without spaces, and runs of letters and digits in all others.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex
from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer, tokenizers

# Increased when any score of any answer changes, in this file or in data/restoration.py: results of another version
# are measured anew. 1: squad alone, for every text; 2: the rules above.
METRICS_VERSION = 2

RULES = ("squad", "unicode", "characters", "articles", "unstripped")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

# Letters, marks and numbers of all scripts but Latin. Arabic digits belong to several scripts, so Unicode files them
# under Common, as signs that Latin texts use as well (micro sign, mathematical letters).
_OTHER = r"[[[\p{L}\p{M}\p{N}]--[\p{Latin}\p{Common}\p{Inherited}]]\u0660-\u0669\u06f0-\u06f9]"
_WIDE = r"[\u3000-\u30ff\u3200-\u33ff\uff00-\uffef]"  # East Asian punctuation, full-width and half-width forms
_UNSPACED = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
    r"\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}\u30fc]"
)
_FOREIGN = regex.compile(rf"(?V1)(?:[{_OTHER}{_WIDE}]\p{{M}}*)+")
_CHARACTER = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*")
_UNICODE_PUNCTUATION = regex.compile(r"\p{P}")
_ROUGE_WORD = regex.compile(rf"(?V1)[a-z0-9]+|{_UNSPACED}\p{{M}}*|(?:[{_OTHER}--{_UNSPACED}]\p{{M}}*)+")


def normalise(text: str, articles: bool = False, unicode: bool = False) -> str:
    """Lower case, without ASCII punctuation; runs of white space become one space.

    articles  False removes the words a, an, the
    unicode   True removes Unicode punctuation as well
    """
    text = fold(text)
    text = (without_punctuation(text) if unicode else text).translate(_PUNCTUATION)
    return " ".join((text if articles else _ARTICLES.sub(" ", text)).split())


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
    return max(_f1(pair.prediction, pair.reference) for pair in pairs)


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold))


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, those of Latin script stemmed."""
    assert references, (prediction, references)
    return max(rouge(prediction, reference, ("rougeL",))["rougeL"] for reference in references)


def rouge_1(prediction: str, references: Sequence[str]) -> float:
    """F-measure of common words, unstemmed, the best of the references: ROUGE-1 of SCROLLS. Not one of `scores`."""
    assert references, (prediction, references)
    scorer = rouge_scorer.RougeScorer(["rouge1"])
    return max(scorer.score(reference, prediction)["rouge1"].fmeasure for reference in references)


def scores(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Every metric of one answer: em, em_contains, f1, rouge_l, each in [0, 1]."""
    return {
        "em": exact_match(prediction, references),
        "em_contains": contains(prediction, references),
        "f1": token_f1(prediction, references),
        "rouge_l": rouge_l(prediction, references),
    }


# ------------------------------------------------------------------ words of any script; Latin texts stay as they are


def has_other_script(text: str) -> bool:
    """Whether a text has a letter or digit of another script than Latin, or East Asian punctuation."""
    return _FOREIGN.search(text) is not None


def has_unspaced_script(text: str) -> bool:
    """Whether a text has a character of a script that is written without spaces between words."""
    return _CHARACTER.search(text) is not None


def fold(text: str) -> str:
    """Lower case. Full-width and half-width forms and composed characters become their common form (NFKC).

    Latin letters and their accents are only lower-cased.
    """
    return _FOREIGN.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text).lower()


def without_punctuation(text: str) -> str:
    """A text without the punctuation of any script (Unicode's categories P)."""
    return _UNICODE_PUNCTUATION.sub("", text)


def separate(text: str) -> str:
    """A text with spaces around each character of a script that is written without spaces."""
    return _CHARACTER.sub(r" \g<0> ", text)


class _Words(tokenizers.Tokenizer):
    """ROUGE's own tokens for Latin script (ASCII letters and digits, stemmed), and words of every other script."""

    def __init__(self) -> None:
        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        words = _ROUGE_WORD.findall(fold(text))
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
    is_stripped = _ROUGE_WORD.search(fold(reference)) is not None
    found = _scorer(types, is_stripped).score(reference, prediction)
    return {name: found[name].fmeasure for name in types}
