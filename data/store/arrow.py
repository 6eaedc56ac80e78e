"""Rows in Arrow files: written batch by batch, read memory-mapped, so that neither needs memory for a whole file."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

BATCH_BYTES = 8 << 20  # of values buffered before a write; a longer row is a batch of its own
BATCH_ROWS = 10_000


class RowWriter:
    """Writes rows of `schema` into a file. A context manager; the file is complete on disk when it ends."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._sink = open(file, "wb")  # noqa: SIM115  closed by __exit__
        self._writer = pa.ipc.new_stream(self._sink, schema)
        self._start()

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row. Lists of numbers may be arrays; fields that `row` lacks are null."""
        for name, values in self._columns.items():
            value = row.get(name)
            values.append(value)
            self._bytes += getattr(value, "nbytes", None) or (len(value) if isinstance(value, (str, bytes)) else 8)
        self._rows += 1
        if self._bytes >= BATCH_BYTES or self._rows >= BATCH_ROWS:
            self._flush()

    def _start(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        self._bytes = self._rows = 0

    def _flush(self) -> None:
        if self._rows:
            columns = [pa.array(self._columns[field.name], field.type) for field in self.schema]
            self._writer.write_batch(pa.record_batch(columns, schema=self.schema))
        self._start()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
                self._sink.flush()
                os.fsync(self._sink.fileno())  # a rename may reach the disk before the content does
        finally:
            self._sink.close()


class Rows:
    """The rows of Arrow files, in order, memory-mapped: processes of a machine share them. Pickled by file name."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        tables = [pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in self.files]
        self._table = pa.concat_tables(tables)
        self._columns = dict(zip(self._table.column_names, self._table.columns))

    def __reduce__(self) -> tuple[type[Rows], tuple[list[Path]]]:
        return Rows, (self.files,)

    def __len__(self) -> int:
        return self._table.num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        """All values of a column, still on disk."""
        return self._columns[name]

    def value(self, name: str, index: int) -> Any:
        """One value as plain Python: str, int, or a list of them; None = null."""
        return _plain(self._columns[name][index])

    def counts(self, name: str) -> Counts:
        """A column of 32-bit integers, in memory."""
        return _filled(Counts("i"), self._columns[name])

    def flags(self, name: str) -> Flags:
        """A column of bools, in memory."""
        return _filled(Flags("b"), self._columns[name].cast(pa.int8()))

    def each(self, name: str) -> Iterator[int]:
        """The values of an integer column, with one batch in memory at a time."""
        for chunk in self._columns[name].chunks:
            yield from chunk.to_numpy().tolist()


class Counts(array):
    """Integers of 4 bytes each, where a list takes 36. Equals a list of the same integers."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence | array) and len(self) == len(other) and all(a == b for a, b in zip(self, other))
        )


class Flags(Counts):
    """Bools of one byte each."""

    def __getitem__(self, index: Any) -> Any:
        value = super().__getitem__(index)
        return value if isinstance(index, slice) else bool(value)


def _filled(values: Any, column: pa.ChunkedArray) -> Any:
    for chunk in column.chunks:
        values.frombytes(chunk.to_numpy().tobytes())
    return values


def _plain(scalar: pa.Scalar) -> Any:
    if not scalar.is_valid:
        return None
    if not isinstance(scalar, pa.ListScalar):
        return scalar.as_py()
    values = scalar.values
    if pa.types.is_nested(values.type):
        return values.to_pylist()
    return values.to_numpy(zero_copy_only=False).tolist()  # ten times as fast as to_pylist
