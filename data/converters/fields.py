"""What the converters share: a row's fields, checked, and the example made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from data.jsonl import join_passages

_KINDS = {str: "a string", list: "a list", dict: "an object", bool: "true or false", int: "a whole number"}


@dataclass(frozen=True)
class Skipped:
    """A question that makes no example, and why: nothing is wrong with its row."""

    reason: str


Converted = dict[str, Any] | Skipped


def converter(
    one: Callable[[dict[str, Any], int], Iterator[Converted]],
) -> Callable[[Iterable[Any]], Iterator[Converted]]:
    """rows -> examples, of `one(row, number)`, which gives the examples of one row; numbers count from 0.

    Raises ValueError for a row that is no object, and what `one` raises.
    """

    @functools.wraps(one)
    def convert(rows: Iterable[Any]) -> Iterator[Converted]:
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(f"the row is {kind_of(row)}; it must be an object")
            yield from one(row, number)

    return convert


def kind_of(value: Any) -> str:
    """A value's type in words."""
    return "null" if value is None else _KINDS.get(type(value), "a number")


def need(row: Any, field: str, kind: type, of: str = "") -> Any:
    """`row[field]`, which must be of `kind`; `of` says whose field it is where not the row's.

    Raises ValueError naming the field, what it is and what it must be.
    """
    whose = f" of {of}" if of else ""
    if not isinstance(row, dict):
        raise ValueError(f"{of or 'the row'} is {kind_of(row)}; it must be an object with the field {field!r}")
    if field not in row:
        fields = ", ".join(repr(name) for name in row) or "none"
        raise ValueError(f"the field {field!r}{whose} is missing (fields: {fields})")
    if type(row[field]) is not kind:
        raise ValueError(f"{field!r}{whose} is {kind_of(row[field])}; it must be {_KINDS[kind]}")
    return row[field]


def need_each(row: Any, field: str, kind: type, of: str = "") -> list[Any]:
    """`row[field]`, a list whose every item must be of `kind`. Raises ValueError as `need`."""
    for place, item in enumerate(need(row, field, list, of), 1):
        if type(item) is not kind:
            whose = f" of {of}" if of else ""
            raise ValueError(f"item {place} of {field!r}{whose} is {kind_of(item)}; it must be {_KINDS[kind]}")
    return row[field]


def identifier(row: dict[str, Any], fields: Iterable[str], otherwise: str) -> str:
    """The first of `fields` that the row has as a string or whole number, else `otherwise`."""
    return next((str(row[field]) for field in fields if type(row.get(field)) in (str, int)), otherwise)


def example(id: str, context: str, question: str, answers: Iterable[str]) -> Converted:
    """An object of the common format: question and answers trimmed, answers distinct and in their order.

    Skipped where context, question or every answer is empty. Raises ValueError for half a character (a lone surrogate,
    which JSON can write and UTF-8 cannot).
    """
    answers = list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    for reason, text in (("no context", context.strip()), ("no question", question.strip()), ("no answer", answers)):
        if not text:
            return Skipped(reason)
    for name, text in (("context", context), ("question", question), ("answers", "".join(answers))):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the {name} holds half a character ({ascii(text[error.start])})") from error
    return {"id": id, "context": context, "question": question.strip(), "answers": answers}


def passage_example(id: str, passages: list[dict[str, Any]], question: str, answers: Iterable[str]) -> Converted:
    """As `example`, its context made of passages {"title", "text", "is_gold"}, which become its documents."""
    found = example(id, join_passages(passages)[0], question, answers)
    return found if isinstance(found, Skipped) else {**found, "documents": passages}
