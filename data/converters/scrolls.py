"""Converter of SCROLLS (arXiv 2201.03533): seven tasks on long texts in one form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data.converters.fields import (
    Converted,
    Skipped,
    converter,
    first_id,
    make_example,
    require,
    require_list,
    with_choices,
)

# SCROLLS has no query for summaries: the whole input is the text.
SUMMARIES = {
    "gov_report": "Write a one-page summary of the report.",
    "summ_screen_fd": "Write a summary of the episode.",
}
TASKS = (*SUMMARIES, "qmsum", "qasper", "narrative_qa", "quality", "contract_nli")
LAST_OPTION = "(D)"
CLASSES = ("Entailment", "Contradiction", "Not mentioned")  # of ContractNLI
_OPTION = re.compile(r"^\([A-D]\) ?(.*)$", re.MULTILINE)


@converter
def scrolls(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """A row of any task, with the options where the answer is one of them.

    {"task": one of TASKS, "id": str, "input": str, "outputs": [str]}, see `data.converters.files.scrolls_rows`.
    "input" is the query, a blank line and the text, or the text alone (SUMMARIES). No outputs = a test file, whose
    answers are hidden.
    """
    task, outputs = require(row, "task", str), require_list(row, "outputs", str)
    question, context = split_input(task, require(row, "input", str))
    if not outputs:
        yield Skipped("hidden answer")
        return
    example = make_example(f"{task}-{first_id(row, ('id',), str(number))}", context, question, outputs)
    yield example if isinstance(example, Skipped) else with_choices(example, options_of(task, question))


def options_of(task: str, question: str) -> list[str]:
    """The options of an answer: QuALITY's texts without their letters, ContractNLI's classes; none of other tasks.

    question  from `split_input`
    """
    return _OPTION.findall(question) if task == "quality" else list(CLASSES) if task == "contract_nli" else []


def split_input(task: str, text: str) -> tuple[str, str]:
    """(question, context). QuALITY's options belong to the question, one a line.

    Raises: ValueError where there is no blank line after the query, or after QuALITY's last option.
    """
    if task in SUMMARIES:
        return SUMMARIES[task], text
    question, separator, context = text.partition("\n\n")
    if not separator:
        raise ValueError("'input' has no blank line; it must be the query, a blank line and the text")
    if task == "quality":
        end = context.find("\n\n", max(context.find(LAST_OPTION), 0))
        if LAST_OPTION not in context[: max(end, 0)]:
            raise ValueError(f"'input' has no options up to {LAST_OPTION} between blank lines, which quality must have")
        options = [line.strip() for line in context[:end].splitlines() if line.strip()]
        question, context = "\n".join([question, *options]), context[end:]
    return question, context.strip("\n")
