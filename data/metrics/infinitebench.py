"""Metrics of InfiniteBench (arXiv 2402.13718) that no other suite has, each in [0, 1]."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+\.\d+|\d+")
_SEPARATORS = "\n:\"'.,?!{}"
_ANSWER_WORDS = ("answer is:", "answer:", "answer is", "option is")
_CODE_ANSWER_WORDS = ("answer is:", "is:", "answer:")


def first_number(prediction: str, references: Sequence[str]) -> float:
    """1 where the first run of digits is a reference: Retrieve.PassKey and Retrieve.Number."""
    found = re.search(r"[0-9]+", prediction)
    return float(found is not None and found[0] in references)


def math_find(prediction: str, references: Sequence[str]) -> float:
    """1 where the first number, whole or with a point, equals a reference: Math.Find."""
    found = _NUMBER.search(prediction)
    return float(found is not None and float(found[0]) in {float(reference) for reference in references})


def math_calc(prediction: str, references: Sequence[str]) -> float:
    """Share of the references, in order, that the answer's numbers begin with: Math.Calc."""
    own = [int(number) for number in re.findall(r"[0-9]+", prediction)]
    pairs = enumerate(zip(own, references))
    right = next((n for n, (number, gold) in pairs if number != int(gold)), min(len(own), len(references)))
    return right / len(references)


def kv_word(prediction: str, references: Sequence[str]) -> float:
    """1 where a reference is a word of the answer; punctuation other than "-" and "=" separates: Retrieve.KV."""
    words = _words(prediction, _SEPARATORS)
    return float(any(reference in words for reference in references))


def name_word(prediction: str, references: Sequence[str]) -> float:
    """1 where the first reference is a word of the answer in capitals: En.Dia."""
    return float(references[0].upper() in [word.upper() for word in _words(prediction, _SEPARATORS)])


def code_run(prediction: str, references: Sequence[str]) -> float:
    """1 where the last word is a whole number that equals a reference: Code.Run."""
    words = _words(prediction, "\n.`'\":")
    is_number = bool(words) and re.fullmatch(r"[+-]?[0-9]+", words[-1]) is not None
    return float(is_number and int(words[-1]) in {int(reference) for reference in references})


def code_debug(prediction: str, references: Sequence[str]) -> float:
    """1 where the answer begins with the letter, or states name or letter behind "answer is:": Code.Debug.

    references  the function's name, and its letter
    """
    name, letter = references[0], references[1]
    if prediction[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    text = re.sub(r"Option|option|[\n`'\"\-*]", " ", prediction.strip())
    return _behind(re.sub(" +", " ", text), _CODE_ANSWER_WORDS, (letter, name)) or 0.0


def book_choice(prediction: str, references: Sequence[str]) -> float:
    """1 where the first character, else the text behind "answer is", else the first letter is a reference: En.MC."""
    if prediction[:1] and prediction[0] in "ABCD":
        return float(prediction[0] in references)
    text = re.sub(" +", " ", re.sub(r"[\n\"'.,?!{}]", " ", prediction))
    stated = _behind(text, _ANSWER_WORDS, references)
    if stated is not None:
        return stated
    letter = next((word for word in text.split() if word in "ABCD"), None)
    return float(letter in references)


def _behind(text: str, openings: Sequence[str], answers: Sequence[str]) -> float | None:
    """Whether an answer stands right behind the first opening that occurs, and a blank; None where none occurs."""
    opening = next((one for one in openings if one in text), None)
    if opening is None:
        return None
    rest = text[text.index(opening) + len(opening) + 1 :]
    return float(bool(rest) and rest.startswith(tuple(answers)))


def _words(text: str, separators: str) -> list[str]:
    return text.translate(str.maketrans(separators, " " * len(separators))).split()
