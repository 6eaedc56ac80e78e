"""Contexts that were read once, for every question on them (evaluation, serving).

Shape letters: B examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from breviary.contract import Batch
from breviary.readers.cache import ContextCacheBase
from comet.inference.stream import Stream
from comet.text import joined

if TYPE_CHECKING:
    from comet.model import Comet


class StreamCache(ContextCacheBase):
    """Streams that have read prefix and context."""

    def opened(self, reader: Comet, batch: Batch) -> list[tuple[list[int], Stream]]:
        """Rows of the batch (B) that go on from one stream, with that stream, a row of it for each. Contexts that are not kept
        are read, together."""

        def read(missing: list[int]) -> list[tuple[Stream, int]]:
            unread, stream = batch.rows(missing), Stream(reader, len(missing))
            stream.read(joined([unread.prefix, unread.context])[1], unread.prefix.lengths + unread.context.lengths)
            return [(stream, row) for row in range(len(missing))]

        return _grouped(self.lookup(batch.prefix, batch.context, read))


def _grouped(places: list[tuple[Stream, int]]) -> list[tuple[list[int], Stream]]:
    """Each row's stream and its row there -> for each stream the rows that go on from it, and its rows for them."""
    groups: dict[int, tuple[Stream, list[int], list[int]]] = {}
    for b, (stream, row) in enumerate(places):
        _, rows, own = groups.setdefault(id(stream), (stream, [], []))
        rows.append(b)
        own.append(row)
    return [(rows, stream.rows(torch.tensor(own, device=stream.device))) for stream, rows, own in groups.values()]
