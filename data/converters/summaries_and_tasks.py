"""Summaries of several articles (Multi-News), exact look-ups (key-value retrieval), and LongBench's tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data.converters.fields import Converted, converter, example, identifier, need, need_each

SUMMARISE_NEWS = "Write a one-page summary of all the news."
SEPARATOR = re.compile(r"story_separator_special_tag|\|\|\|\|\|")
NEWLINE = re.compile(r" ?NEWLINE_CHAR ?")
DASH = re.compile(r"^\s*[–-]\s*")  # every target begins with one
# What LongBench's tasks without an `input` ask for.
QUESTIONS = {
    "gov_report": "Write a one-page summary of the report.",
    "multi_news": SUMMARISE_NEWS,
    "vcsum": "Write a summary of the meeting.",
    "passage_count": "How many different passages are there, repetitions not counted?",
    "lcc": "What is the next line of the code?",
}


@converter
def multi_news(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """Multi-News (arXiv 1906.01749): a line of articles and the line of their summary.

    {"source": str, "target": str}; articles are divided by story_separator_special_tag (the authors' files) or |||||
    (the hub's), and become `Passage [i]:` and their text, blank-line separated. The summary loses its leading dash.
    """
    articles = [NEWLINE.sub("\n", article).strip() for article in SEPARATOR.split(need(row, "source", str))]
    context = "\n\n".join(f"Passage {place}:\n{article}" for place, article in enumerate(filter(None, articles), 1))
    target = DASH.sub("", NEWLINE.sub("\n", need(row, "target", str)))
    yield example(f"multi_news-{number}", context, SUMMARISE_NEWS, [target])


@converter
def kv_retrieval(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """Key-value retrieval of lost-in-the-middle (arXiv 2307.03172): one JSON object of random pairs, one key asked for.

    {"ordered_kv_records": [[key, value], ...], "key": str, "value": str}
    """
    key, value = need(row, "key", str), need(row, "value", str)
    records = need_each(row, "ordered_kv_records", list)
    for place, record in enumerate(records, 1):
        if len(record) != 2 or not all(isinstance(text, str) for text in record):
            raise ValueError(f"item {place} of 'ordered_kv_records' is no pair of strings")
    if [key, value] not in records:
        raise ValueError(f"the pair of 'key' and 'value' ({key!r}, {value!r}) is none of 'ordered_kv_records'")
    context = "{" + ",\n ".join(f'"{name}": "{held}"' for name, held in records) + "}"
    question = f'Extract the value corresponding to the key "{key}" in the JSON object above.'
    yield example(f"kv{len(records)}-{number}", context, question, [value])


@converter
def longbench(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """LongBench's tasks (arXiv 2308.14508); a task that asks nothing (QUESTIONS) gets a question.

    {"input": str, "context": str, "answers": [str], "length": int, "dataset": str, "language": str,
     "all_classes": [str] or null, "_id": str}
    """
    question, task = need(row, "input", str), need(row, "dataset", str)
    if not question.strip():
        name = task.removesuffix("_e")  # LongBench-E has the same tasks
        if name not in QUESTIONS:
            raise ValueError(
                f"'input' is empty, and the data set {task!r} has no question of its own "
                f"(those that have: {', '.join(QUESTIONS)})"
            )
        question = QUESTIONS[name]
    yield example(
        identifier(row, ("_id",), f"{task}-{number}"),
        need(row, "context", str),
        question,
        need_each(row, "answers", str),
    )
