"""Words of texts in any script, as metrics count them.

Latin script: runs of letters and digits, as in ROUGE's own tokenizer. Scripts written without spaces (Chinese,
Japanese, Thai, ...): each character, with its combining marks, is a word. Other scripts: runs of letters and digits.
Nothing here changes a text in Latin script.
"""

from __future__ import annotations

import functools
import unicodedata

import regex
from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer, tokenizers

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
_PUNCTUATION = regex.compile(r"\p{P}")
_ROUGE_WORD = regex.compile(rf"(?V1)[a-z0-9]+|{_UNSPACED}\p{{M}}*|(?:[{_OTHER}--{_UNSPACED}]\p{{M}}*)+")


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
    return _PUNCTUATION.sub("", text)


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
