"""A context put together from pieces, with the places of those that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from breviary.contract import Document


@dataclass(frozen=True)
class Piece:
    """A piece of a context.

    title    None = no document: filler
    is_gold  the answer depends on it
    """

    text: str
    title: str | None = None
    is_gold: bool = False


def join_pieces(pieces: Sequence[Piece], separator: str) -> tuple[str, tuple[Document, ...]]:
    """The joined text, and a document for each piece that has a title."""
    documents, at = [], 0
    for piece in pieces:
        if piece.title is not None:
            documents.append(Document(piece.title, at, at + len(piece.text), piece.is_gold))
        at += len(piece.text) + len(separator)
    return separator.join(piece.text for piece in pieces), tuple(documents)


def behind(head: str, context: str, documents: Sequence[Document]) -> tuple[str, tuple[Document, ...]]:
    """A context and its documents with a text before them."""
    moved = (replace(d, start=d.start + len(head), end=d.end + len(head)) for d in documents)
    return head + context, tuple(moved)


def insert(lines: Sequence[Piece], places: Sequence[int], added: Sequence[Piece]) -> list[Piece]:
    """`added[i]` before the line `places[i]`, where len(lines) is behind the last one. `places` ascend."""
    result: list[Piece] = []
    at = 0
    for place, piece in zip(places, added, strict=True):
        assert at <= place <= len(lines), (at, place, len(lines))
        result += [*lines[at:place], piece]
        at = place
    return [*result, *lines[at:]]
