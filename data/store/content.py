"""Hashes of what the examples of a split depend on: files, arguments, and the code that reads them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from breviary.runtime import draws
from data.store.examples import canonical_json

_PIECE = 1 << 20  # bytes


def content_hash(code: Sequence[str], files: Sequence[str], limit: int | None, arguments: Any) -> str:
    """128-bit hash, as hex, of everything that the examples depend on.

    code       Python files that parse the lines; an edit there invalidates cached folders
    files      data files, read in pieces; with `limit` only the first `limit` lines that are not blank
    arguments  plain values
    """
    digest = xxhash.xxh3_128()
    for name in (*code, draws.__file__):
        digest.update(Path(name).read_bytes())
    digest.update(canonical_json([limit, arguments]).encode())
    for name in files:
        digest.update(b"\x00file\x00")
        for piece in _pieces(name, limit):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(name: str, limit: int | None) -> Iterator[bytes]:
    if limit is None:
        with open(name, "rb") as file:
            while piece := file.read(_PIECE):
                yield piece
        return
    with _open(name) as file:
        try:
            yield from _first_lines(file, limit)
        except (OSError, EOFError, zlib.error):  # reported with the number of examples by what reads the lines
            return


def _open(name: str) -> Any:
    return gzip.open(name) if name.endswith(".gz") else open(name, "rb")


def _first_lines(file: BinaryIO, limit: int) -> Iterator[bytes]:
    count = 0
    for line in file:
        yield line
        count += bool(line.strip())
        if count == limit:
            return
