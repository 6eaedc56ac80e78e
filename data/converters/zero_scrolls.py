"""Converter of ZeroSCROLLS (arXiv 2305.14196): ten tasks whose rows hold the whole prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data.converters.fields import Converted, Skipped, converter, first_id, make_suite_example, require

ZERO_SCROLLS_TASKS = (
    *("gov_report", "summ_screen_fd", "qmsum", "qasper", "narrative_qa", "quality", "musique", "squality"),
    *("space_digest", "book_sum_sort"),
)
_OPTION = re.compile(r"^\s*\(([A-D])\) ?(.*?)\s*$", re.MULTILINE)
_LETTER = re.compile(r"\(?([A-D])\)?\.?")


@converter
def zero_scrolls(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """A row of TASK/validation.jsonl; instruction and document become the context, all behind it question and prefix.

    {"task": str, "id": str, "input": str, "output": str or null, "document_end_index": int, "query_start_index": int,
     "query_end_index": int}; no output = a test file whose answers are hidden.
    context, question and answer prefix joined are `input`, byte for byte. QuALITY's answer is the text of the option.
    """
    task, text = require(row, "task", str), require(row, "input", str)
    names = ("document_end_index", "query_start_index", "query_end_index")
    document_end, query_start, query_end = (require(row, name, int) for name in names)
    if not 0 < document_end <= query_start <= query_end <= len(text):
        raise ValueError(
            f"document_end_index={document_end}, query_start_index={query_start}, query_end_index={query_end}: must "
            f"ascend and be at most {len(text)}, the characters of 'input'"
        )
    if row.get("output") is None:
        yield Skipped("hidden answer")
        return
    question, prefix = text[document_end:query_end], text[query_end:]
    if not question.strip():  # a summary: no query, and the header "Summary:" alone
        question, prefix = question + prefix, ""
    answer, choices = require(row, "output", str).strip(), []
    if task == "quality":
        options = dict(_OPTION.findall(question))
        choices = list(options.values())
        letter = _LETTER.fullmatch(answer)
        answer = options.get(letter[1], "") if letter else answer
        if answer not in choices or sorted(options) != list("ABCD"):
            raise ValueError(f"'output' {row['output']!r} is none of the options {options}")
    id = f"{task}-{first_id(row, ('pid', 'id'), str(number))}"
    yield make_suite_example(id, text[:document_end], question, [answer], prefix, choices)
