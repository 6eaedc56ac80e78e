"""Reading and decoding of unbounded length in constant memory (CoMeT, spec 1.5): the state between two calls.

Shape letters: B rows, n new text tokens, N columns of their sequence, P columns of open chunks, D width, V vocabulary.

A chunk ends when a token arrives that finds it full: the state after a number of tokens does not depend on the calls in
which they arrived. The published code opens no new chunk while it decodes, so its cache grows; here decoding starts new
chunks too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from breviary.memory.assembly import ROUND_TO, take_columns
from comet.layers import OpenChunk
from comet.layout import TEXT, chunk_layout, compression_token_count
from comet.memory import MemoryState, newest_columns
from comet.protocol import StreamReader


class Stream:
    """Inference state of B texts.

    memory       after the completed chunks
    open_chunk   keys and values of the open chunks; None = there is no open chunk
    open_tokens  text tokens of each row's open chunk
    last_states  (B, D) last hidden states at each row's last token, 0 in rows without tokens; None = no tokens at all
    """

    def __init__(self, reader: StreamReader, rows: int) -> None:
        self.reader = reader
        device = reader.memory.tokens.weight.device
        self.memory = MemoryState.empty(rows, device)
        self.open_chunk: OpenChunk | None = None
        self.open_tokens = [0] * rows
        self.last_states: Tensor | None = None
        self._strides = torch.full((rows,), reader.stride, device=device)

    def fork(self) -> Stream:
        """An independent copy; free of cost, as tensors are never changed in place."""
        return copy.copy(self)

    def rows(self, index: Tensor) -> Stream:
        """An independent copy of the rows (R,) int64, in that order; a row may occur several times."""
        other, chunk = copy.copy(self), self.open_chunk
        other.memory = self.memory.rows(index)
        other.open_chunk = None if chunk is None else chunk.rows(index)
        other.open_tokens = [self.open_tokens[row] for row in index.tolist()]
        other.last_states = None if self.last_states is None else self.last_states[index]
        other._strides = self._strides[index]
        return other

    def keep_rows(self, index: Tensor) -> None:
        """Drops all rows but those of `index` (R,) int64, in that order."""
        vars(self).update(vars(self.rows(index)))

    @property
    def device(self) -> torch.device:
        """Device of the state."""
        return self._strides.device

    @property
    def bytes(self) -> int:
        """Bytes of the memory, and of keys and values of memory and open chunks."""
        return self.memory.bytes + (0 if self.open_chunk is None else self.open_chunk.bytes)

    @torch.no_grad()
    def read(self, ids: Tensor, lengths: Tensor) -> Tensor | None:
        """Reads ids (B, N), right-padded, with `lengths` (B,) tokens per row.

        Returns the logits after each row's last token of this or an earlier call, (B, V), 0 in rows without tokens;
        None where no row has a token.
        """
        for sizes, states in self._read_pieces(ids, lengths):
            size_B = torch.tensor(sizes, device=ids.device)
            ends = take_columns(states, (size_B - 1).clamp(min=0)[:, None])[:, 0]
            earlier = torch.zeros_like(ends) if self.last_states is None else self.last_states
            self.last_states = torch.where(size_B[:, None] > 0, ends, earlier)
        if self.last_states is None:
            return None
        with self.reader.decoder.mixed_precision():
            return self.reader.decoder.head(self.reader.decoder.norm(self.last_states))

    @torch.no_grad()
    def read_shifted(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Reads as `read`. Returns the last hidden states that predict the new tokens, (B, N, D).

        These are the states at the token before each; 0 where there is none.
        """
        (B, N), decoder = ids.shape, self.reader.decoder
        states_BND = torch.zeros(B, N + 1, decoder.width, dtype=decoder.dtype, device=ids.device)
        if self.last_states is not None:
            states_BND[:, 0] = self.last_states
        at_B = torch.ones(B, dtype=torch.int64, device=ids.device)
        for sizes, states in self._read_pieces(ids, lengths):
            size_B = torch.tensor(sizes, device=ids.device)
            row, column = (torch.arange(states.shape[1], device=ids.device) < size_B[:, None]).nonzero(as_tuple=True)
            states_BND[row, at_B[row] + column] = states[row, column]
            at_B = at_B + size_B
        self.last_states = states_BND[torch.arange(B, device=ids.device), lengths]
        return states_BND[:, :N]

    def step(self, ids: Tensor) -> Tensor:
        """One more token for every row, (B,) -> logits (B, V)."""
        return self.read(ids[:, None], torch.ones_like(ids))

    def _read_pieces(self, ids: Tensor, lengths: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Reads as `read`, piece by piece: text tokens of each row, and the last hidden states at them (B, n, D)."""
        counts = lengths.tolist()
        pieces = [_split_pieces(filled, n, self.reader.chunk_size) for filled, n in zip(self.open_tokens, counts)]
        steps = max(len(row) for row in pieces)
        starts = [0] * len(counts)
        for step in range(steps):
            # Rows are aligned at their ends: every row's last piece, which stays open, is in the last step.
            now = [row[step - steps + len(row)] if step >= steps - len(row) else (0, False) for row in pieces]
            sizes, updates = [size for size, _ in now], [update for _, update in now]
            yield sizes, self._read_piece(ids, starts, sizes, updates)
            starts = [start + size for start, size in zip(starts, sizes)]

    def _read_piece(self, ids: Tensor, starts: list[int], sizes: list[int], updates: list[bool]) -> Tensor:
        """One piece of every row's open chunk, ids[b, starts[b] : starts[b] + sizes[b]].

        Returns its last hidden states (B, n, D).
        """
        reader, device = self.reader, ids.device
        G, B = reader.memory.global_slots, reader.memory.queue_budget
        width = max(*sizes, 1)
        size_B, updates_B = torch.tensor(sizes, device=device), torch.tensor(updates, device=device)
        offsets_n = torch.arange(width, device=device)
        columns_Bn = (torch.tensor(starts, device=device)[:, None] + offsets_n).clamp(max=ids.shape[1] - 1)
        mask_Bn = offsets_n < size_B[:, None]
        compression = max(map(compression_token_count, self.open_tokens, sizes, updates, [reader.stride] * len(sizes)))
        layout = chunk_layout(
            mask_Bn,
            torch.tensor(self.open_tokens, device=device),
            updates_B,
            self._strides,
            compression if B else 0,
            G if any(updates) else 0,
            ROUND_TO if width > 1 else 1,
        )
        text = reader.decoder.embed(ids.gather(1, columns_Bn).masked_fill(~mask_Bn, 0))
        rows = list(zip(self.open_tokens, sizes, updates))
        stays_open = any(not update and (size or filled) for filled, size, update in rows)
        with reader.decoder.mixed_precision():
            states, self.memory, chunk = reader.memory.run(
                reader.decoder,
                reader.memory.embed(text, layout),
                layout,
                self.memory,
                updates_B if any(updates) else None,
                self.open_chunk,
                keep_open=stays_open,
            )
        self.open_tokens = [0 if update else filled + size for filled, size, update in rows]
        if chunk is not None:
            if any(updates):  # the memory changed
                chunk.memory_keys_values = []
            # A piece of several tokens is padded to a multiple of ROUND_TO. Without that padding, one row, and rows of
            # equal length, decode without an attention mask.
            self._trim(chunk, updates_B, 0 if width > 1 else ROUND_TO)
        self.open_chunk = chunk
        return take_columns(states, layout.columns_of(TEXT))

    def _trim(self, chunk: OpenChunk, ended_B: Tensor, spare: int) -> None:
        """Removes from the open chunk the rows (B,) whose chunk has ended, and columns that no row needs.

        Up to `spare` such columns may stay, as moving the others costs as much as a decoding step.
        """
        stride, has_queue = self.reader.stride, self.reader.memory.queue_budget > 0
        groups = [filled // stride if has_queue else 0 for filled in self.open_tokens]
        pending_mask = chunk.pending_mask & ~ended_B[:, None]
        order, chunk.pending_mask = newest_columns(pending_mask[:, :0], pending_mask, max(groups))
        chunk.pending = [take_columns(pending, order) for pending in chunk.pending]
        chunk.mask = chunk.mask & ~ended_B[:, None]
        columns = max(filled + count for filled, count in zip(self.open_tokens, groups))
        if chunk.mask.shape[1] > columns + spare:
            order, chunk.mask = newest_columns(chunk.mask[:, :0], chunk.mask, columns)
            chunk.chunk_keys_values = [
                tuple(x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])) for x in pair)
                for pair in chunk.chunk_keys_values
            ]


def _split_pieces(filled: int, count: int, chunk: int) -> list[tuple[int, bool]]:
    """Pieces of `count` tokens after the `filled` ones of a chunk: (text tokens, the chunk ends with the piece)."""
    pieces = []
    while count > chunk - filled:
        pieces.append((chunk - filled, True))
        count, filled = count - (chunk - filled), 0
    return pieces + ([(count, False)] if count else [])
