"""Multiple choice by letter, as InfiniteBench and SCBench ask it."""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = "ABCD"


def lettered_question(head: str, options: Sequence[str], answers: Sequence[str]) -> tuple[str, list[str]]:
    """(question, answers): the head with the lines "A. option", and the option and its letter.

    answers  an option, its letter, or both
    Raises: ValueError where there are not four options, or the answer is neither an option nor a letter.
    """
    if len(options) != len(LETTERS):
        raise ValueError(f"'options' holds {len(options)} texts; it must hold 4")
    question = "\n".join((head, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options))))
    if answers[0] in options:
        return question, [answers[0], LETTERS[options.index(answers[0])]]
    letter = next((answer for answer in answers if len(answer) == 1 and answer in LETTERS), None)
    if letter is None:
        raise ValueError(f"'answer' {list(answers)} is neither one of 'options' nor a letter of A to D")
    return question, [options[LETTERS.index(letter)], letter]
