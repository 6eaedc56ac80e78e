"""Reading and writing without end in constant memory (CoMeT, spec 1.5): what is kept between two tokens.

Shape letters: B rows, n new text tokens, P columns of open chunks, V vocabulary.

A chunk is closed when a token comes that finds it full, so the state after so many tokens is the same however they came.
Published code opens no new chunk while it decodes, and its cache grows; here decoding rolls over like reading.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from breviary.memory.assembly import ROUND_TO, take_columns
from comet.layers import OpenChunk
from comet.layout import TEXT, beacon_count, chunk_layout
from comet.memory import MemoryState, newest

if TYPE_CHECKING:
    from comet.model import Comet


class Stream:
    """B texts being read, in inference.

    memory   what was taken in; chunk  keys and values of the open chunks; filled  text tokens of each row's open chunk
    last     (B, D) the stream at each row's last token, 0 in rows without any; None before the first
    """

    def __init__(self, reader: Comet, rows: int) -> None:
        self.reader = reader
        device = reader.memory.tokens.weight.device
        self.memory = MemoryState.fresh(rows, device)
        self.chunk: OpenChunk | None = None
        self.filled = [0] * rows
        self.last: Tensor | None = None
        self._strides = torch.full((rows,), reader.stride, device=device)

    def fork(self) -> Stream:
        """An independent copy; costs nothing, as nothing is changed in place."""
        return copy.copy(self)

    def rows(self, index: Tensor) -> Stream:
        """An independent copy of the rows (R,) int64, in that order; one may come several times."""
        other, chunk = copy.copy(self), self.chunk
        other.memory = self.memory.rows(index)
        other.chunk = None if chunk is None else chunk.rows(index)
        other.filled = [self.filled[row] for row in index.tolist()]
        other.last = None if self.last is None else self.last[index]
        other._strides = self._strides[index]
        return other

    @property
    def device(self) -> torch.device:
        """Where it reads."""
        return self._strides.device

    @property
    def bytes(self) -> int:
        """Bytes that are kept now: memory, and keys and values of memory and open chunks."""
        chunk = self.chunk
        kept = [] if chunk is None else [*(x for pair in [*chunk.seats, *chunk.own] for x in pair), *chunk.entries]
        return self.memory.bytes + sum(x.numel() * x.element_size() for x in kept)

    @torch.no_grad()
    def read(self, ids: Tensor, lengths: Tensor) -> Tensor | None:
        """Reads ids (B, N), right-padded, `lengths` (B,) of them. Gives the logits after each row's last token, read now or
        earlier, (B, V), 0 in rows without any; None where no row has one."""
        for sizes, states in self._pieces(ids, lengths):
            size_B = torch.tensor(sizes, device=ids.device)
            ends = take_columns(states, (size_B - 1).clamp(min=0)[:, None])[:, 0]
            earlier = torch.zeros_like(ends) if self.last is None else self.last
            self.last = torch.where(size_B[:, None] > 0, ends, earlier)
        if self.last is None:
            return None
        with self.reader.decoder.mixed_precision():
            return self.reader.decoder.head(self.reader.decoder.norm(self.last))

    @torch.no_grad()
    def predicting(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Reads as `read`. Gives the stream from which each of the new tokens is predicted, (B, N, D): that at the token before
        it, of the first that at the last token of before (0 where there is none)."""
        (B, N), decoder = ids.shape, self.reader.decoder
        found = torch.zeros(B, N + 1, decoder.width, dtype=decoder.dtype, device=ids.device)
        if self.last is not None:
            found[:, 0] = self.last
        at_B = torch.ones(B, dtype=torch.int64, device=ids.device)
        for sizes, states in self._pieces(ids, lengths):
            size_B = torch.tensor(sizes, device=ids.device)
            row, column = (torch.arange(states.shape[1], device=ids.device) < size_B[:, None]).nonzero(as_tuple=True)
            found[row, at_B[row] + column] = states[row, column]
            at_B = at_B + size_B
        self.last = found[torch.arange(B, device=ids.device), lengths]
        return found[:, :N]

    def step(self, ids: Tensor) -> Tensor:
        """One more token for every row, (B,) -> logits (B, V)."""
        return self.read(ids[:, None], torch.ones_like(ids))

    def _pieces(self, ids: Tensor, lengths: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Reads as `read`, piece by piece: text tokens of each row, and the stream at them (B, n, D)."""
        counts = lengths.tolist()
        pieces = [_pieces(filled, count, self.reader.chunk_size) for filled, count in zip(self.filled, counts)]
        most = max(len(row) for row in pieces)
        at = [0] * len(counts)
        for number in range(most):
            # Aligned at the end: every row's last piece, which stays open, is in the last step.
            now = [row[number - most + len(row)] if number >= most - len(row) else (0, False) for row in pieces]
            sizes, closes = [size for size, _ in now], [close for _, close in now]
            yield sizes, self._piece(ids, at, sizes, closes)
            at = [start + size for start, size in zip(at, sizes)]

    def _piece(self, ids: Tensor, at: list[int], sizes: list[int], closes: list[bool]) -> Tensor:
        """One piece of every row's open chunk: ids[b, at[b] : at[b] + sizes[b]]. The stream at its tokens (B, n, D)."""
        reader, device = self.reader, ids.device
        G, B = reader.memory.global_slots, reader.memory.queue_budget
        width = max(*sizes, 1)
        size_B, close_B = torch.tensor(sizes, device=device), torch.tensor(closes, device=device)
        columns_Bn = (torch.tensor(at, device=device)[:, None] + torch.arange(width, device=device)).clamp(
            max=ids.shape[1] - 1
        )
        real_Bn = torch.arange(width, device=device) < size_B[:, None]
        beacons = max(map(beacon_count, self.filled, sizes, closes, [reader.stride] * len(sizes)))
        layout = chunk_layout(
            real_Bn,
            torch.tensor(self.filled, device=device),
            close_B,
            self._strides,
            beacons if B else 0,
            G if any(closes) else 0,
            ROUND_TO if width > 1 else 1,
        )
        text = reader.decoder.embed(ids.gather(1, columns_Bn).masked_fill(~real_Bn, 0))
        still_open = any(not close and (size or filled) for size, close, filled in zip(sizes, closes, self.filled))
        with reader.decoder.mixed_precision():
            states, self.memory, kept = reader.memory.run(
                reader.decoder,
                reader.memory.embeds(text, layout),
                layout,
                self.memory,
                close_B if any(closes) else None,
                self.chunk,
                keep=still_open,
            )
        self.filled = [0 if close else filled + size for filled, size, close in zip(self.filled, sizes, closes)]
        if kept is not None:
            kept.seats = [] if any(closes) else kept.seats  # the memory changed
            self._trim(kept, close_B)
        self.chunk = kept
        return take_columns(states, layout.columns_of(TEXT))

    def _trim(self, kept: OpenChunk, close_B: Tensor) -> None:
        """Drops what rows (B,) whose chunk was closed had in it, and columns that no row needs."""
        groups = [filled // self.reader.stride if self.reader.memory.queue_budget else 0 for filled in self.filled]
        waiting = kept.entries_mask & ~close_B[:, None]
        order, kept.entries_mask = newest(waiting[:, :0], waiting, max(groups))
        kept.entries = [take_columns(entries, order) for entries in kept.entries]
        kept.mask = kept.mask & ~close_B[:, None]
        most = max(filled + count for filled, count in zip(self.filled, groups))
        if kept.mask.shape[1] > most + ROUND_TO:  # moving the columns costs as much as a step: not for a few
            order, kept.mask = newest(kept.mask[:, :0], kept.mask, most)
            kept.own = [
                tuple(x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])) for x in pair)
                for pair in kept.own
            ]


def _pieces(filled: int, count: int, chunk: int) -> list[tuple[int, bool]]:
    """What `count` further tokens are to a chunk that holds `filled`: (text tokens, whether the chunk closes then)."""
    pieces = []
    while count > chunk - filled:
        pieces.append((chunk - filled, True))
        count, filled = count - (chunk - filled), 0
    return pieces + ([(count, False)] if count else [])
