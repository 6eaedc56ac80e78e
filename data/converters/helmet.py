"""Converter of HELMET's tasks without a judge (arXiv 2410.02694): recall (json_kv, RULER) and questions on passages.

Two demonstrations each, without chat, as the suite. Those of passages are chosen as by its code: a shuffle of the
demonstrations' file seeded by the question.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy

from data.converters.fields import (
    Converted,
    Skipped,
    converter,
    first_id,
    make_suite_example,
    require,
    require_list,
    require_texts,
)

RAG_TASKS = ("nq", "triviaqa", "hotpotqa", "popqa")
RULER_TASKS = ("niah_multikey_2", "niah_multikey_3", "niah_multivalue")
HELMET_TASKS = ("json_kv", *RULER_TASKS, *RAG_TASKS)
SHOTS = 2
POPULARITY = 3  # of popqa: log10 of the subject's page views, below


@converter
def helmet(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """A row of a task's file.

    json_kv  {"context": str, "question": key, "answer": value, "demos": [[key, value], ...]}
    RULER    {"context": str, "query": str, "type_needle_v": str, "answer" or "outputs": [str]}
    passages {"question": str, "answers": [str], "ctxs": [{"title": str, "text": str}, ...], "id": str?, "s_pop": int?,
             "demonstrations": all rows of the demonstrations' file}
    """
    task = require(row, "task", str)
    id = f"{task}-{first_id(row, ('id',), 'row')}-{number}"
    if task == "json_kv":
        yield _json_kv(id, row)
    elif task in RULER_TASKS:
        yield _needle(id, task, row)
    elif _is_popular(task, row):
        yield Skipped(f"popularity of 10^{POPULARITY} or more")
    else:
        demos = "".join(
            f"{_passages(demo)}\n\nQuestion: {demo['question']}\nAnswer: {require_texts(demo, 'answers')[0]}\n\n"
            for demo in _demonstrations(task, row)
        )
        question = f"\n\nQuestion: {require(row, 'question', str)}"
        answers = require_list(row, "answers", str)
        yield make_suite_example(id, demos + _passages(row), question, answers, "\nAnswer:")


def _json_kv(id: str, row: dict[str, Any]) -> Converted:
    pairs = [pair for pair in require_list(row, "demos", list)[:SHOTS] if len(pair) == 2]
    demos = "".join(f"Key: {key}\nCorresponding value: {value}\n\n" for key, value in pairs)
    question = f"{demos}Key: {require(row, 'question', str)}"
    answers = require_texts(row, "answer")
    return make_suite_example(id, require(row, "context", str), question, answers, "\nCorresponding value:")


def _needle(id: str, task: str, row: dict[str, Any]) -> Converted:
    kind, query, context = (require(row, name, str) for name in ("type_needle_v", "query", "context"))
    some, are, what = ("Some", "are", "are all") if task == "niah_multivalue" else ("A", "is", "is")
    head = f"{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. "
    head += f"I will quiz you about the {kind} afterwards.\n"
    question = f"\nWhat {what} the special magic {kind} for {query} mentioned in the provided text?"
    prefix = f"\nThe special magic {kind} for {query} mentioned in the provided text {are}"
    answers = require_texts(row, "answer" if "answer" in row else "outputs")
    return make_suite_example(id, head + context, question, answers, prefix)


def _is_popular(task: str, row: dict[str, Any]) -> bool:
    return task == "popqa" and math.log10(require(row, "s_pop", int)) >= POPULARITY


def _passages(row: dict[str, Any]) -> str:
    """The passages of a row in the suite's layout."""
    passages = require_list(row, "ctxs", dict)
    return "\n\n".join(
        f"Document (Title: {require(p, 'title', str, 'a passage')}): {require(p, 'text', str, 'a passage')}"
        for p in passages
    )


def _demonstrations(task: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The first SHOTS distinct rows of the demonstrations, shuffled as by datasets.Dataset.shuffle.

    Raises: ValueError where there are too few.
    """
    key = "id" if "id" in row else "question"
    own = str(require(row, key, str))
    rows: Sequence[dict[str, Any]] = require(row, "demonstrations", list)
    if task == "popqa":  # its demonstrations are of the same questions
        rows = [demo for demo in rows if not _is_popular(task, demo) and demo.get(key) != own]
    seed = int(hashlib.sha256(own.encode("utf-8")).hexdigest(), 16) % 2**31
    chosen: dict[str, dict[str, Any]] = {}
    for place in numpy.random.default_rng(seed).permutation(len(rows)):
        demo = rows[int(place)]
        chosen.setdefault(str(demo.get(key)), demo)
    if len(chosen) < SHOTS:
        raise ValueError(f"the file of demonstrations has {len(chosen)} questions for it; it must have {SHOTS}")
    return list(chosen.values())[:SHOTS]
