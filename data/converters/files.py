"""Reading the files of the sources: rows, one after the other, and where each of them stands."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.converters import UNPACKED

SETS = {"train": "train", "validation": "valid", "test": "test"}  # of NarrativeQA
ENDS = {"multi_news": (".src",), "fairytaleqa": (".csv",)}  # of the files of a folder that are read; else JSON
UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)


class BadFile(ValueError):
    """A file that cannot be read on; the message names it."""


class Rows:
    """An iterator of the rows of a split's files, one after the other; `where` names the last one given.

    format    one of data.converters.CONVERTERS
    files     files of it, or folders of them
    split     train, validation or test: which lines of narrativeqa are meant
    context   of narrativeqa: stories or summaries; `stories` is the folder of the former, None = as `narrativeqa_rows`
    Raises BadFile where a file cannot be read on.
    """

    def __init__(self, format: str, files: list[Path], split: str, context: str, stories: str | Path | None) -> None:
        self.format, self.split, self.context, self.stories = format, split, context, stories
        self.where = ""
        self._rows = self._read(files)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._rows)

    def _read(self, files: list[Path]) -> Iterator[Any]:
        for path in files:
            for file in self._files(path):
                try:
                    for number, row in enumerate(self._rows_of(file), 1):
                        self.where = f"{file}, row {number}"
                        yield row
                except UNREADABLE as error:
                    raise BadFile(
                        f"{file} cannot be read ({error}); it must be whole UTF-8 text, gzipped if and only "
                        "if its name ends in .gz"
                    ) from error

    def _files(self, path: Path) -> list[Path]:
        """The file itself, or the files of a folder that its format reads."""
        if self.format == "narrativeqa" or not path.is_dir():
            return [path]
        ends = ENDS.get(self.format, (".json", ".jsonl"))
        found = sorted(file for file in path.iterdir() if file.name.removesuffix(".gz").endswith(ends))
        if not found:
            raise BadFile(f"{path}: no {' or '.join(ends)} file in this folder")
        return found

    def _rows_of(self, file: Path) -> Iterator[Any]:
        if self.format == "narrativeqa":
            return narrativeqa_rows(file, SETS[self.split], self.context, self.stories)
        if self.format == "multi_news":
            return pair_rows(file)
        if self.format == "fairytaleqa":
            return fairytale_rows(file)
        rows = json_rows(file, UNPACKED.get(self.format))
        return _named(rows, file) if self.format == "qmsum" else rows


@contextmanager
def opened(file: Path, newline: str | None = None) -> Iterator[io.TextIOBase]:
    """A text file, plain or gzipped, a byte order mark left out."""
    opener = gzip.open if file.name.endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8-sig", newline=newline) as stream:
        yield stream


def json_rows(file: Path, unpack: Callable[[Any], Iterator[Any]] | None = None) -> Iterator[Any]:
    """Rows of a JSON array, of lines of JSON, or, by `unpack`, of one JSON value."""
    with opened(file) as stream:
        first = next((line for line in stream if line.strip()), "")
        try:
            lines = not first.lstrip().startswith("[") and isinstance(json.loads(first), dict)
        except json.JSONDecodeError:
            lines = False
        rest = next((line for line in stream if line.strip()), "") if lines else ""
        if not rest:  # one value: over many lines, or on the only one
            yield from _whole(file, first + stream.read(), unpack)
            return
        stream.seek(0)
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _parsed(line, f"{file}, line {number}")


def _whole(file: Path, text: str, unpack: Callable[[Any], Iterator[Any]] | None) -> Iterator[Any]:
    value = _parsed(text, str(file))
    if isinstance(value, list):
        yield from value
        return
    try:
        yield from unpack(value) if unpack else [value]
    except ValueError as error:
        raise BadFile(f"{file}: {error}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadFile(f"{where}: not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from error


def _named(rows: Iterable[Any], file: Path) -> Iterator[Any]:
    """Meetings with their names: the file's where it holds one."""
    name = file.name.removesuffix(".gz")
    for number, row in enumerate(rows):
        one = name.endswith(".json")
        yield (
            {"meeting": Path(name).stem if one else f"{Path(name).stem}-{number}", **row}
            if isinstance(row, dict)
            else row
        )


def pair_rows(file: Path) -> Iterator[dict[str, str]]:
    """Lines of a .src file with those of the .tgt file beside it, which must be as many."""
    base, end = (file.name[:-3], ".gz") if file.name.endswith(".gz") else (file.name, "")
    if not base.endswith(".src"):
        raise BadFile(f"{file}: multi_news takes the .src file; .tgt is looked for beside it")
    other = file.with_name(f"{base.removesuffix('.src')}.tgt{end}")
    if not other.is_file():
        raise BadFile(f"{file}: {other.name} is not beside it")
    with opened(file, "\n") as sources, opened(other, "\n") as targets:
        for number, source in enumerate(sources, 1):
            target = next(targets, None)
            if target is None:
                raise BadFile(f"{other} ends before line {number} of {file.name}; both must have a line for each row")
            yield {"source": source, "target": target}
        if next(targets, None) is not None:
            raise BadFile(f"{other} has more lines than {file.name}; both must have a line for each row")


def table_rows(file: Path, columns: Iterable[str]) -> Iterator[dict[str, str]]:
    """Lines of a CSV file, which must have `columns` and as many cells everywhere."""
    with opened(file, "") as stream:
        reader = csv.DictReader(stream)
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if missing:
            raise BadFile(
                f"{file}: no column {', '.join(map(repr, missing))} (columns: "
                f"{', '.join(map(repr, reader.fieldnames or [])) or 'none'})"
            )
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise BadFile(f"{file}, row {number}: not {len(reader.fieldnames)} cells, as the head has")
            yield row


def fairytale_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Questions of a story with its name and sections, from section-stories/<split>/<story>-story.csv."""
    story = file.name.removesuffix(".gz").removesuffix("-questions.csv")
    text = file.absolute().parents[2] / "section-stories" / file.absolute().parent.name / f"{story}-story.csv"
    if not text.is_file():
        raise BadFile(f"{file}: its story {text} is not there")
    sections = [row["text"] for row in table_rows(text, ["text"])]
    questions = table_rows(file, ["question", *(f"answer{number}" for number in range(1, 7))])
    for place, row in enumerate(questions):
        yield {**row, "story": story, "place": place, "sections": sections}


def narrativeqa_rows(folder: Path, name: str, context: str, stories: str | Path | None) -> Iterator[dict[str, Any]]:
    """Questions of the set `name`, each with its document's summary or story; None where a story is not there.

    Stories are <document_id>.content in `stories`, by default the folder's tmp/ or the folder itself.
    """
    documents = {row["document_id"] for row in table_rows(_part(folder, "documents.csv"), ["document_id"])}
    home = _stories_folder(folder, stories) if context == "stories" else None
    texts = _summaries(folder) if context == "summaries" else {}
    qaps = _part(folder, "qaps.csv")
    for number, row in enumerate(table_rows(qaps, ["document_id", "set", "question", "answer1", "answer2"]), 1):
        if row["set"] != name:
            continue
        document = row["document_id"]
        if document not in documents or (home is None and document not in texts):
            raise BadFile(
                f"{qaps}, row {number}: the document {document!r} has no line in "
                f"{'summaries.csv' if document in documents else 'documents.csv'}"
            )
        if home is not None and document not in texts:
            texts = {document: _story(home / f"{document}.content")}  # questions stand by document: one is held
        yield {**row, "context": texts[document]}


def _summaries(folder: Path) -> dict[str, str]:
    file = next(
        (path for path in (folder / "summaries.csv", folder / "third_party/wikipedia/summaries.csv") if path.is_file()),
        None,
    )
    if file is None:
        raise BadFile(f"{folder}: no summaries.csv in it or in its third_party/wikipedia")
    return {row["document_id"]: row["summary"] for row in table_rows(file, ["document_id", "summary"])}


def _stories_folder(folder: Path, stories: str | Path | None) -> Path:
    places = [Path(stories).expanduser()] if stories else [folder / "tmp", folder]
    home = next((place for place in places if any(place.glob("*.content"))), None)
    if home is None:
        raise BadFile(
            f"{folder}: no .content file in {' or '.join(map(str, places))}; name the folder of stories "
            "with --stories, or take --context summaries"
        )
    return home


def _part(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise BadFile(f"{folder}: no {name} in this folder")
    return folder / name


def _story(file: Path) -> str | None:
    if not file.is_file():
        return None
    held = file.read_bytes()
    try:
        return held.decode("utf-8-sig")
    except UnicodeDecodeError:  # pages of the web, of many encodings
        return held.decode("latin-1")
