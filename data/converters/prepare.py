"""Converts a public data set's files into the common JSONL format, one file per split.

Within a split ids are unique. No two splits share a context, or a question with the same gold passages: what test has
is removed from validation and train, what validation has from train. Splits are moved into place together, after each
has been loaded with data.jsonl.Jsonl and compared with what was written.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from breviary.contract import Example
from breviary.runtime.files import variable_folder
from data.checks import SPLITS, raise_problems
from data.converters import CONVERTERS
from data.converters.fields import Converted, Skipped
from data.converters.files import FileError, RowReader
from data.converters.suites import SUITES, SuiteRows, move_into_place, suite_files
from data.jsonl import Jsonl

MAX_SHOWN = 10  # bad rows in an error message
# Others: the format's name. None = the format of several data sets.
FOLDERS = {"multi_news": "multinews", "kv_retrieval": None, "longbench": None, "scrolls": None, "prompted": None}
EXAMPLE_NAMES = {"kv_retrieval": "kv_retrieval_75", "longbench": "gov_report", "scrolls": "scrolls_qasper"}


@dataclass
class SplitCounts:
    """Statistics of a prepared split."""

    examples: int = 0
    contexts: int = 0
    words: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> questions
    renamed_ids: int = 0

    def report(self) -> str:
        """The counts on one line."""
        mean = self.words / self.examples
        line = f"{self.examples:,} examples, {self.contexts:,} contexts, {mean:,.0f} words on average"
        line += f"; skipped: {self.reasons()}" if self.skipped else ""
        return line + (f"; {self.renamed_ids:,} duplicate ids renamed to ID~2, ID~3, ..." if self.renamed_ids else "")

    def reasons(self) -> str:
        """Numbers of skipped questions by reason, the most frequent first."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.most_common())


def prepare(
    format: str,
    files: dict[str, Sequence[str | Path]],
    output: str | Path | None = None,
    context: str = "stories",
    stories: str | Path | None = None,
    max_words: int | None = None,
    name: str | None = None,
) -> tuple[Path, dict[str, SplitCounts]]:
    """Writes a prepared data set; returns its folder and each split's statistics.

    format     a key of data.converters.CONVERTERS
    files      {split: the data set's files}; a split that is missing or empty is not written
    output     a folder that does not exist or is empty; None = `name` in `data_folder`
    name       of the folder; None = the format's own
    context    of narrativeqa: stories or summaries; `stories` is the folder of stories
    max_words  longer contexts are skipped; None = no limit
    Raises: ValueError for wrong arguments, files and rows: one line each, with file and row.
    """
    paths = {split: [Path(file).expanduser() for file in files[split]] for split in SPLITS if files.get(split)}
    folder = _output_folder(format, output, name)
    raise_problems(_problems(format, paths, folder, max_words))
    folder.parent.mkdir(parents=True, exist_ok=True)
    split_of_key: dict[bytes, str] = {}
    counts, digests = {}, {}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temp:
        partial = Path(temp) / "splits"
        partial.mkdir()
        for split in reversed(paths):
            rows = RowReader(format, paths[split], split, context, stories)
            writer = _SplitWriter(split, split_of_key, max_words)
            counts[split], digests[split] = writer.write(
                partial / f"{split}.jsonl.gz", _convert(rows, CONVERTERS[format])
            )
        train, validation, test = (str(partial / f"{name}.jsonl.gz") if name in paths else None for name in SPLITS)
        for split in paths:
            loaded = _digest(Jsonl(train, validation, test).examples(split))
            assert loaded == digests[split], f"{split}: loaded {loaded}, written {digests[split]}"
        partial.replace(folder)  # replaces an empty folder
    return folder, {split: counts[split] for split in paths}


def prepare_suite(
    format: str, files: Sequence[str | Path], output: str | Path | None = None, max_words: int | None = None
) -> tuple[Path, dict[str, SplitCounts]]:
    """Writes TASK.jsonl.gz for each task of a suite; returns their folder and each task's statistics.

    format  a key of data.converters.suites.SUITES
    files   the source's files, or folders of them
    output  a folder; None = the format's name in `data_folder`. Tasks that are there must not be among `files`
    Raises: ValueError as `prepare`.
    """
    tasks = suite_files(format, [Path(file).expanduser() for file in files])
    folder = _output_folder(format, output, None)
    there = [task for task in tasks if (folder / f"{task}.jsonl.gz").exists()]
    problems = [] if tasks else ["no files: name the suite's files or their folder with --test"]
    problems += (
        [f"{folder} already has {', '.join(there)}; remove their files or name another --output"] if there else []
    )
    raise_problems(problems + ([f"{folder} is no folder"] if folder.exists() and not folder.is_dir() else []))
    counts = {}

    def write(partial: Path) -> list[str]:
        for task, paths in tasks.items():
            file = partial / f"{task}.jsonl.gz"
            rows = _convert(SuiteRows(format, task, paths), SUITES[format].convert)
            try:
                counts[task], digest = _SplitWriter("test", {}, max_words).write(file, rows)
            except ValueError as error:
                raise ValueError("\n".join(f"{task}: {line}" for line in str(error).split("\n"))) from error
            loaded = _digest(Jsonl(None, None, str(file)).examples("test"))
            assert loaded == digest, f"{task}: loaded {loaded}, written {digest}"
        return [f"{task}.jsonl.gz" for task in tasks]

    move_into_place(folder, write)
    return folder, counts


def data_folder() -> Path:
    """The folder of prepared data sets: BREVIARY_DATA, else data/ in BREVIARY_CACHE, else ~/.cache/breviary/data."""
    cache = variable_folder("BREVIARY_CACHE", "~/.cache/breviary")
    return variable_folder("BREVIARY_DATA", cache / "data")


def _output_folder(format: str, output: str | Path | None, name: str | None) -> Path:
    if format not in (*CONVERTERS, *SUITES):
        raise ValueError(f"format {format!r}: allowed are {', '.join((*CONVERTERS, *SUITES))}")
    if output is not None:
        return Path(output).expanduser().resolve()
    if name is not None and (not name.strip() or Path(name).name != name):
        raise ValueError(f"--name {name}: must be the name of a folder without a path, e.g. --name gov_report")
    name = name or FOLDERS.get(format, format)
    if name is None:
        raise ValueError(
            f"{format} is the format of several data sets: name the folder of this one, for example "
            f"--name {EXAMPLE_NAMES[format]} (in {data_folder()})"
        )
    return (data_folder() / name).resolve()


def _problems(format: str, files: dict[str, list[Path]], folder: Path, max_words: int | None) -> list[str]:
    problems = [] if files else ["no files: name the data set's files with --train, --validation and --test"]
    for split, paths in files.items():
        for path in paths:
            if not path.exists():
                problems.append(f"--{split} {path}: no such file or folder")
            elif format == "narrativeqa" and not path.is_dir():
                problems.append(f"--{split} {path}: narrativeqa takes the folder with documents.csv and qaps.csv")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problems.append(
            f"{folder} already exists: splits are checked against each other, so prepare them all at once; "
            "remove it or name another --output"
        )
    if max_words is not None and max_words < 1:
        problems.append(f"--max-words {max_words}: must be a whole number of at least 1, e.g. 24000")
    return problems


def _convert(
    rows: RowReader | SuiteRows, convert: Callable[[Iterable[Any]], Iterator[Converted]]
) -> Iterator[dict[str, Any] | Skipped]:
    """The examples of all rows. Raises: one ValueError for all bad rows, after the last row."""
    bad: list[str] = []
    while True:
        try:
            for row in convert(rows):
                if not bad:
                    yield row
            break
        except FileError as error:  # no row can be read after it
            bad.append(str(error))
            break
        except ValueError as error:  # the next call of the converter continues after this row
            bad.append(f"{rows.position}: {error}")
    more = [f"... and {len(bad) - MAX_SHOWN} more bad rows"] if len(bad) > MAX_SHOWN else []
    raise_problems(bad[:MAX_SHOWN] + more)


class _SplitWriter:
    """Writes the examples of one split, without those that a split already written has.

    split_of_key  {key of `_keys`: split that has it}; the keys of this split are added
    """

    def __init__(self, split: str, split_of_key: dict[bytes, str], max_words: int | None) -> None:
        self.split, self.split_of_key, self.max_words = split, split_of_key, max_words
        self.counts = SplitCounts()
        self.content_of_id: dict[str, bytes] = {}

    def write(self, file: Path, rows: Iterable[dict[str, Any] | Skipped]) -> tuple[SplitCounts, str]:
        """Writes a gzipped JSONL file; returns its statistics and the digest of its examples (see `_digest`)."""
        counts, contexts, own_keys = self.counts, set(), set()
        digest = hashlib.sha256()
        with open(file, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            for row in rows:
                if isinstance(row, Skipped):
                    counts.skipped[row.reason] += 1
                    continue
                keys, content, words = _keys(row), _content_hash(row), len(row["context"].split())
                reason = self._reason_to_skip(row["id"], keys, content, words)
                if reason is not None:
                    counts.skipped[reason] += 1
                    continue
                row["id"] = self._unique_id(row["id"], content)
                own_keys.update(keys)
                contexts.add(hash(row["context"]))
                counts.examples, counts.words = counts.examples + 1, counts.words + words
                packed.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
                gold = [document["is_gold"] for document in row.get("documents", [])]
                suite = [row.get("answer_prefix", ""), row.get("choices", [])]
                digest.update(_digest_part(row["id"], row["context"], row["question"], row["answers"], gold, *suite))
        if not counts.examples:
            raise ValueError(f"--{self.split}: no example remains ({counts.reasons() or 'the files have no rows'})")
        counts.contexts = len(contexts)
        self.split_of_key |= dict.fromkeys(own_keys, self.split)
        return counts, digest.hexdigest()

    def _reason_to_skip(self, id: str, keys: list[bytes], content: bytes, words: int) -> str | None:
        other = next((self.split_of_key[key] for key in keys if key in self.split_of_key), None)
        if other is not None:
            return f"context or question with its gold passages in {other}"
        if self.max_words is not None and words > self.max_words:
            return f"context above {self.max_words} words"
        return "duplicate" if self.content_of_id.get(id) == content else None

    def _unique_id(self, id: str, content: bytes) -> str:
        """The id, with the first of ~2, ~3, ... that makes it unique where another example of the split has it."""
        self.counts.renamed_ids += id in self.content_of_id
        number, unique = 1, id
        while unique in self.content_of_id:
            number += 1
            unique = f"{id}~{number}"
        self.content_of_id[unique] = content
        return unique


def _content_hash(row: dict[str, Any]) -> bytes:
    return _sha256([row["context"], row["question"], row["answers"]])


def _keys(row: dict[str, Any]) -> list[bytes]:
    """Hashes of what no two splits may share: context, whatever its order of passages; question with gold passages."""
    passages = row.get("documents", [])
    gold = sorted(passage["text"] for passage in passages if passage["is_gold"])
    texts = [sorted(passage["text"] for passage in passages) or row["context"]]
    texts += [[row["question"], gold]] if gold else []
    return [_sha256(text) for text in texts]


def _sha256(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value).encode()).digest()


def _digest(examples: Iterable[Example]) -> str:
    """sha256 of everything that the examples and the rows written have in common."""
    digest = hashlib.sha256()
    for e in examples:
        gold = [document.is_gold for document in e.documents]
        suite = [e.answer_prefix, list(e.choices)]
        digest.update(_digest_part(e.id, e.context, e.question, list(e.answers), gold, *suite))
    return digest.hexdigest()


def _digest_part(*parts: Any) -> bytes:
    return json.dumps(parts).encode()
