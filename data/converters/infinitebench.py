"""Converter of InfiniteBench (arXiv 2402.13718): twelve tasks, in the prompts of its template set yarn-mistral."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data.converters.fields import (
    Converted,
    converter,
    first_id,
    make_suite_example,
    require,
    require_list,
    require_texts,
)

INFINITEBENCH_TASKS = (
    *("passkey", "number_string", "kv_retrieval", "longbook_sum_eng", "longbook_qa_eng", "longbook_choice_eng"),
    *("longdialogue_qa_eng", "longbook_qa_chn", "math_find", "math_calc", "code_run", "code_debug"),
)
LETTERS = "ABCD"
# What stands in the place of the question where the prompt has none.
QUESTIONS = {
    "longbook_sum_eng": "Summary:",
    "longdialogue_qa_eng": "The name that has been replaced with $$MASK$$ is likely",
    "math_calc": "Values:",
}
_CALL = re.compile(r"func_[0-9]+\(-?[0-9]+\)")
_TARGET = re.compile(r"The \w+ number")


@converter
def infinitebench(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """A row of TASK.jsonl.

    {"task": str, "id": int, "context": str, "input": str, "answer": [str or number], "options": [str]}
    The answers of multiple choice are the option and its letter. What stands before the context and varies (the
    function of Code.Run, the question of Math.Find) is part of the context.
    """
    task, context = require(row, "task", str), require(row, "context", str)
    answers = require_texts(row, "answer")
    choices: list[str] = []
    question = QUESTIONS.get(task) or require(row, "input", str)
    if task in ("longbook_choice_eng", "code_debug"):
        choices = require_list(row, "options", str)
        answers = with_letter(answers, choices)
        head = "Options:" if task == "code_debug" else f"Question: {question}"
        question = "\n".join((head, *lettered(choices)))
    elif task == "math_find":
        context = f"What is {_found(_TARGET, question).lower()} in the following list?\n\n{context}"
    elif task == "code_run":
        call = _found(_CALL, question)
        context = f"There is a function called {call.partition('(')[0]} in the following Python code.\n\n{context}"
        question = f"Please compute the exact value of {call}. The value of {call} is"
    choices = choices if len(set(choices)) == len(choices) else []
    id = f"{task}-{first_id(row, ('id',), str(number))}"
    yield make_suite_example(id, context, question, answers, choices=choices, is_set=task != "math_calc")


def lettered(options: list[str]) -> list[str]:
    """The lines "A. option"."""
    return [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]


def with_letter(answers: list[str], options: list[str]) -> list[str]:
    """[option, letter] of an answer that is an option, its letter, or both.

    Raises: ValueError where there are not four options, or the answer is neither an option nor a letter.
    """
    if len(options) != len(LETTERS):
        raise ValueError(f"'options' holds {len(options)} texts; it must hold 4")
    if answers[0] in options:
        return [answers[0], LETTERS[options.index(answers[0])]]
    letter = next((answer for answer in answers if len(answer) == 1 and answer in LETTERS), None)
    if letter is None:
        raise ValueError(f"'answer' {answers} is neither one of 'options' nor a letter of A to D")
    return [options[LETTERS.index(letter)], letter]


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    if match is None:
        raise ValueError(f"'input' has no text of the form {pattern.pattern}")
    return match[0]
