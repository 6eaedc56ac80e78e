"""Cache of encoded contexts: each distinct context is encoded once for all questions on it (evaluation, serving).

Shape letters: B examples.
"""

from __future__ import annotations

import torch

from breviary.contract import Batch
from breviary.readers.cache import ContextCacheBase
from breviary.runtime.timing import READ, phase
from comet.chunked_text import join_parts
from comet.inference.stream import Stream
from comet.protocol import StreamReader


class StreamCache(ContextCacheBase):
    """Streams that have read prefix and context."""

    def streams(self, reader: StreamReader, batch: Batch) -> list[tuple[list[int], Stream]]:
        """The batch's rows (B), grouped by stream: row indices, and a stream with one row for each of them.

        Contexts that are not in the cache are read in one batch.
        """

        def read_missing(missing: list[int]) -> list[tuple[Stream, int]]:
            part, stream = batch.rows(missing), Stream(reader, len(missing))
            with phase(READ):
                stream.read(join_parts([part.prefix, part.context])[1], part.prefix.lengths + part.context.lengths)
            return [(stream, row) for row in range(len(missing))]

        return _group_by_stream(self.lookup(batch.prefix, batch.context, read_missing))

    def _entry_bytes(self, entry: tuple[Stream, int]) -> int:
        return row_bytes(*entry)


def row_bytes(stream: Stream, row: int) -> int:
    """Bytes of the state of one text, without the padding that other rows of the stream cause."""
    one = stream.rows(torch.tensor([row], device=stream.device))
    memory, chunk = one.memory, one.open_chunk
    slots, queue = memory.slot_mask[0], memory.queue_mask[0]
    held = [x for layer in memory.layers for x in (layer.global_state[memory.initialized], layer.queue[:, queue])]
    if chunk is not None:
        held += [x[:, :, slots] for pair in chunk.memory_keys_values for x in pair]
        held += [x[:, :, chunk.mask[0]] for pair in chunk.chunk_keys_values for x in pair]
        held += [x[:, chunk.pending_mask[0]] for x in chunk.pending]
    return sum(x.nbytes for x in held)


def _group_by_stream(entries: list[tuple[Stream, int]]) -> list[tuple[list[int], Stream]]:
    """For each batch row (stream, its row there) -> for each stream (batch rows, the stream's rows for them)."""
    groups: dict[int, tuple[Stream, list[int], list[int]]] = {}
    for b, (stream, row) in enumerate(entries):
        _, batch_rows, stream_rows = groups.setdefault(id(stream), (stream, [], []))
        batch_rows.append(b)
        stream_rows.append(row)
    return [
        (batch_rows, stream.rows(torch.tensor(stream_rows, device=stream.device)))
        for stream, batch_rows, stream_rows in groups.values()
    ]
