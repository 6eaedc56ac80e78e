"""Examples on disk: a file of canonical JSON, whose sha256 is the hash of the data. No process holds their text."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from breviary.contract import Document, Example
from breviary.runtime.distributed import print_progress
from breviary.runtime.files import write_json
from data.store.arrow import Rows, RowWriter
from data.store.folders import make_once

LAYOUT = 1  # increased when the files or their meaning change, so that older folders are ignored
PROGRESS_EVERY = 1000  # examples
PROGRESS_AFTER = 5.0  # seconds without progress lines, so that small data sets print none
_FILE, _META = "examples.arrow", "meta.json"
# Fields that were added after the first hashes were stored, with the value that they have where they are not set.
_UNSET = {
    field.name: field.default for field in fields(Example) if field.default is not MISSING and field.name != "documents"
}
_SCHEMA = pa.schema([("example", pa.string()), ("context", pa.uint64()), ("pair", pa.uint64())])


class StoredExamples(Sequence[Example]):
    """The examples of a folder, each decoded on access.

    data_hash  sha256 of the examples
    Pickled by file name. Raises: ValueError where the folder is damaged.
    """

    def __init__(self, folder: Path, owner: Any = None) -> None:
        self.folder, self._owner = folder, owner  # owner: of a temporary folder, which lives as long as this object
        try:
            meta = json.loads((folder / _META).read_bytes())
            self._rows = Rows([folder / _FILE])
            assert len(self._rows) == meta["examples"], (len(self._rows), meta["examples"])
        except (OSError, ValueError, KeyError, AssertionError) as error:
            raise ValueError(f"{folder} is damaged ({error}); delete this folder, it is written anew") from error
        self.data_hash: str = meta["data_hash"]
        for note in meta["notes"]:
            warnings.warn(note, stacklevel=3)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            indices = range(len(self))[index]
            return self if indices == range(len(self)) else [self[i] for i in indices]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return decoded(self._rows.value("example", index % len(self)))

    @property
    def context_keys(self) -> Iterator[int]:
        """64-bit hash of each context."""
        return self._rows.each("context")

    @property
    def pair_keys(self) -> Iterator[int]:
        """64-bit hash of each pair of context and question."""
        return self._rows.each("pair")

    def ranges(self, least_bytes: int, most: int) -> list[tuple[int, int]]:
        """Consecutive ranges [start, end) of `least_bytes` bytes of JSON or more each, at most about `most` of them.

        They depend on the examples only.
        """
        sizes = [pc.binary_length(chunk).to_numpy() for chunk in self._rows.column("example").chunks]
        limit = max(least_bytes, sum(int(chunk.sum()) for chunk in sizes) // most)
        ranges, start, end, size = [], 0, 0, 0
        for chunk in sizes:
            for length in chunk.tolist():
                end, size = end + 1, size + length
                if size >= limit:
                    ranges.append((start, end))
                    start, size = end, 0
        return ranges if start == end and ranges else [*ranges, (start, end)]


def store_split(source: Any, split: str, cache_dir: str | None) -> StoredExamples:
    """The examples of a data set's split, read and checked once for all processes and runs.

    source  a data set of the contract. With `content_hash(split)`, one process reads the split; without it, or where it
            returns None, each process does. With `stream(split)`, the examples are never all in memory
    Raises: ValueError as `source`, and as `make_once`.
    """
    key = source.content_hash(split) if hasattr(source, "content_hash") else None
    if key is None:
        return store_examples(source.examples(split), cache_dir)
    stream = getattr(source, "stream", source.examples)
    return _stored(key, lambda: stream(split), cache_dir)


def store_examples(examples: Sequence[Example], cache_dir: str | None) -> StoredExamples:
    """Writes the examples to disk. cache_dir: None = a temporary folder."""
    if isinstance(examples, StoredExamples):
        return examples
    return _stored(examples_hash(examples), lambda: examples, cache_dir)


def _stored(key: str, examples: Callable[[], Iterable[Example]], cache_dir: str | None) -> StoredExamples:
    owner = None if cache_dir else tempfile.TemporaryDirectory(prefix="examples-")
    if owner:
        folder = Path(owner.name) / "examples"
        _write(folder, examples())
    else:
        assert cache_dir is not None
        folder = Path(cache_dir) / f"examples-{LAYOUT}-{key[:32]}"
        make_once(folder, lambda aside: _write(aside, examples()), "examples")
    return StoredExamples(folder, owner)


def _write(folder: Path, examples: Iterable[Example]) -> None:
    folder.mkdir()
    digest, count, begin = HashOfJsonList(), 0, time.monotonic()
    with warnings.catch_warnings(record=True) as caught, RowWriter(folder / _FILE, _SCHEMA) as writer:
        warnings.simplefilter("always")  # of the data set, repeated whenever the folder is opened
        for example in examples:
            text = encoded(example)
            digest.add(text)
            context = xxhash.xxh3_64(example.context.encode("utf-8", "surrogatepass"))
            row = {"example": text, "context": context.intdigest()}
            context.update(b"\x00" + example.question.encode("utf-8", "surrogatepass"))
            writer.write(row | {"pair": context.intdigest()})
            count += 1
            if count % PROGRESS_EVERY == 0 and time.monotonic() - begin > PROGRESS_AFTER:
                print_progress(f"  {count} examples read")
    notes = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    write_json(folder / _META, {"data_hash": digest.hexdigest(), "examples": count, "notes": notes})


# ------------------------------------------------------------------ hash and text of examples


class HashOfJsonList:
    """sha256 of a JSON list, from the canonical JSON of its items."""

    def __init__(self) -> None:
        self._digest, self._next = hashlib.sha256(), b"["

    def add(self, text: str) -> None:
        """The next item."""
        self._digest.update(self._next)
        self._digest.update(text.encode("ascii"))
        self._next = b","

    def hexdigest(self) -> str:
        """The digest of the list so far."""
        whole = self._digest.copy()
        whole.update(b"[]" if self._next == b"[" else b"]")
        return whole.hexdigest()


def examples_hash(examples: Iterable[Example]) -> str:
    """sha256 of the examples as canonical JSON: of texts, ids and passages in their order."""
    if isinstance(examples, StoredExamples):
        return examples.data_hash
    digest = HashOfJsonList()
    for example in examples:
        digest.add(encoded(example))
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON in a canonical form for hashing: ASCII, sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def encoded(example: Example) -> str:
    """An example as canonical JSON, without unset fields, so that new fields do not change stored hashes."""
    return canonical_json({name: value for name, value in asdict(example).items() if value != _UNSET.get(name, ...)})


def decoded(text: str) -> Example:
    """The inverse of `encoded`."""
    values = {name: _tuples(value) for name, value in json.loads(text).items()}
    return Example(**values | {"documents": tuple(Document(**document) for document in values["documents"])})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
