"""Words and normalisation of texts in any script; Latin texts stay as they are."""

from __future__ import annotations

import re
import string
import unicodedata

import regex

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
ROUGE_WORD = regex.compile(rf"(?V1)[a-z0-9]+|{_UNSPACED}\p{{M}}*|(?:[{_OTHER}--{_UNSPACED}]\p{{M}}*)+")


def normalise(text: str, articles: bool = False, unicode: bool = False) -> str:
    """Lower case, without ASCII punctuation; runs of white space become one space.

    articles  False removes the words a, an, the
    unicode   True removes Unicode punctuation as well
    """
    text = fold(text)
    text = (without_punctuation(text) if unicode else text).translate(_PUNCTUATION)
    return " ".join((text if articles else _ARTICLES.sub(" ", text)).split())


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
