"""The backbone's layers with a memory beside each: one piece of every row's chunk through all of them (CoMeT, spec 1.4).

Shape letters: B rows, G global slots, T queue slots, M = G + T memory seats, P columns of the chunk read earlier,
N new columns (text, compression and readout tokens), D width.

Two backends, the same numbers:
    kv_prefix  memory is seen as keys and values only: its rows pass input norm and k/v projections, nothing else
    scatter    memory is written into seats of the sequence, as published; what a layer computes there is dropped
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from breviary.backbones.stack import Stack
from breviary.memory.assembly import Layout, take_columns, token_index
from comet.layout import BEACONS, READOUTS
from comet.memory import LayerMemory, LayerState, MemoryState, newest, wide

BACKENDS = ("kv_prefix", "scatter")
KeysValues = tuple[Tensor, Tensor]  # each (B, key/value heads, columns, head width)


@dataclass
class OpenChunk:
    """What later pieces of an unfinished chunk attend to.

    mask          (B, P) bool, columns that hold a token of the row's open chunk
    entries_mask  (B, E) bool, of the queue entries that wait for the chunk to be closed
    seats         per layer, the memory's keys and values, which stay the same while a chunk is open; [] = there is none
    own           per layer, the chunk's keys and values
    entries       per layer, (B, E, D)
    """

    mask: Tensor
    entries_mask: Tensor
    seats: list[KeysValues] = field(default_factory=list)
    own: list[KeysValues] = field(default_factory=list)
    entries: list[Tensor] = field(default_factory=list)

    def rows(self, index: Tensor) -> OpenChunk:
        """The rows (R,) int64, in that order."""
        seats, own = ([(keys[index], values[index]) for keys, values in layers] for layers in (self.seats, self.own))
        return OpenChunk(self.mask[index], self.entries_mask[index], seats, own, [x[index] for x in self.entries])


class SeenBefore:
    """The cache of one layer's call: hands out what was seen before, and remembers what is new. Idempotent, so that a
    layer may be recomputed in the backward pass."""

    def __init__(self, before: Sequence[KeysValues]) -> None:
        self.before = before
        self.new: KeysValues | None = None

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> KeysValues:
        """Earlier and new keys, likewise values."""
        self.new = keys, values
        return tuple(
            torch.cat([*(pair[i].to(new.dtype) for pair in self.before), new], 2)
            for i, new in enumerate((keys, values))
        )


class MemoryLayers(nn.Module):
    """All new weights of CoMeT: a LayerMemory for each layer, and the learned tokens.

    tokens          embeddings of the compression token (row 0) and of the G readout tokens
    new_token_head  rows of the head for `new_token_logits` tokens behind the backbone's vocabulary; None = there are none
    """

    def __init__(
        self, stack: Stack, global_slots: int, queue_budget: int, backend: str, new_token_logits: int = 0, **memory: Any
    ):
        super().__init__()
        assert backend in BACKENDS, backend
        self.global_slots, self.queue_budget, self.backend = global_slots, queue_budget, backend
        self.tokens = nn.Embedding(1 + global_slots, stack.width)
        with torch.no_grad():  # like words: mean and spread of the backbone's table
            table = stack.embed_tokens.weight.float()
            self.tokens.weight.mul_(table.std(0)).add_(table.mean(0))
        self.new_token_head = nn.Linear(stack.width, new_token_logits, bias=False) if new_token_logits else None
        self.layers = nn.ModuleList(LayerMemory(stack.width, **memory) for _ in range(len(stack)))

    def embeds(self, text: Tensor, layout: Layout) -> Tensor:
        """The piece's input embeddings (B, N, D) from those of its text (B, n, D)."""
        B, k, G = len(text), layout.widths[BEACONS], layout.widths[READOUTS]
        learned = self.tokens(torch.arange(1 + self.global_slots, device=text.device)).to(text.dtype)
        return layout.pack([text, learned[:1].expand(B, k, -1), learned[1 : 1 + G].expand(B, G, -1)])

    def run(
        self,
        stack: Stack,
        states: Tensor,
        layout: Layout,
        memory: MemoryState,
        closes: Tensor | None,
        before: OpenChunk | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, MemoryState, OpenChunk | None]:
        """One piece through all layers.

        states  (B, N, D) input embeddings in `layout`
        memory  what was kept of the chunks before
        closes  (B,) bool, rows whose chunk ends with this piece: their memory takes it in; None = no row
        before  the earlier pieces of these chunks; keep = give back what the next piece needs
        Gives the stream after the last layer (B, N, D), the memory, and the open chunk (None unless keep).
        """
        piece = self.piece(layout, memory, closes, before)
        attending = piece.attending(stack, states)
        layers, kept = [], OpenChunk(piece.own_mask, piece.entries_mask)
        for index in range(len(stack)):
            prior = memory.layers[index] if memory.layers else None
            states, seats, own = self._layer(stack, index, states, attending, piece, prior, keep)
            entries = self._entries(index, states, piece)
            if closes is not None:
                layers.append(self._taken_in(index, states, entries, piece, prior))
            if keep:
                kept.seats += seats
                kept.own += own
                kept.entries.append(entries)
        return states, memory if closes is None else piece.after(layers), kept if keep else None

    def piece(
        self, layout: Layout, memory: MemoryState, closes: Tensor | None, before: OpenChunk | None = None
    ) -> Piece:
        """Where the columns of a piece stand, what they see and what becomes of the queue; arguments as in `run`. Of the
        memory only masks and numbers of slots are looked at."""
        return Piece(layout, memory, closes, before, self.backend == "scatter" and before is None, self.queue_budget)

    def cell(
        self,
        stack: Stack,
        index: int,
        states: Tensor,
        attending: dict[str, Any],
        piece: Piece,
        prior: LayerState | None,
    ) -> tuple[Tensor, LayerState | None]:
        """One layer over a whole chunk, as one step of `run`: its stream (B, N, D), and its memory after the chunk.

        prior  the layer's memory of the chunks before; None = nothing
        """
        states, _, _ = self._layer(stack, index, states, attending, piece, prior, keep=False)
        if piece.closes is None:
            return states, prior
        return states, self._taken_in(index, states, self._entries(index, states, piece), piece, prior)

    def _layer(
        self,
        stack: Stack,
        index: int,
        states: Tensor,
        attending: dict[str, Any],
        piece: Piece,
        prior: LayerState | None,
        keep: bool,
    ) -> tuple[Tensor, list[KeysValues], list[KeysValues]]:
        """The stream after layer `index`; with `keep` the keys and values of its seats, and of the chunk so far."""
        seats = own = ()
        if piece.before is not None:
            seats, own = piece.before.seats[index : index + 1], piece.before.own[index : index + 1]
        if not seats and prior is not None:
            rows_BMD = self.layers[index].seats(prior)
            if keep or not piece.scatters:
                seats = [stack.keys_values(index, rows_BMD, token_index(piece.seat_mask))]
            if piece.scatters:
                states = torch.cat([rows_BMD, states], 1)
        cache = SeenBefore([] if piece.scatters else [*seats, *own])
        states = stack.run_layer(index, states, attending, cache)
        seated = piece.seat_mask.shape[1] if piece.scatters else 0
        if not keep:
            return states[:, seated:], [], []
        new = [x[:, :, seated:] for x in cache.new]
        joined = tuple(torch.cat([*(pair[i] for pair in own), new[i]], 2) for i in range(2))
        return states[:, seated:], list(seats), [joined]

    def _entries(self, index: int, states: Tensor, piece: Piece) -> Tensor:
        """What the chunk's compression tokens so far put into the queue when it is closed, (B, E, D)."""
        new = self.layers[index].entries(piece.layout.unpack(states, BEACONS))
        return new if piece.before is None else torch.cat([piece.before.entries[index], new], 1)

    def _taken_in(
        self, index: int, states: Tensor, entries: Tensor, piece: Piece, prior: LayerState | None
    ) -> LayerState:
        """The layer's memory after a piece, from its output (B, N, D) and the entries for its queue (B, E, D)."""
        if prior is None:
            prior = LayerState(wide(states.new_zeros(len(states), self.global_slots, states.shape[-1])), entries[:, :0])
        carried = self.layers[index].carry(
            prior.carried, piece.layout.unpack(states, READOUTS), piece.started, piece.closes
        )
        return LayerState(carried, take_columns(torch.cat([prior.queue, entries], 1), piece.order))


class Piece:
    """Where the new columns of a piece stand, what they may see and what becomes of the queue; the same in every layer.

    positions  (B, N) rotary positions: every chunk counts from 0, memory seats first; with `scatters` of seats and columns
               (B, M + N)
    key_mask   (B, M + P + N), own_mask (B, P + N) without the seats; entries_mask (B, E)
    started    (B,) before the piece
    order      (B, T') columns of [queue ; entries] that stay, queue_mask (B, T') theirs; None = no row's chunk closes
    """

    def __init__(
        self,
        layout: Layout,
        memory: MemoryState,
        closes: Tensor | None,
        before: OpenChunk | None,
        scatters: bool,
        queue_budget: int,
    ) -> None:
        self.layout, self.closes, self.before, self.scatters = layout, closes, before, scatters
        self.started, self.seat_mask = memory.started, memory.seat_mask
        earlier = layout.mask[:, :0] if before is None else before.mask
        self.own_mask = torch.cat([earlier, layout.mask], 1)
        self.key_mask = torch.cat([self.seat_mask, self.own_mask], 1)
        self.positions = (self.seat_mask.sum(1) + earlier.sum(1))[:, None] + layout.positions()
        if scatters:
            self.positions = torch.cat([token_index(self.seat_mask), self.positions], 1)
        beacon_mask = layout.mask.gather(1, layout.columns_of(BEACONS))  # a token that is none went to the padding
        self.entries_mask = beacon_mask if before is None else torch.cat([before.entries_mask, beacon_mask], 1)
        self.order = self.queue_mask = None
        if closes is not None:
            self.order, self.queue_mask = newest(memory.queue_mask, self.entries_mask & closes[:, None], queue_budget)

    def attending(self, stack: Stack, states: Tensor) -> dict[str, Any]:
        """What every layer must know of it, for a stream (B, N, D)."""
        return stack.attention_inputs(states.new_empty(*self.positions.shape, 0), self.positions, self.key_mask)

    def after(self, layers: Sequence[LayerState]) -> MemoryState:
        """The memory after a piece with which some row's chunk closes."""
        assert self.closes is not None, "no row's chunk closes: the memory stays as it was"
        return MemoryState(tuple(layers), self.started | self.closes, self.queue_mask)
