"""Metrics of numbers and orders, each in [0, 1]: ZeroSCROLLS (arXiv 2305.14196), HELMET (arXiv 2410.02694)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def exponential_similarity(prediction: str, references: Sequence[str]) -> float:
    """.5 ** (|number - reference| / 10) of the answer's first number; 0 without one: SpaceDigest of ZeroSCROLLS."""
    found = _NUMBER.search(prediction)
    if found is None:
        return 0.0
    return max(0.5 ** (abs(float(found[0]) - _number(reference)) / 10) for reference in references)


def _number(reference: str) -> float:
    found = _NUMBER.search(reference)
    if found is None:
        raise ValueError(f"the reference {reference!r} has no number, which metric exponential_similarity needs")
    return float(found[0])


def concordance(prediction: str, references: Sequence[str]) -> float:
    """Share of pairs in the reference's order; 0 where the numbers are no permutation of it: BookSumSort.

    Both texts are lists of whole numbers, such as "2, 1, 3".
    """
    own = re.findall(r"\d+", prediction)
    return max(_concordance(own, re.findall(r"\d+", reference)) for reference in references)


def _concordance(own: list[str], gold: list[str]) -> float:
    if sorted(own) != sorted(gold) or len(set(gold)) < len(gold):
        return 0.0
    place = {number: i for i, number in enumerate(gold)}
    pairs = list(itertools.combinations(own, 2))
    return sum(place[first] < place[second] for first, second in pairs) / len(pairs) if pairs else 1.0


def ndcg10(prediction: str, references: Sequence[str]) -> float:
    """Normalised discounted cumulative gain of the first ten documents, linear gain: MS MARCO of HELMET.

    prediction  documents from best to worst, such as "ID3 > ID1"
    references  "ID:GRADE" of each document; others have grade 0
    Raises: ValueError for a reference of another form.
    """
    grades = dict(map(_grade, references))
    own = list(dict.fromkeys(part.strip(" []()") for part in re.split(r"[>,\n]", prediction) if part.strip(" []()")))
    best = _gain(sorted(grades.values(), reverse=True))
    return _gain([grades.get(document, 0.0) for document in own]) / best if best else 0.0


def _grade(reference: str) -> tuple[str, float]:
    document, _, grade = reference.rpartition(":")
    try:
        return document, float(grade)
    except ValueError as error:
        raise ValueError(
            f'the reference {reference!r} is not ID:GRADE, which metric ndcg10 needs; e.g. "7:3"'
        ) from error


def _gain(grades: Sequence[float]) -> float:
    return sum(grade / math.log2(place + 2) for place, grade in enumerate(grades[:10]))
