"""Accuracy of multiple choice: by the letter of an answer, and by the likelihood of each choice."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

# LongBench v2 (arXiv 2412.15204) reads these two forms, the first one that occurs.
_STATED = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))


def first_letter(text: str) -> str | None:
    """The first A, B, C or D that stands alone: ZeroSCROLLS (arXiv 2305.14196)."""
    found = re.search(r"\b[A-D]\b", text)
    return found[0] if found else None


def stated_letter(text: str) -> str | None:
    """The letter behind "The correct answer is", asterisks ignored: LongBench v2."""
    text = text.replace("*", "")
    found = next((match for match in (pattern.search(text) for pattern in _STATED) if match), None)
    return found[1] if found else None


def letter_of(reference: str, choices: Sequence[str]) -> str:
    """The letter of a reference: a letter as in "B" or "(B) text", or the place of a text among the choices.

    Raises: ValueError where it is neither.
    """
    if reference in choices:
        return string.ascii_uppercase[list(choices).index(reference)]
    found = re.match(r"\(?([A-Z])\b", reference.strip())
    if not found:
        raise ValueError(
            f"the reference {reference!r} is neither a letter nor one of the choices {list(choices)}, which metrics "
            'choice_letter and choice_letter_v2 need; e.g. "answers": ["B"]'
        )
    return found[1]


def choice_letter(prediction: str, references: Sequence[str], choices: Sequence[str]) -> float:
    """1 where `first_letter` of the answer is a reference's, else 0."""
    return float(first_letter(prediction) in {letter_of(reference, choices) for reference in references})


def choice_letter_v2(prediction: str, references: Sequence[str], choices: Sequence[str]) -> float:
    """1 where `stated_letter` of the answer is a reference's, else 0."""
    return float(stated_letter(prediction) in {letter_of(reference, choices) for reference in references})


def choice_likelihood(nll: Sequence[float], choices: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Whether the most likely choice is a reference, 0 or 1.

    nll  nats of each choice, the end token left out
    choice_likelihood       by the likelihood of the whole choice
    choice_likelihood_norm  by that of one of its characters
    Raises: ValueError where no reference is a choice.
    """
    assert len(nll) == len(choices) > 0, (nll, choices)
    gold = {place for place, choice in enumerate(choices) if choice in references}
    if not gold:
        raise ValueError(
            f"no reference of {list(references)} is one of the choices {list(choices)}, which metric choice_likelihood "
            "needs; choices are the texts of the options"
        )
    per_character = [nats / max(1, len(choice)) for nats, choice in zip(nll, choices)]
    return {
        "choice_likelihood": float(_lowest(nll) in gold),
        "choice_likelihood_norm": float(_lowest(per_character) in gold),
    }


def _lowest(values: Sequence[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)
