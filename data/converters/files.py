"""Readers of public data sets' files: iterators of rows that know the position of the current row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from breviary.runtime.files import parse_json
from data.converters import UNPACKERS
from data.converters.scrolls import TASKS

NARRATIVEQA_SETS = {"train": "train", "validation": "valid", "test": "test"}
SUFFIXES = {"multi_news": (".src",), "fairytaleqa": (".csv",)}  # of the files to read in a folder; others: JSON
SCROLLS_SETS = {"train": "train.jsonl", "test": "validation.jsonl"}  # the answers of its test.jsonl are hidden
UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, zipfile.BadZipFile)


class FileError(ValueError):
    """A file that cannot be read to its end; the message has its name."""


class RowReader:
    """Iterates over the rows of a split's files, one file after the other; `position` names the current row.

    format    a key of data.converters.CONVERTERS
    files     files of that format, or folders of them
    split     train, validation or test: selects narrativeqa's rows
    context   of narrativeqa: stories or summaries
    stories   of narrativeqa: the folder of stories; None = as `narrativeqa_rows`
    Raises: FileError where a file cannot be read to its end.
    """

    def __init__(self, format: str, files: list[Path], split: str, context: str, stories: str | Path | None) -> None:
        self.format, self.split, self.context, self.stories = format, split, context, stories
        self.position = ""
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
                        self.position = f"{file}, row {number}"
                        yield row
                except UNREADABLE as error:
                    raise FileError(
                        f"{file} cannot be read ({error}); it must be complete UTF-8 text, gzipped if and only "
                        "if its name ends in .gz"
                    ) from error

    def _files(self, path: Path) -> list[Path]:
        """The file itself, or a folder's files with the suffixes of the format."""
        if self.format == "narrativeqa" or not path.is_dir():
            return [path]
        if self.format == "scrolls":
            return [_required_file(path, _scrolls_member(path, self.split))]
        suffixes = SUFFIXES.get(self.format, (".json", ".jsonl"))
        files = sorted(file for file in path.iterdir() if file.name.removesuffix(".gz").endswith(suffixes))
        if not files:
            raise FileError(f"{path}: no {' or '.join(suffixes)} file in this folder")
        return files

    def _rows_of(self, file: Path) -> Iterator[Any]:
        if self.format == "narrativeqa":
            return narrativeqa_rows(file, NARRATIVEQA_SETS[self.split], self.context, self.stories)
        if self.format == "multi_news":
            return source_target_rows(file)
        if self.format == "fairytaleqa":
            return fairytaleqa_rows(file)
        if self.format == "scrolls":
            return scrolls_rows(file, self.split)
        rows = json_rows(file, UNPACKERS.get(self.format))
        return _with_meeting_names(rows, file) if self.format == "qmsum" else rows


@contextmanager
def open_text(file: Path, newline: str | None = None) -> Iterator[io.TextIOBase]:
    """A UTF-8 text file, plain or gzipped, without its byte order mark."""
    opener = gzip.open if file.name.endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8-sig", newline=newline) as stream:
        yield stream


def json_rows(file: Path, unpack: Callable[[Any], Iterator[Any]] | None = None) -> Iterator[Any]:
    """Rows of a JSON array, of JSON lines, or, through `unpack`, of a single JSON value."""
    with open_text(file) as stream:
        first = next((line for line in stream if line.strip()), "")
        try:
            has_lines = not first.lstrip().startswith("[") and isinstance(parse_json(first), dict)
        except json.JSONDecodeError:
            has_lines = False
        second = next((line for line in stream if line.strip()), "") if has_lines else ""
        if not second:  # a single value, on one line or on several
            yield from _single_value_rows(file, first + stream.read(), unpack)
            return
        stream.seek(0)
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _parse(line, f"{file}, line {number}")


def _single_value_rows(file: Path, text: str, unpack: Callable[[Any], Iterator[Any]] | None) -> Iterator[Any]:
    value = _parse(text, str(file))
    if isinstance(value, list):
        yield from value
        return
    try:
        yield from unpack(value) if unpack else [value]
    except ValueError as error:
        raise FileError(f"{file}: {error}") from error


def _parse(text: str, position: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise FileError(f"{position}: not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from error


def _with_meeting_names(rows: Iterable[Any], file: Path) -> Iterator[Any]:
    """Rows with "meeting", the name of the meeting: the file's name, numbered where the file holds several meetings."""
    name = file.name.removesuffix(".gz")
    for number, row in enumerate(rows):
        meeting = Path(name).stem if name.endswith(".json") else f"{Path(name).stem}-{number}"
        yield {"meeting": meeting, **row} if isinstance(row, dict) else row


def source_target_rows(file: Path) -> Iterator[dict[str, str]]:
    """Lines of a .src file, each with the same line of the .tgt file in its folder."""
    base, end = (file.name[:-3], ".gz") if file.name.endswith(".gz") else (file.name, "")
    if not base.endswith(".src"):
        raise FileError(f"{file}: multi_news takes the .src file and reads the .tgt file in the same folder")
    other = file.with_name(f"{base.removesuffix('.src')}.tgt{end}")
    if not other.is_file():
        raise FileError(f"{file}: there is no {other.name} in the same folder")
    with open_text(file, "\n") as sources, open_text(other, "\n") as targets:
        for number, source in enumerate(sources, 1):
            target = next(targets, None)
            if target is None:
                raise FileError(f"{other} ends before line {number} of {file.name}; both must have a line for each row")
            yield {"source": source, "target": target}
        if next(targets, None) is not None:
            raise FileError(f"{other} has more lines than {file.name}; both must have a line for each row")


def csv_rows(file: Path, columns: Iterable[str]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, which must have `columns` and the same number of cells in every row."""
    with open_text(file, "") as stream:
        reader = csv.DictReader(stream)
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if missing:
            raise FileError(
                f"{file}: no column {', '.join(map(repr, missing))} (columns: "
                f"{', '.join(map(repr, reader.fieldnames or [])) or 'none'})"
            )
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise FileError(f"{file}, row {number}: not {len(reader.fieldnames or [])} cells, as in the header")
            yield row


def fairytaleqa_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Questions of a story, with its name and sections from section-stories/<split>/<story>-story.csv."""
    story = file.name.removesuffix(".gz").removesuffix("-questions.csv")
    text = file.absolute().parents[2] / "section-stories" / file.absolute().parent.name / f"{story}-story.csv"
    if not text.is_file():
        raise FileError(f"{file}: its story {text} does not exist")
    sections = [row["text"] for row in csv_rows(text, ["text"])]
    questions = csv_rows(file, ["question", *(f"answer{number}" for number in range(1, 7))])
    for place, row in enumerate(questions):
        yield {**row, "story": story, "place": place, "sections": sections}


def scrolls_rows(file: Path, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a SCROLLS task: {"task", "id", "input", "outputs": [str]}, as `data.converters.scrolls` takes them.

    file  TASK.zip as published, which holds TASK/{train,validation,test}.jsonl, or one of these files in a folder TASK
    Rows of train are one for each answer, as published. In other splits the answers of one input, which have its id,
    are one row; the file is read twice, so that one input at a time is in memory.
    """
    task = file.stem if file.suffix == ".zip" else file.absolute().parent.name
    if task not in TASKS:
        raise FileError(
            f"{file}: is of no task of SCROLLS; give TASK.zip or TASK/validation.jsonl with TASK one of "
            f"{', '.join(TASKS)}"
        )
    outputs: dict[str, list[str]] = {}
    if split != "train":
        for row in _scrolls_lines(file, split):
            if isinstance(row, dict) and row.get("output") is not None:
                outputs.setdefault(str(row.get("id")), []).append(row["output"])
    seen = set()
    for row in _scrolls_lines(file, split):
        if not isinstance(row, dict):
            yield row
        elif split == "train":
            answers = [] if row.get("output") is None else [row["output"]]
            yield {"task": task, "id": row.get("pid", row.get("id")), "input": row.get("input"), "outputs": answers}
        elif (id := str(row.get("id"))) not in seen:
            seen.add(id)
            yield {"task": task, "id": id, "input": row.get("input"), "outputs": outputs.get(id, [])}


def _scrolls_member(file: Path, split: str) -> str:
    """The file of a split in TASK.zip or a folder TASK. Raises: FileError for validation, which is test here."""
    if split not in SCROLLS_SETS:
        raise FileError(
            f"--{split} {file}: the answers of SCROLLS' test split are hidden, so that its validation split is test "
            f"here, and there is no third one; leave out --{split} and train with train.eval_examples=0"
        )
    return SCROLLS_SETS[split]


def _scrolls_lines(file: Path, split: str) -> Iterator[Any]:
    if file.suffix != ".zip":
        yield from json_rows(file)
        return
    yield from zip_rows(file, _scrolls_member(file, split))


def zip_rows(file: Path, name: str) -> Iterator[Any]:
    """Lines of the one member of a zip that is called `name`, in any folder. Raises: FileError where there is none."""
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.namelist() if Path(member).name == name]
        if len(members) != 1:
            raise FileError(f"{file}: must hold one {name}, but holds {', '.join(archive.namelist()) or 'nothing'}")
        with io.TextIOWrapper(archive.open(members[0]), encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _parse(line, f"{file}, {members[0]}, line {number}")


def narrativeqa_rows(folder: Path, set_name: str, context: str, stories: str | Path | None) -> Iterator[dict[str, Any]]:
    """Questions of a set, each with its document's summary or story as "context"; None where the story is missing.

    Stories are files <document_id>.content in `stories`; by default in the folder's tmp/ or in the folder itself.
    """
    documents = {row["document_id"] for row in csv_rows(_required_file(folder, "documents.csv"), ["document_id"])}
    home = _stories_folder(folder, stories) if context == "stories" else None
    texts: dict[str, str | None] = _summaries(folder) if context == "summaries" else {}
    qaps = _required_file(folder, "qaps.csv")
    for number, row in enumerate(csv_rows(qaps, ["document_id", "set", "question", "answer1", "answer2"]), 1):
        if row["set"] != set_name:
            continue
        document = row["document_id"]
        if document not in documents or (home is None and document not in texts):
            raise FileError(
                f"{qaps}, row {number}: the document {document!r} has no row in "
                f"{'summaries.csv' if document in documents else 'documents.csv'}"
            )
        if home is not None and document not in texts:
            # Questions are sorted by document, so one story is held in memory.
            texts = {document: _read_story(home / f"{document}.content")}
        yield {**row, "context": texts[document]}


def _summaries(folder: Path) -> dict[str, str | None]:
    places = (folder / "summaries.csv", folder / "third_party/wikipedia/summaries.csv")
    file = next((path for path in places if path.is_file()), None)
    if file is None:
        raise FileError(f"{folder}: no summaries.csv in it or in its third_party/wikipedia")
    return {row["document_id"]: row["summary"] for row in csv_rows(file, ["document_id", "summary"])}


def _stories_folder(folder: Path, stories: str | Path | None) -> Path:
    places = [Path(stories).expanduser()] if stories else [folder / "tmp", folder]
    home = next((place for place in places if any(place.glob("*.content"))), None)
    if home is None:
        raise FileError(
            f"{folder}: no .content file in {' or '.join(map(str, places))}; name the folder of stories "
            "with --stories, or use --context summaries"
        )
    return home


def _required_file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise FileError(f"{folder}: no {name} in this folder")
    return folder / name


def _read_story(file: Path) -> str | None:
    if not file.is_file():
        return None
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:  # web pages in various encodings
        return content.decode("latin-1")
