"""Metrics of LongBench (arXiv 2308.14508), each in [0, 1]: classes, counts, retrieval, code, Chinese texts.

They compute what the suite's own code does, so that numbers can be put beside published ones.
"""

from __future__ import annotations

import difflib
import functools
import re
import string
from collections.abc import Sequence
from typing import Any

from data.metrics.answers import f1_of_words
from data.metrics.rouge_scores import rouge_l_of_sentences

_NUMBER = re.compile(r"\d+")
# ASCII punctuation, and that which the Chinese tasks of LongBench and InfiniteBench remove.
_PUNCTUATION = frozenset(
    string.punctuation
    + "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    + "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def classification(prediction: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """1 / number of classes that the answer names, where the reference is one of them; else 0.

    Classes that are a proper part of the reference do not count. As in the suite, a class right behind one that is
    dropped is not looked at.
    """
    return max(_class_share(prediction, reference, classes) for reference in references)


def _class_share(prediction: str, reference: str, classes: Sequence[str]) -> float:
    named = [name for name in classes if name in prediction]
    place = 0
    while place < len(named):  # a removal moves the next class to this place, which is then passed
        if named[place] in reference and named[place] != reference:
            named.pop(place)
        place += 1
    return 1 / len(named) if reference in named else 0.0


def number_share(prediction: str, references: Sequence[str]) -> float:
    """Share of the answer's numbers that equal the reference's number: counting, and retrieval of paragraph N.

    Raises: ValueError for a reference without a number.
    """
    return max(_number_share(prediction, reference) for reference in references)


def _number_share(prediction: str, reference: str) -> float:
    gold = _NUMBER.search(reference)
    if gold is None:
        raise ValueError(f"the reference {reference!r} has no number, which metrics count and retrieval need")
    numbers = _NUMBER.findall(prediction)
    return numbers.count(gold[0]) / len(numbers) if numbers else 0.0


def edit_similarity(prediction: str, references: Sequence[str]) -> float:
    """Similarity of the first line of code to the reference, in whole percent as the suite rounds: difflib's ratio.

    The first line without "`", "#" and "//" counts.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((one for one in lines if not any(mark in one for mark in ("`", "#", "//"))), "")
    return max(round(100 * difflib.SequenceMatcher(None, line, gold).ratio()) / 100 for gold in references)


# ------------------------------------------------------------------ Chinese


@functools.cache
def segmenter() -> Any:
    """The module jieba. Raises: ValueError where it is not installed."""
    try:
        import jieba
    except ImportError as error:
        raise ValueError(
            "metrics zh_f1 and zh_rougeL need the package jieba, which splits Chinese texts into words; install it, "
            'e.g. python -m pip install "jieba==0.42.1", or name zh_f1_characters, which needs none'
        ) from error
    jieba.setLogLevel("WARNING")
    return jieba


def zh_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 of jieba's words, lower case, without punctuation."""
    own = _chinese_words(prediction)
    return max(f1_of_words(own, _chinese_words(reference)) for reference in references)


def _chinese_words(text: str) -> list[str]:
    words = (_plain(word) for word in segmenter().lcut(text))
    return [word for word in words if word]


def zh_f1_characters(prediction: str, references: Sequence[str]) -> float:
    """F1 of characters, lower case, without punctuation and white space: InfiniteBench (arXiv 2402.13718)."""
    own = list(_plain(prediction))
    return max(f1_of_words(own, list(_plain(reference))) for reference in references)


def _plain(text: str) -> str:
    return "".join("".join(char for char in text.lower() if char not in _PUNCTUATION).split())


def zh_rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L of LongBench of jieba's words, punctuation included."""
    own, *gold = (" ".join(segmenter().lcut(text)) for text in (prediction, *references))
    return rouge_l_of_sentences(own, gold)
