"""Converters of LongBench v1, LongBench-E (arXiv 2308.14508) and LongBench v2 (arXiv 2412.15204).

`dataset.part` of configs/dataset selects the examples whose id begins with it: lengths of LongBench-E, difficulty and
length of v2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.converters.fields import Converted, Skipped, converter, first_id, make_suite_example, require, require_list

V1_TASKS = (
    *("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh", "hotpotqa", "2wikimqa", "musique", "dureader"),
    *("gov_report", "qmsum", "multi_news", "vcsum", "trec", "triviaqa", "samsum", "lsht", "passage_count"),
    *("passage_retrieval_en", "passage_retrieval_zh", "lcc", "repobench-p"),
)
E_TASKS = (
    *("qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum"),
    *("passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
)
# What stands in the place of the question where the prompt of a task has no {input}.
QUESTIONS = {
    "gov_report": "Now, write a one-page summary of the report.",
    "multi_news": "Now, write a one-page summary of all the news.",
    "vcsum": "会议总结：",
    "passage_count": "Please enter the final count of unique paragraphs after removing duplicates. The output format "
    "should only contain the number, such as 1, 2, 3, and so on.",
    "lcc": "Next line of code:",
}
LENGTHS = ((4000, "0-4k"), (8000, "4-8k"))  # LongBench-E: the lengths below, in words; others are "8k+"
LETTERS = "ABCD"


@converter
def longbench_v1(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """A row of TASK.jsonl or TASK_e.jsonl, with the white space of the source.

    {"task": str, "input": str, "context": str, "answers": [str], "length": int, "all_classes": [str] or null,
     "_id": str}
    The ids of LongBench-E are LENGTH/ID.
    """
    task = require(row, "task", str)
    name = task.removesuffix("_e")
    id = first_id(row, ("_id",), f"{task}-{number}")
    if name != task:
        length = require(row, "length", int)
        id = f"{next((title for limit, title in LENGTHS if length < limit), '8k+')}/{id}"
    question = QUESTIONS.get(name) or require(row, "input", str)
    classes = require_list(row, "all_classes", str) if row.get("all_classes") else []
    yield make_suite_example(
        id, require(row, "context", str), question, require_list(row, "answers", str), choices=classes
    )


@converter
def longbench_v2(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """A row of data.json: a question with four options; the ids are DIFFICULTY/LENGTH/ID.

    {"task": str, "_id": str, "difficulty": str, "length": str, "question": str, "choice_A" to "choice_D": str,
     "answer": one of A to D, "context": str}
    """
    choices = [require(row, f"choice_{letter}", str).strip() for letter in LETTERS]
    answer = require(row, "answer", str)
    if answer not in LETTERS or len(answer) != 1:
        raise ValueError(f"'answer' is {answer!r}; it must be one of A, B, C, D")
    id = "/".join((require(row, "difficulty", str), require(row, "length", str), first_id(row, ("_id",), str(number))))
    question = f"What is the correct answer to this question: {require(row, 'question', str).strip()}\nChoices:"
    question += "".join(f"\n({letter}) {choice}" for letter, choice in zip(LETTERS, choices))
    if len(set(choices)) < len(choices):
        yield Skipped("repeated options")
        return
    context = require(row, "context", str).strip()
    yield make_suite_example(id, context, question, [choices[LETTERS.index(answer)]], choices=choices)
