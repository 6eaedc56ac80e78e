"""The common format: one JSON object per line, plain or gzipped.

{"id": str?, "context": str, "question": str, "answers": [str, ...] or str,
 "documents": [{"title": str, "text": str, "is_gold": bool}, ...]?, "compressed_context": str?,
 "answer_prefix": str?, "choices": [str, ...]?}
"""

from __future__ import annotations

import functools
import gzip
import json
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from breviary.contract import Document, Example
from breviary.runtime.draws import seeded_rng, shuffled
from breviary.runtime.files import parse_json
from breviary.runtime.markup import surrogate_problem
from data.checks import SPLITS, check_split, integer_problems, raise_problems
from data.public.sources import missing_hint
from data.store.bad_lines import BadLines
from data.store.content import content_hash

FORMAT = (
    '{"id": str (optional), "context": str, "question": str, "answers": [str, ...] or str, '
    '"documents": [{"title": str, "text": str, "is_gold": true|false}, ...] (optional), '
    '"compressed_context": str (optional), "answer_prefix": str (optional), "choices": [str, ...] (optional)}'
)
PASSAGE_FORMATS = ("numbered", "plain")


class Jsonl:
    """Examples from JSONL files, one file per split (null = the split does not exist). Files *.gz are gzipped.

    max_documents  number of passages per context: all gold passages, even where they are more, and random
                   distractors. The selection and the order depend only on the example's id, so they are equal in
                   every run and process. None = the context unchanged.
    *_limit        the first n examples of the split; later lines are not read
    max_new_tokens, stop  values of generation.max_new_tokens and generation.stop that the benchmark uses, where the
                   configuration sets none (breviary/config/defaults.py); None = no such values

    metrics        names of data.metrics.METRICS that tables show, the first one is the headline; None = DEFAULT there
    passage_format numbered: the context as it is, passages drawn by max_documents as `Document [i](Title: T) text`
                   between blank lines | plain: contexts with documents are rebuilt, each passage as `T text` on a line
                   of its own (RAM 2602.01840)

    `compressed_context` is the context as another tool compressed it, for compressor=external. `answer_prefix` and
    `choices`: see Example.
    `start` and `end` of a Document delimit the passage's text, without its header or title.
    """

    def __init__(
        self,
        train: str | None,
        validation: str | None,
        test: str | None,
        max_documents: int | None = None,
        train_limit: int | None = None,
        validation_limit: int | None = None,
        test_limit: int | None = None,
        max_new_tokens: int | None = None,
        stop: list[str] | None = None,
        metrics: list[str] | None = None,
        passage_format: str = "numbered",
    ) -> None:
        self.passage_format = passage_format
        self.files = {"train": train, "validation": validation, "test": test}
        self.limits = {"train": train_limit, "validation": validation_limit, "test": test_limit}
        self.max_documents = max_documents
        self.max_new_tokens, self.stop, self.metrics = max_new_tokens, stop, metrics

    def problems(self, splits: list[str]) -> list[str]:
        """An error message for each wrong argument and file of `splits`. Reads one character of each file."""
        problems = []
        for split in splits:
            check_split(split)
            problems += self._file_problems(split)
            if self.limits[split] is not None:
                problems += integer_problems(f"{split}_limit", self.limits[split], 1, None, 100)
        if self.max_documents is not None:
            problems += integer_problems("max_documents", self.max_documents, 1, None, 20)
        if self.passage_format not in PASSAGE_FORMATS:
            problems.append(
                f"dataset.passage_format={self.passage_format}: allowed are {', '.join(PASSAGE_FORMATS)}, e.g. numbered"
            )
        return problems

    def _file_problems(self, split: str) -> list[str]:
        key, name = f"dataset.{split}", self.files[split]
        example = f"for example {key}=path/to/{split}.jsonl.gz"
        if name is None:
            existing = [s for s in SPLITS if self.files[s] is not None]
            return [
                f"{key} is null, so there is no {split} split (given: {', '.join(existing) or 'none'}); "
                f"name a file, {example}"
            ]
        if not Path(name).is_file():
            hint = missing_hint(name)
            return [
                f"{key} is {name!r}, which is not a file; {f'{hint}, or ' if hint else ''}name a JSONL file, {example}"
            ]
        try:
            with _open(name) as file:
                is_empty = not file.read(1)
        except _UNREADABLE as error:
            return [
                f"{key}: {name} cannot be read ({error}); it must be UTF-8 text, gzipped if and only if its "
                f"name ends in .gz, {example}"
            ]
        return [f"{key}: {name} is empty; it must hold one JSON object per line, {example}"] if is_empty else []

    def content_hash(self, split: str) -> str:
        """A hash of the split's file and of the arguments on which its examples depend."""
        raise_problems(self.problems([split]))
        arguments = [self.max_documents, self.passage_format]
        return content_hash([__file__], [self._file(split)], self.limits[split], arguments)

    def _file(self, split: str) -> str:
        name = self.files[split]
        assert name is not None, split  # checked by `problems`
        return name

    def examples(self, split: str) -> list[Example]:
        """The examples of `split` in the order of the file, up to the split's limit.

        Raises: ValueError with the messages of `problems`, or with all bad lines (the first 10, and their number).
        """
        return list(self.stream(split))

    def stream(self, split: str) -> Iterator[Example]:
        """As `examples`, one after another. Bad lines are left out, and raised at the end."""
        raise_problems(self.problems([split]))
        name, lines = self._file(split), functools.partial(read_lines, f"dataset.{split}", self._file(split))
        bad = BadLines()
        has_documents = False
        for number, line in lines(self.limits[split]):
            row, problems = _parse(line)
            if not problems:
                id = _id(row, number)
                bad.see_id(number, id)
                has_documents |= bool(row.get("documents"))
                example, problems = _example(id, row, self.max_documents, self.passage_format)
                if not problems:
                    yield example
            if problems:
                bad.add(number, "; ".join(problems))
        bad.find_repeated(lambda: lines(self.limits[split]), lambda number, line: _id(parse_json(line), number))
        if bad:
            raise ValueError(f"dataset.{split}: {bad.report(name)}\nEach line must be {FORMAT}")
        if not bad.ids:
            raise ValueError(f"dataset.{split}: {name} holds blank lines only; each line must be {FORMAT}")
        if self.max_documents is not None and not has_documents:
            warnings.warn(
                f"dataset.max_documents={self.max_documents} is ignored: {name} has no field 'documents'; "
                "set dataset.max_documents=null",
                stacklevel=2,
            )


_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError)  # gzip.BadGzipFile is an OSError


def _open(name: str):
    # utf-8-sig also reads files without a byte order mark.
    opener = gzip.open if name.endswith(".gz") else open
    return opener(name, "rt", encoding="utf-8-sig")


def read_lines(key: str, name: str, limit: int | None) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of the first `limit` lines that are not blank."""
    count = 0
    try:
        with _open(name) as file:
            for number, line in enumerate(file, 1):
                if limit is not None and count == limit:
                    return
                if line.strip():
                    count += 1
                    yield number, line
    except _UNREADABLE as error:
        raise ValueError(
            f"{key}: {name} breaks off after {count} examples ({error}); it must be complete UTF-8 text, "
            "gzipped if and only if its name ends in .gz"
        ) from error


def _id(row: dict[str, Any], number: int) -> str:
    return str(row.get("id", f"line-{number}"))


def _parse(line: str) -> tuple[dict[str, Any], list[str]]:
    """The object of a line, and its problems."""
    try:
        row = parse_json(line)
    except json.JSONDecodeError as error:
        return {}, [f"not JSON ({error.msg} at column {error.colno})"]
    if not isinstance(row, dict):
        return {}, [f"a JSON {_kind(row)}; it must be an object"]
    return row, _row_problems(row)


def _row_problems(row: dict[str, Any]) -> list[str]:
    """An error message for each wrong field of one object."""
    problems = _missing_fields(row)
    for field in ("context", "question"):
        if field not in row:
            continue
        if not isinstance(row[field], str):
            problems.append(f"{field!r} is {_kind(row[field])}; it must be a string")
        else:
            problems += _character_problems(repr(field), row[field])
    if isinstance(row.get("question"), str) and not row["question"].strip():
        problems.append("'question' is empty; it must hold a question")
    if isinstance(row.get("id", ""), bool) or not isinstance(row.get("id", ""), (str, int)):
        problems.append(f"'id' is {_kind(row['id'])}; it must be a string or a whole number")
    problems += _character_problems("'id'", str(row.get("id", "")))
    if "answers" in row:
        problems += _answer_problems(row["answers"])
    for field in ("compressed_context", "answer_prefix"):
        text = row.get(field)
        if text is not None and not isinstance(text, str):
            problems.append(f"{field!r} is {_kind(text)}; it must be a string")
        else:
            problems += _character_problems(repr(field), text or "")
    problems += _choice_problems(row.get("choices"), row.get("answers"))
    return problems + _document_problems(row.get("documents"))


def _missing_fields(row: dict[str, Any]) -> list[str]:
    """One message for all required fields that an object lacks, with the fields that it has."""
    missing = [field for field in ("context", "question", "answers") if field not in row]
    if not missing:
        return []
    names = f"field {missing[0]!r} is" if len(missing) == 1 else f"fields {', '.join(map(repr, missing))} are"
    return [f"the {names} missing (fields: {', '.join(map(repr, row)) or 'none'})"]


def _answer_problems(answers: Any) -> list[str]:
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list):
        return [f"'answers' is {_kind(answers)}; it must be a list of strings, or one string"]
    if not answers:
        return ["'answers' is an empty list; it must hold at least one string"]
    for answer in answers:
        if not isinstance(answer, str):
            return [f"'answers' holds {_kind(answer)}; it must hold strings only"]
        if not answer.strip():
            return ["'answers' holds an empty string; every answer must have words"]
    return [problem for answer in answers for problem in _character_problems("'answers'", answer)]


def _choice_problems(choices: Any, answers: Any) -> list[str]:
    """Problems of `choices`, in an object with `answers`, which are checked elsewhere."""
    if choices is None:
        return []
    if not isinstance(choices, list) or len(choices) < 2:
        found = "a list of fewer than 2" if isinstance(choices, list) else _kind(choices)
        return [f'\'choices\' is {found}; it must be a list of 2 or more options, for example ["yes", "no"]']
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            found = "an empty string" if isinstance(choice, str) else _kind(choice)
            return [f"'choices' holds {found}; every option must be a string with words"]
    repeated = next((choice for choice in choices if choices.count(choice) > 1), None)
    if repeated is not None:
        return [f"'choices' holds {repeated!r} more than once; options must differ"]
    if isinstance(answers, (str, list)) and not set([answers] if isinstance(answers, str) else answers) & set(choices):
        return ["none of 'answers' is one of 'choices'; the right option must be an answer, verbatim"]
    return [problem for choice in choices for problem in _character_problems("'choices'", choice)]


def _document_problems(documents: Any) -> list[str]:
    if documents is None:
        return []
    if not isinstance(documents, list):
        return [f"'documents' is {_kind(documents)}; it must be a list of objects"]
    for i, document in enumerate(documents, 1):
        if not isinstance(document, dict):
            return [f"document {i} is {_kind(document)}; it must be an object"]
        for field, kind, words in (
            ("title", str, "a string"),
            ("text", str, "a string"),
            ("is_gold", bool, "true or false"),
        ):
            if not isinstance(document.get(field), kind):
                found = _kind(document[field]) if field in document else "missing"
                return [f"{field!r} of document {i} is {found}; it must be {words}"]
            if kind is str and _character_problems("", document[field]):
                return _character_problems(f"{field!r} of document {i}", document[field])
    return []


def _character_problems(name: str, text: str) -> list[str]:
    problem = surrogate_problem(text)
    return [f"{name} {problem}"] if problem else []


def _kind(value: Any) -> str:
    """The JSON type of a value."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _example(id: str, row: dict[str, Any], max_documents: int | None, passage_format: str) -> tuple[Example, list[str]]:
    """The example of a checked object, and the problems of its passages."""
    answers = row["answers"]
    answers = (answers,) if isinstance(answers, str) else tuple(answers)
    passages = row.get("documents") or []
    context: str = row["context"]
    problems: list[str] = []
    if passages and max_documents is not None:
        passages = draw_passages(id, passages, max_documents)
        context, spans = join_passages(passages, passage_format)
    elif passages and passage_format != "numbered":
        context, spans = join_passages(passages, passage_format)
    else:
        rebuilt, spans = join_passages(passages)
        if rebuilt != context:
            spans, problems = _find(passages, context)
    documents = tuple(Document(p["title"], start, end, p["is_gold"]) for p, (start, end) in zip(passages, spans))
    prefix, choices = row.get("answer_prefix") or "", tuple(row.get("choices") or ())
    return (
        Example(id, context, row["question"], answers, documents, row.get("compressed_context"), prefix, choices),
        problems,
    )


def draw_passages(id: str, passages: list[dict[str, Any]], max_documents: int) -> list[dict[str, Any]]:
    """All gold passages and random distractors, `max_documents` passages in all where enough exist, in random order."""
    rng = seeded_rng(id)
    distractors = shuffled(rng, [p for p in passages if not p["is_gold"]])
    gold = [p for p in passages if p["is_gold"]]
    return shuffled(rng, gold + distractors[: max(0, max_documents - len(gold))])


def join_passages(
    passages: list[dict[str, Any]], passage_format: str = "numbered"
) -> tuple[str, list[tuple[int, int]]]:
    """A context of passages in one of PASSAGE_FORMATS (see Jsonl), and (start, end) of each text."""
    parts, spans, at = [], [], 0
    separator = "\n\n" if passage_format == "numbered" else "\n"
    for i, passage in enumerate(passages, 1):
        header, text = f"Document [{i}](Title: {passage['title']}) ", passage["text"]
        if passage_format == "plain":
            title, text = passage["title"].strip(), text.strip()
            header = f"{title} " if title else ""
        spans.append((at + len(header), at + len(header) + len(text)))
        parts.append(header + text)
        at += len(parts[-1]) + len(separator)
    return separator.join(parts), spans


def _find(passages: list[dict[str, Any]], context: str) -> tuple[list[tuple[int, int]], list[str]]:
    """(start, end) of each passage's text in a context of another layout, searched from the end of the last one."""
    spans: list[tuple[int, int]] = []
    problems: list[str] = []
    at = 0
    for i, passage in enumerate(passages, 1):
        start = context.find(passage["text"], at)
        if start < 0:
            problems.append(
                f"the text of document {i} is not in 'context' (searched from character {at} on); "
                "documents must occur in the context verbatim and in order"
            )
            break
        at = start + len(passage["text"])
        spans.append((start, at))
    return spans, problems
