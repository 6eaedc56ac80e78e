"""Checked access to the fields of source rows, and the examples that converters make of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.jsonl import join_passages

_TYPE_NAMES = {str: "a string", list: "a list", dict: "an object", bool: "true or false", int: "a whole number"}


@dataclass(frozen=True)
class Skipped:
    """A question of a valid row that yields no example, and the reason."""

    reason: str


Converted = dict[str, Any] | Skipped


def converter(
    convert_row: Callable[[dict[str, Any], int], Iterator[Converted]],
) -> Callable[[Iterable[Any]], Iterator[Converted]]:
    """Decorates `convert_row(row, number)`, which yields the examples of one row, as a function of all rows.

    Rows are numbered from 0. Raises: ValueError for a row that is not an object, and what `convert_row` raises.
    """

    @functools.wraps(convert_row)
    def convert(rows: Iterable[Any]) -> Iterator[Converted]:
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(f"the row is {type_name(row)}; it must be an object")
            yield from convert_row(row, number)

    return convert


def type_name(value: Any) -> str:
    """A value's JSON type, with its article."""
    return "null" if value is None else _TYPE_NAMES.get(type(value), "a number")


def require(row: Any, field: str, kind: type, owner: str = "") -> Any:
    """`row[field]`, which must be of type `kind`. `owner` names the object in messages, "" = the row itself.

    Raises: ValueError with the field, its type and the required type.
    """
    of_owner = f" of {owner}" if owner else ""
    if not isinstance(row, dict):
        raise ValueError(f"{owner or 'the row'} is {type_name(row)}; it must be an object with the field {field!r}")
    if field not in row:
        fields = ", ".join(repr(name) for name in row) or "none"
        raise ValueError(f"the field {field!r}{of_owner} is missing (fields: {fields})")
    if type(row[field]) is not kind:
        raise ValueError(f"{field!r}{of_owner} is {type_name(row[field])}; it must be {_TYPE_NAMES[kind]}")
    return row[field]


def require_list(row: Any, field: str, item_kind: type, owner: str = "") -> list[Any]:
    """`row[field]`, a list whose items must be of type `item_kind`. Raises: ValueError as `require`."""
    for place, item in enumerate(require(row, field, list, owner), 1):
        if type(item) is not item_kind:
            of_owner = f" of {owner}" if owner else ""
            raise ValueError(
                f"item {place} of {field!r}{of_owner} is {type_name(item)}; it must be {_TYPE_NAMES[item_kind]}"
            )
    return row[field]


def first_id(row: dict[str, Any], fields: Iterable[str], default: str) -> str:
    """The first of `fields` that is a string or whole number in the row, else `default`."""
    return next((str(row[field]) for field in fields if type(row.get(field)) in (str, int)), default)


def require_texts(row: Any, field: str, owner: str = "") -> list[str]:
    """`row[field]` as texts: a string, a number, or a list of them. Raises: ValueError as `require`, or of no text."""
    value = row.get(field) if isinstance(row, dict) else None
    values = value if isinstance(value, list) else [value]
    if not values or any(type(one) not in (str, int, float) for one in values):
        of_owner = f" of {owner}" if owner else ""
        raise ValueError(f"{field!r}{of_owner} is {type_name(value)}; it must be a string, a number, or a list of them")
    return [str(one) for one in values]


def make_suite_example(
    id: str,
    context: str,
    question: str,
    answers: Iterable[str],
    answer_prefix: str = "",
    choices: Sequence[str] = (),
    is_set: bool = True,
) -> Converted:
    """An object of the common format with every text as it is: a suite's prompt must not change by a byte.

    choices  the options, or classes, one of which is an answer; () = none
    is_set   answers are alternatives: repeated ones are removed
    Skipped and raises as `make_example`.
    """
    answers = list(answers)
    example = make_example(id, context, question, answers)
    if isinstance(example, Skipped):
        return example
    answers = list(dict.fromkeys(answers)) if is_set else answers
    example |= {"question": question, "answers": [answer for answer in answers if answer.strip()]}
    example |= {"answer_prefix": answer_prefix} if answer_prefix else {}
    return with_choices(example, choices)


def with_choices(example: dict[str, Any], choices: Sequence[str]) -> dict[str, Any]:
    """The object with the options of its question. Without any, or where two are equal, it is as it was.

    Raises: ValueError where no answer is an option.
    """
    if choices and not set(choices) & set(example["answers"]):
        raise ValueError(f"none of the answers {example['answers']} is one of the options {list(choices)}")
    return example | ({"choices": list(choices)} if choices and len(set(choices)) == len(choices) else {})


def make_example(id: str, context: str, question: str, answers: Iterable[str]) -> Converted:
    """An object of the common format, with question and answers stripped and duplicate answers removed.

    Skipped where the context, the question or every answer is empty.
    Raises: ValueError for a lone surrogate, which JSON can express and UTF-8 cannot.
    """
    answers = list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    for reason, text in (("no context", context.strip()), ("no question", question.strip()), ("no answer", answers)):
        if not text:
            return Skipped(reason)
    for name, text in (("context", context), ("question", question), ("answers", "".join(answers))):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the {name} holds a lone surrogate ({ascii(text[error.start])})") from error
    return {"id": id, "context": context, "question": question.strip(), "answers": answers}


def make_passage_example(id: str, passages: list[dict[str, Any]], question: str, answers: Iterable[str]) -> Converted:
    """As `make_example`, with the context joined from passages {"title", "text", "is_gold"}, its documents."""
    example = make_example(id, join_passages(passages)[0], question, answers)
    return example if isinstance(example, Skipped) else {**example, "documents": passages}
