"""Contexts that were read once, for every question on them (evaluation, serving).

Shape letters: B examples.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

from breviary.contract import Batch
from breviary.encoded import context_keys
from comet.stream import Stream
from comet.text import joined

if TYPE_CHECKING:
    from comet.model import Comet


class ReadContexts:
    """Streams that have read prefix and context, by these tokens; as breviary.vector_reader.ContextCache for compressors.

    Keeps the `capacity` most recently used contexts. `reused` says for each row of the latest call whether its context had
    been read before.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.reused: list[bool] = []
        self._kept: OrderedDict[bytes, tuple[Stream, int]] = OrderedDict()

    def opened(self, reader: Comet, batch: Batch) -> list[tuple[list[int], Stream]]:
        """Rows of the batch (B) that go on from one stream, with that stream, a row of it for each. Contexts that are not kept
        are read, together."""
        keys = context_keys(batch.prefix, batch.context)
        missing = list({key: b for b, key in reversed(list(enumerate(keys))) if key not in self._kept}.values())
        self.reused = [b not in missing for b in range(len(keys))]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if missing:
            unread, stream = batch.rows(missing), Stream(reader, len(missing))
            stream.read(joined([unread.prefix, unread.context])[1], unread.prefix.lengths + unread.context.lengths)
            found |= {keys[b]: (stream, row) for row, b in enumerate(missing)}
        for key in keys:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return _grouped([found[key] for key in keys])


def _grouped(places: list[tuple[Stream, int]]) -> list[tuple[list[int], Stream]]:
    """Each row's stream and its row there -> for each stream the rows that go on from it, and its rows for them."""
    groups: dict[int, tuple[Stream, list[int], list[int]]] = {}
    for b, (stream, row) in enumerate(places):
        _, rows, own = groups.setdefault(id(stream), (stream, [], []))
        rows.append(b)
        own.append(row)
    return [(rows, stream.rows(torch.tensor(own, device=stream.device))) for stream, rows, own in groups.values()]
