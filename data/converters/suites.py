"""Prepares suites of several tasks: the source's own files become one JSONL file for each task, TASK.jsonl.gz.

SUITES  {format: its converter, its tasks, and how a file's name states the task}
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.checks import raise_problems
from data.converters.fields import Converted
from data.converters.files import UNREADABLE, FileError, json_rows, zip_rows
from data.converters.helmet import HELMET_TASKS, RAG_TASKS, helmet
from data.converters.infinitebench import INFINITEBENCH_TASKS, infinitebench
from data.converters.longbench import E_TASKS, V1_TASKS, longbench_v1, longbench_v2
from data.converters.scbench import SCBENCH_TASKS, scbench
from data.converters.zero_scrolls import ZERO_SCROLLS_TASKS, zero_scrolls


def _of_stem(path: Path) -> str:
    """TASK.jsonl, TASK.jsonl.gz, TASK.zip."""
    return path.name.partition(".")[0]


def _of_folder(path: Path) -> str:
    """TASK.zip, or TASK/validation.jsonl."""
    return _of_stem(path) if path.suffix == ".zip" else path.absolute().parent.name


def _of_helmet(path: Path) -> str:
    """json_kv/FILE, ruler's TASK/FILE, or kilt/TASK-FILE."""
    folder = path.absolute().parent.name
    return folder if folder in HELMET_TASKS else re.split(r"[-_]", path.name)[0]


@dataclass(frozen=True)
class Suite:
    """One suite.

    convert  from rows with "task" to examples
    tasks    names of the files, without suffix
    task_of  the task of a source's file; a name that is none of `tasks` is no file of the suite
    """

    convert: Callable[[Iterable[Any]], Iterator[Converted]]
    tasks: tuple[str, ...]
    task_of: Callable[[Path], str] = _of_stem


SUITES = {
    "longbench_v1": Suite(longbench_v1, (*V1_TASKS, *(f"{task}_e" for task in E_TASKS))),
    "longbench_v2": Suite(longbench_v2, ("qa",), lambda path: {"data": "qa"}.get(_of_stem(path), _of_stem(path))),
    "zero_scrolls": Suite(zero_scrolls, ZERO_SCROLLS_TASKS, _of_folder),
    "infinitebench": Suite(infinitebench, INFINITEBENCH_TASKS),
    "scbench": Suite(scbench, SCBENCH_TASKS, lambda path: _of_stem(path).removeprefix("scbench_")),
    "helmet": Suite(helmet, HELMET_TASKS, _of_helmet),
}
_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".zip")
_DEMONSTRATIONS = re.compile(r"_k3_")  # of HELMET's questions on passages


class SuiteRows:
    """Iterates over the rows of a task's files, each with "task"; `position` names the current row.

    Raises: FileError where a file cannot be read to its end.
    """

    def __init__(self, format: str, task: str, files: Sequence[Path]) -> None:
        self.format, self.task, self.position = format, task, ""
        self._rows = self._read(files)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._rows)

    def _read(self, files: Sequence[Path]) -> Iterator[Any]:
        added: dict[str, Any] = {"task": self.task}
        if self.format == "helmet" and self.task in RAG_TASKS:
            added["demonstrations"] = [
                row for file in files if _DEMONSTRATIONS.search(file.name) for row in _rows(file)
            ]
            files = [file for file in files if not _DEMONSTRATIONS.search(file.name)]
        for file in files:
            for number, row in enumerate(_rows(file), 1):
                self.position = f"{file}, row {number}"
                yield {**row, **added} if isinstance(row, dict) else row


def _rows(file: Path) -> Iterator[Any]:
    try:
        if file.suffix == ".zip":
            yield from zip_rows(file, "validation.jsonl")
        else:
            yield from json_rows(file, lambda value: iter(value["data"] if set(value) == {"data"} else [value]))
    except UNREADABLE as error:
        raise FileError(f"{file} cannot be read ({error}); it must be complete UTF-8 text, or TASK.zip") from error


def suite_files(format: str, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """{task: its files}, of files and of all files below folders, in the order of the suite's tasks.

    Raises: ValueError for a path that does not exist or belongs to no task.
    """
    suite, problems = SUITES[format], []
    found: dict[str, list[Path]] = {}
    for path in paths:
        if not path.exists():
            problems.append(f"--test {path}: no such file or folder")
            continue
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        files = [file for file in inside if file.name.endswith(_SUFFIXES) and suite.task_of(file) in suite.tasks]
        if not files:
            problems.append(f"--test {path}: no file of a task of {format}; tasks are {', '.join(suite.tasks)}")
        for file in files:
            found.setdefault(suite.task_of(file), []).append(file)
    for task, files in found.items():
        several = [file for file in files if not (format == "helmet" and _DEMONSTRATIONS.search(file.name))]
        if len(several) != 1:
            names = ", ".join(map(str, several or files))
            problems.append(
                f"{task}: {len(several)} files of questions ({names}); give the one of one length and split"
            )
    raise_problems(problems)
    return {task: found[task] for task in suite.tasks if task in found}


def move_into_place(folder: Path, write: Callable[[Path], Sequence[str]]) -> None:
    """Moves the files that `write` made in a temporary folder into `folder`, all or none of them written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as temp:
        for name in write(Path(temp)):
            os.replace(Path(temp) / name, folder / name)
