"""Converter of SCBench (arXiv 2412.10319): contexts with several questions each, every question alone."""

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

SCBENCH_TASKS = (
    *("kv", "prefix_suffix", "vt", "qa_eng", "qa_chn", "choice_eng", "mf", "many_shot", "summary"),
)  # repoqa and the two mixed tasks need RepoQA's own scorer
_TARGET = re.compile(r"The .+ is")


@converter
def scbench(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """A row of scbench_TASK.jsonl: one example for each turn, all with the same context, which is encoded once.

    {"task": str, "id": str or int, "context": str, "multi_turns": [{"input": str, "answer": str, number or list of
     them, "options": [str]?}, ...]}; "input" may stand for "context".
    """
    task = require(row, "task", str)
    context = require(row, "context" if "context" in row else "input", str)
    turns = require_list(row, "multi_turns", dict)
    group = f"{task}-{first_id(row, ('id',), str(number))}"
    if task == "mf" and turns:  # the suite's prompt of many questions puts the first one before the context
        context = f"{require(turns[0], 'input', str, 'turn 1')}\n\n{context}"
    for place, turn in enumerate(turns, 1):
        owner = f"turn {place}"
        question, answers = require(turn, "input", str, owner), require_texts(turn, "answer", owner)
        choices: list[str] = []
        if task == "choice_eng":
            choices = require_list(turn, "options", str, owner)
            question, answers = lettered_question(f"Question: {question}", choices, answers)
        elif task == "mf":
            target = _TARGET.search(question)
            if target is None:
                raise ValueError(f"'input' of {owner} has no text of the form {_TARGET.pattern}")
            question = f"What is {target[0].lower().removesuffix(' is')}?\n\n{question}"
        yield make_suite_example(f"{group}-{place}", context, question, answers, choices=choices)
