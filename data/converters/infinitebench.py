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
from data.converters.lettered import lettered_question

INFINITEBENCH_TASKS = (
    *("passkey", "number_string", "kv_retrieval", "longbook_sum_eng", "longbook_qa_eng", "longbook_choice_eng"),
    *("longdialogue_qa_eng", "longbook_qa_chn", "math_find", "math_calc", "code_run", "code_debug"),
)
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
        head = "Options:" if task == "code_debug" else f"Question: {question}"
        question, answers = lettered_question(head, choices, answers)
    elif task == "math_find":
        context = f"What is {_found(_TARGET, question).lower()} in the following list?\n\n{context}"
    elif task == "code_run":
        call = _found(_CALL, question)
        context = f"There is a function called {call.partition('(')[0]} in the following Python code.\n\n{context}"
        question = f"Please compute the exact value of {call}. The value of {call} is"
    id = f"{task}-{first_id(row, ('id',), str(number))}"
    yield make_suite_example(id, context, question, answers, choices=choices, is_set=task != "math_calc")


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    if match is None:
        raise ValueError(f"'input' has no text of the form {pattern.pattern}")
    return match[0]
