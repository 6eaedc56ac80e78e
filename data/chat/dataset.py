"""Chats of several turns from JSONL files (CoMeT's data, arXiv 2602.01766)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence

from breviary.contract import Example
from breviary.runtime.files import parse_json
from breviary.runtime.markup import surrogate_problem
from data import jsonl
from data.chat.pieces import ASSISTANT, END, START
from data.checks import raise_problems
from data.jsonl import Jsonl, read_lines
from data.store.bad_lines import BadLines
from data.store.content import content_hash

ROLES = ("system", "user", "assistant", "tool")
TURNS = ("mask", "each", "last")
FORMAT = (
    '{"uniq_id": str (optional), "messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}, ...]}'
)
Message = tuple[str, str]


class ChatML:
    """Chats from JSONL files, one object a line; a null file = the split does not exist. Files *.gz are gzipped.

    messages  [{"role": system | user | assistant | tool, "content": str}, ...], or a string that holds such JSON. The
              last one is the assistant's. The id is `uniq_id`, `id`, or the number of the line
    turns     mask: a chat is one example, and training supervises all messages of the assistant where they stand, which
              readers of running text do (CoMeT) | each: an example for each message of the assistant, with all before
              it as the context, for any reader | last: the last message alone
    Validation and test have one example a chat, its last message.
    *_limit, max_new_tokens, stop, metrics  as in Jsonl; a limit counts chats
    """

    def __init__(
        self,
        train: str | None,
        validation: str | None,
        test: str | None,
        turns: str = "mask",
        train_limit: int | None = None,
        validation_limit: int | None = None,
        test_limit: int | None = None,
        max_new_tokens: int | None = None,
        stop: list[str] | None = None,
        metrics: list[str] | None = None,
    ) -> None:
        self._rows = Jsonl(
            train, validation, test, None, train_limit, validation_limit, test_limit, max_new_tokens, stop, metrics
        )
        self.files, self.limits, self.turns = self._rows.files, self._rows.limits, turns
        self.max_new_tokens, self.stop, self.metrics = max_new_tokens, stop, metrics

    def problems(self, splits: list[str]) -> list[str]:
        """An error message for each wrong argument and file of `splits`."""
        wrong = (
            [] if self.turns in TURNS else [f"dataset.turns={self.turns}: allowed are {', '.join(TURNS)}, e.g. mask"]
        )
        return wrong + self._rows.problems(splits)

    def content_hash(self, split: str) -> str:
        """As `Jsonl.content_hash`."""
        raise_problems(self.problems([split]))
        code = [__file__, jsonl.__file__]
        return content_hash(code, [self._file(split)], self.limits[split], [self._turns(split)])

    def _file(self, split: str) -> str:
        name = self.files[split]
        assert name is not None, split  # checked by `problems`
        return name

    def _turns(self, split: str) -> str:
        return self.turns if split == "train" else "last"

    def examples(self, split: str) -> list[Example]:
        """The examples of `split`. Raises: ValueError with the messages of `problems`, or with all bad lines."""
        return list(self.stream(split))

    def stream(self, split: str) -> Iterator[Example]:
        """As `examples`, one after another. Bad lines are left out, and raised at the end."""
        raise_problems(self.problems([split]))
        lines, bad = functools.partial(read_lines, f"dataset.{split}", self._file(split)), BadLines()
        for number, line in lines(self.limits[split]):
            id, messages, problem = _parse(line, number)
            if problem:
                bad.add(number, problem)
                continue
            bad.see_id(number, id)
            yield from _examples(id, messages, self._turns(split))
        bad.find_repeated(lambda: lines(self.limits[split]), lambda number, line: _parse(line, number)[0])
        if bad or not bad.ids:
            found = bad.report(self._file(split)) if bad else f"blank lines only in {self._file(split)}"
            raise ValueError(f"dataset.{split}: {found}\nEach line must be {FORMAT}")


def _parse(line: str, number: int) -> tuple[str, list[Message], str]:
    """(id, messages, problem) of one line; a problem is "" for a right one."""
    try:
        row = parse_json(line)
        messages = row.get("messages") if isinstance(row, dict) else None
        messages = parse_json(messages) if isinstance(messages, str) else messages
    except json.JSONDecodeError as error:
        return "", [], f"not JSON ({error.msg} at column {error.colno})"
    if not isinstance(messages, list) or not messages:
        return "", [], "'messages' must be a list of messages, or a string that holds one as JSON"
    found: list[Message] = []
    for place, message in enumerate(messages, 1):
        role, text = (message.get(key) for key in ("role", "content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(text, str):
            return "", [], f"message {place} must have a role ({', '.join(ROLES)}) and a text as content"
        if surrogate_problem(text):
            return "", [], f"message {place} {surrogate_problem(text)}"
        found.append((role, text))
    if len(found) < 2 or found[-1][0] != ASSISTANT or not found[-1][1].strip():
        return "", [], "the last message must be the assistant's, with words, behind at least one other"
    id = next((row[key] for key in ("uniq_id", "id") if isinstance(row.get(key), (str, int))), f"line-{number}")
    return str(id), found, ""


def _examples(id: str, messages: Sequence[Message], turns: str) -> Iterator[Example]:
    """The examples of a chat, see ChatML.turns."""
    if turns == "each":
        places = [i for i, (role, text) in enumerate(messages) if i and role == ASSISTANT and text.strip()]
        for turn, place in enumerate(places, 1):
            yield _example(f"{id}-turn{turn}" if len(places) > 1 else id, messages[:place], messages[place][1], False)
    else:
        yield _example(id, messages[:-1], messages[-1][1], turns == "mask")


def _example(id: str, before: Sequence[Message], answer: str, is_masked: bool) -> Example:
    """An example whose question is the last message before the answer, where others precede it; else "".

    is_masked  training supervises the assistant's earlier messages
    """
    context = "".join(f"{START.format(role=role)}{text}{END}\n" for role, text in before)
    question = before[-1][1] if sum(role != "system" for role, _ in before) > 1 else ""
    messages = tuple((role, text, is_masked and role == ASSISTANT) for role, text in before)
    return Example(id, context, question, (answer,), messages=messages)
