"""Converters of Multi-News (summaries), key-value retrieval, and LongBench's tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data.converters.fields import (
    Converted,
    converter,
    first_id,
    make_example,
    make_suite_example,
    require,
    require_list,
    require_texts,
)

SUMMARISE_NEWS = "Write a one-page summary of all the news."
SEPARATOR = re.compile(r"story_separator_special_tag|\|\|\|\|\|")
NEWLINE = re.compile(r" ?NEWLINE_CHAR ?")
DASH = re.compile(r"^\s*[–-]\s*")  # every target starts with one
# Questions for LongBench's tasks that have no `input`.
QUESTIONS = {
    "gov_report": "Write a one-page summary of the report.",
    "multi_news": SUMMARISE_NEWS,
    "vcsum": "Write a summary of the meeting.",
    "passage_count": "How many different passages are there, repetitions not counted?",
    "lcc": "What is the next line of the code?",
}


@converter
def multi_news(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """Multi-News (arXiv 1906.01749): several articles and their summary.

    {"source": str, "target": str}; articles are separated by story_separator_special_tag (the authors' files) or |||||
    (the hub's). The context is `Passage i:` and the text of each, with blank lines between them. The summary's leading
    dash is removed.
    """
    articles = [NEWLINE.sub("\n", article).strip() for article in SEPARATOR.split(require(row, "source", str))]
    context = "\n\n".join(f"Passage {place}:\n{article}" for place, article in enumerate(filter(None, articles), 1))
    target = DASH.sub("", NEWLINE.sub("\n", require(row, "target", str)))
    yield make_example(f"multi_news-{number}", context, SUMMARISE_NEWS, [target])


@converter
def prompted(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """The authors' own form of COMI, GMSA and RAM (2602.01719, 2505.12215, 2602.01840), and ICAE's PwC (2307.06945).

    {"input": the context, "prompt": the question, "answer": str or [str], "id": str?}; every text stays as it is.
    """
    context, question = require(row, "input", str), require(row, "prompt", str)
    id = first_id(row, ("id", "uniq_id"), f"prompted-{number}")
    yield make_suite_example(id, context, question, require_texts(row, "answer"))


@converter
def kv_retrieval(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """Key-value retrieval of lost-in-the-middle (arXiv 2307.03172): a JSON object of random pairs, one of its keys.

    {"ordered_kv_records": [[key, value], ...], "key": str, "value": str}
    """
    key, value = require(row, "key", str), require(row, "value", str)
    records = require_list(row, "ordered_kv_records", list)
    for place, record in enumerate(records, 1):
        if len(record) != 2 or not all(isinstance(text, str) for text in record):
            raise ValueError(f"item {place} of 'ordered_kv_records' is not a pair of strings")
    if [key, value] not in records:
        raise ValueError(f"the pair of 'key' and 'value' ({key!r}, {value!r}) is not among 'ordered_kv_records'")
    context = "{" + ",\n ".join(f'"{name}": "{content}"' for name, content in records) + "}"
    question = f'Extract the value corresponding to the key "{key}" in the JSON object above.'
    yield make_example(f"kv{len(records)}-{number}", context, question, [value])


@converter
def longbench(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """LongBench's tasks (arXiv 2308.14508). Tasks without an input get one from QUESTIONS.

    {"input": str, "context": str, "answers": [str], "length": int, "dataset": str, "language": str,
     "all_classes": [str] or null, "_id": str}
    """
    question, task = require(row, "input", str), require(row, "dataset", str)
    if not question.strip():
        name = task.removesuffix("_e")  # LongBench-E has the same tasks
        if name not in QUESTIONS:
            raise ValueError(
                f"'input' is empty, and there is no default question for the data set {task!r} "
                f"(there is one for {', '.join(QUESTIONS)})"
            )
        question = QUESTIONS[name]
    yield make_example(
        first_id(row, ("_id",), f"{task}-{number}"),
        require(row, "context", str),
        question,
        require_list(row, "answers", str),
    )
