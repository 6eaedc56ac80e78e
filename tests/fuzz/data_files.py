"""Mutated data: lines and files of a JSONL data set, plain and gzipped."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from breviary.contract import Example
from data.jsonl import Jsonl
from tests.fuzz.outcomes import Outcome, call

ROWS: tuple[dict[str, Any], ...] = (
    {"id": "a", "context": "The sky is blue.", "question": "What colour is the sky?", "answers": ["blue"]},
    {"context": "Grass – is green.\nYes.", "question": "Grass?", "answers": ["green", "very green"]},
    {
        "context": "T Ann did it.\n\nU No.",
        "question": "Who?",
        "answers": ["Ann"],
        "documents": [
            {"title": "T", "text": "Ann did it.", "is_gold": True},
            {"title": "U", "text": "No.", "is_gold": False},
        ],
    },
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, "", " ", "x" * 100_000, "\u0000", "\ud800", "\u2028", [], {}, [[]], [None], [1], [""]),
    *({"text": 1}, [{"text": "t"}], [{"title": 3, "text": "t"}], "é" * 50),
)
LINES: tuple[bytes, ...] = (
    *(b"", b" ", b"null", b"[]", b"{}", b"{", b'{"context": "c"', b"\xff\xfe", b"\x00", b"[" * 5000, b'{"a":' * 3000),
    *(b'"text"', b"NaN", b"1e999", b"\xef\xbb\xbf{}", b"{}{}", b"\r", b"'single'"),
)


def mutate_rows(rng: random.Random, rows: list[dict[str, Any]]) -> None:
    """A field gets another value, vanishes or is doubled under another name."""
    row = rng.choice(rows)
    key = rng.choice([*row, "context", "gold", "answer_prefix", "choices", "compressed_context"])
    if rng.random() < 0.25:
        row.pop(key, None)
    else:
        row[key] = rng.choice(VALUES)


def mutate_lines(rng: random.Random, lines: list[bytes]) -> None:
    """A line is cut, replaced, inserted, or one of its bytes changes."""
    place = rng.randrange(len(lines))
    line = lines[place]
    kind = rng.randrange(5)
    if kind == 0 and line:
        lines[place] = line[: rng.randrange(len(line))]
    elif kind == 1:
        lines[place] = rng.choice(LINES)
    elif kind == 2:
        lines.insert(place, rng.choice(LINES))
    elif kind == 3 and line:
        data = bytearray(line)
        data[rng.randrange(len(data))] = rng.randrange(256)
        lines[place] = bytes(data)
    else:
        lines[place] = line + rng.choice(LINES)


def run_data(rng: random.Random, home: Path) -> tuple[str, Outcome]:
    """Reads a mutated file: every line that is not blank is an example, or the refusal names file and line."""
    rows = [json.loads(json.dumps(row)) for row in ROWS]
    for _ in range(rng.choice([0, 0, 1, 2])):
        mutate_rows(rng, rows)
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass") for row in rows]
    for _ in range(rng.choice([0, 1, 1, 2])):
        mutate_lines(rng, lines)
    content = b"\n".join(lines) + b"\n" * rng.randint(0, 1)
    is_zipped = rng.random() < 0.3
    file = home / f"data{rng.randrange(10**9)}.jsonl{'.gz' if is_zipped else ''}"
    if is_zipped:
        content = gzip.compress(content, mtime=0)
        if rng.random() < 0.5:
            content = content[: rng.randrange(len(content) + 1)]
        if rng.random() < 0.3 and content:
            data = bytearray(content)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            content = bytes(data)
    elif rng.random() < 0.1:
        file = file.with_name(file.name + ".gz")  # despite its name
    file.write_bytes(content)
    try:
        outcome = call(lambda: _read(file))
    finally:
        file.unlink()
    if outcome.kind == "refused" and file.name not in outcome.text:
        outcome = Outcome("fault", f"the refusal does not name the file: {outcome.text}")
    if outcome.kind == "ran" and not is_zipped:
        wanted = sum(bool(line.strip()) for line in content.decode("utf-8").split("\n"))
        if int(outcome.text) != wanted:
            outcome = Outcome("fault", f"{outcome.text} examples of {wanted} lines")
    return repr(content[:400]), outcome


def _read(file: Path) -> int:
    """Number of examples. Raises: ValueError, as train.py prints it."""
    dataset = Jsonl(str(file), None, None)
    problems = dataset.problems(["train"])
    if problems:
        raise ValueError("\n".join(problems))
    examples: list[Example] = dataset.examples("train")
    for example in examples:
        assert isinstance(example.question, str) and isinstance(example.context, str) and example.answers, example
    return len(examples)
