"""The backbone's layers, each with its memory: one piece of each row's chunk through all layers (CoMeT, spec 1.4).

Shape letters: B rows, G global slots, T queue slots, M = G + T memory slots, P columns of the chunk in earlier pieces,
N new columns (text, compression and readout tokens), D width.

Two backends compute the same numbers:
    kv_prefix  memory slots enter as keys and values only: they pass input norm and k/v projections, nothing else
    scatter    memory slots are columns of the sequence, as published; a layer's output at these columns is discarded
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from breviary.backbones.head import Head
from breviary.backbones.stack import Stack
from breviary.memory.assembly import Layout, take_columns, token_index
from comet.layout import COMPRESSION, READOUT
from comet.memory import LayerMemory, LayerState, MemoryState, at_least_float32, newest_columns, take_rows

BACKENDS = ("kv_prefix", "scatter")
KeysValues = tuple[Tensor, Tensor]  # each (B, key/value heads, columns, head width)


@dataclass
class OpenChunk:
    """State of an unfinished chunk that its later pieces need.

    mask                 (B, P) bool, columns that hold a token of the row's open chunk
    pending_mask         (B, E) bool, of `pending`
    memory_keys_values   per layer, keys and values of the memory slots, constant while a chunk is open; [] = none
    chunk_keys_values    per layer, keys and values of the chunk's columns
    pending              per layer, (B, E, D) queue entries that enter the queue at the chunk's end
    """

    mask: Tensor
    pending_mask: Tensor
    memory_keys_values: list[KeysValues] = field(default_factory=list)
    chunk_keys_values: list[KeysValues] = field(default_factory=list)
    pending: list[Tensor] = field(default_factory=list)

    def rows(self, index: Tensor) -> OpenChunk:
        """The rows (R,) int64, in that order."""
        memory, chunk = (
            [(take_rows(keys, index), take_rows(values, index)) for keys, values in layers]
            for layers in (self.memory_keys_values, self.chunk_keys_values)
        )
        return OpenChunk(
            self.mask[index], self.pending_mask[index], memory, chunk, [take_rows(x, index) for x in self.pending]
        )

    @property
    def bytes(self) -> int:
        """Bytes of keys, values and pending queue entries."""
        pairs = [*self.memory_keys_values, *self.chunk_keys_values]
        return sum(x.numel() * x.element_size() for x in [*(x for pair in pairs for x in pair), *self.pending])


class PrefixCache:
    """Cache for one call of one layer: prepends earlier keys and values and records the new ones.

    Calls are idempotent, so that a layer can be recomputed in the backward pass.
    """

    def __init__(self, earlier: Sequence[KeysValues]) -> None:
        self.earlier = earlier
        self.new: KeysValues | None = None

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> KeysValues:
        """Earlier and new keys, then earlier and new values."""
        self.new = keys, values
        return tuple(
            torch.cat([*(pair[i].to(new.dtype) for pair in self.earlier), new], 2)
            for i, new in enumerate((keys, values))
        )


class MemoryLayers(nn.Module):
    """All new weights of CoMeT: a LayerMemory per layer, and the learned tokens.

    tokens          embeddings of the compression token (row 0) and of the G readout tokens
    new_token_head  rows of the head for `new_token_logits` tokens behind the backbone's vocabulary; None = no such rows
    """

    def __init__(
        self, stack: Stack, global_slots: int, queue_budget: int, backend: str, new_token_logits: int = 0, **memory: Any
    ):
        super().__init__()
        assert backend in BACKENDS, backend
        self.global_slots, self.queue_budget, self.backend = global_slots, queue_budget, backend
        self.tokens = nn.Embedding(1 + global_slots, stack.width)
        with torch.no_grad():  # mean and standard deviation of the backbone's embeddings
            table = stack.embed_tokens.weight.float()
            self.tokens.weight.mul_(table.std(0)).add_(table.mean(0))
        self.new_token_head = Head(stack.width, new_token_logits, bias=False) if new_token_logits else None
        self.layers = nn.ModuleList(LayerMemory(stack.width, **memory) for _ in range(len(stack)))

    def embed(self, text: Tensor, layout: Layout) -> Tensor:
        """The piece's input embeddings (B, N, D) from those of its text (B, n, D)."""
        B, k, G = len(text), layout.widths[COMPRESSION], layout.widths[READOUT]
        learned = self.tokens(torch.arange(1 + self.global_slots, device=text.device)).to(text.dtype)
        return layout.pack([text, learned[:1].expand(B, k, -1), learned[1 : 1 + G].expand(B, G, -1)])

    def run(
        self,
        stack: Stack,
        states: Tensor,
        layout: Layout,
        memory: MemoryState,
        updates: Tensor | None,
        earlier: OpenChunk | None = None,
        keep_open: bool = False,
    ) -> tuple[Tensor, MemoryState, OpenChunk | None]:
        """One piece through all layers.

        states   (B, N, D) input embeddings in `layout`
        memory   the memory after the earlier chunks
        updates  (B,) bool, rows whose chunk ends with this piece and updates the memory; None = no row
        earlier  the earlier pieces of these chunks; keep_open = also return the state that the next piece needs
        Returns hidden states after the last layer (B, N, D), the memory, and the open chunk (None unless keep_open).
        """
        piece = self.piece(layout, memory, updates, earlier)
        attention_inputs = piece.attention_inputs(stack, states)
        layers, open_chunk = [], OpenChunk(piece.chunk_mask, piece.pending_mask)
        for index in range(len(stack)):
            prior = memory.layers[index] if memory.layers else None
            states, memory_kv, chunk_kv = self._attend(stack, index, states, attention_inputs, piece, prior, keep_open)
            pending = self._pending_entries(index, states, piece)
            if updates is not None:
                layers.append(self._updated_state(index, states, pending, piece, prior))
            if keep_open:
                open_chunk.memory_keys_values += memory_kv
                open_chunk.chunk_keys_values += chunk_kv
                open_chunk.pending.append(pending)
        memory = memory if updates is None else piece.updated_memory(layers)
        return states, memory, open_chunk if keep_open else None

    def piece(
        self, layout: Layout, memory: MemoryState, updates: Tensor | None, earlier: OpenChunk | None = None
    ) -> Piece:
        """Positions, masks and queue order of a piece; arguments as in `run`.

        Uses the memory's masks and shapes only.
        """
        scatter = self.backend == "scatter" and earlier is None
        return Piece(layout, memory, updates, earlier, scatter, self.queue_budget)

    def run_layer(
        self,
        stack: Stack,
        index: int,
        states: Tensor,
        attention_inputs: dict[str, Any],
        piece: Piece,
        prior: LayerState | None,
    ) -> tuple[Tensor, LayerState | None]:
        """One layer over a whole chunk, as one iteration of `run`: hidden states (B, N, D) and the updated memory.

        prior  the layer's memory after the earlier chunks; None = empty
        """
        states, _, _ = self._attend(stack, index, states, attention_inputs, piece, prior, keep_open=False)
        if piece.updates is None:
            return states, prior
        return states, self._updated_state(index, states, self._pending_entries(index, states, piece), piece, prior)

    def _attend(
        self,
        stack: Stack,
        index: int,
        states: Tensor,
        attention_inputs: dict[str, Any],
        piece: Piece,
        prior: LayerState | None,
        keep_open: bool,
    ) -> tuple[Tensor, list[KeysValues], list[KeysValues]]:
        """Hidden states after layer `index`; with `keep_open` also keys and values of memory slots and of the chunk."""
        memory_kv: list[KeysValues] = []
        chunk_kv: list[KeysValues] = []
        if piece.earlier is not None:
            memory_kv = piece.earlier.memory_keys_values[index : index + 1]
            chunk_kv = piece.earlier.chunk_keys_values[index : index + 1]
        if not memory_kv and prior is not None:
            slots_BMD = self.layers[index].slots(prior)
            if keep_open or not piece.scatter:
                memory_kv = [stack.keys_values(index, slots_BMD, token_index(piece.slot_mask))]
            if piece.scatter:
                states = torch.cat([slots_BMD, states], 1)
        cache = PrefixCache([] if piece.scatter else [*memory_kv, *chunk_kv])
        states = stack.run_layer(index, states, attention_inputs, cache)
        slots = piece.slot_mask.shape[1] if piece.scatter else 0
        if not keep_open:
            return states[:, slots:], [], []
        assert cache.new is not None  # set by run_layer
        new = [x[:, :, slots:] for x in cache.new]
        joined = tuple(torch.cat([*(pair[i] for pair in chunk_kv), new[i]], 2) for i in range(2))
        return states[:, slots:], memory_kv, [joined]

    def _pending_entries(self, index: int, states: Tensor, piece: Piece) -> Tensor:
        """Queue entries of the chunk's compression tokens so far, (B, E, D)."""
        new = self.layers[index].queue_entries(piece.layout.unpack(states, COMPRESSION))
        return new if piece.earlier is None else torch.cat([piece.earlier.pending[index], new], 1)

    def _updated_state(
        self, index: int, states: Tensor, pending: Tensor, piece: Piece, prior: LayerState | None
    ) -> LayerState:
        """The layer's memory after a piece, from its output (B, N, D) and its pending queue entries (B, E, D)."""
        if prior is None:
            zeros = states.new_zeros(len(states), self.global_slots, states.shape[-1])
            prior = LayerState(at_least_float32(zeros), pending[:, :0])
        readouts = piece.layout.unpack(states, READOUT)
        state = self.layers[index].update_global(prior.global_state, readouts, piece.initialized, piece.updates)
        return LayerState(state, take_columns(torch.cat([prior.queue, pending], 1), piece.queue_order))


class Piece:
    """Positions, masks and queue order of the new columns of a piece; the same in every layer.

    positions     (B, N) rotary positions, from 0 in every chunk with memory slots first; with `scatter` (B, M + N)
    key_mask      (B, M + P + N); chunk_mask (B, P + N) without the memory slots; pending_mask (B, E)
    initialized   (B,) bool, before the piece
    queue_order   (B, T') columns of [queue ; pending entries] that stay; queue_mask (B, T') their validity. Both None
                  where no row's memory is updated
    """

    def __init__(
        self,
        layout: Layout,
        memory: MemoryState,
        updates: Tensor | None,
        earlier: OpenChunk | None,
        scatter: bool,
        queue_budget: int,
    ) -> None:
        self.layout, self.updates, self.earlier, self.scatter = layout, updates, earlier, scatter
        self.initialized, self.slot_mask = memory.initialized, memory.slot_mask
        earlier_mask = layout.mask[:, :0] if earlier is None else earlier.mask
        self.chunk_mask = torch.cat([earlier_mask, layout.mask], 1)
        self.key_mask = torch.cat([self.slot_mask, self.chunk_mask], 1)
        self.positions = (self.slot_mask.sum(1) + earlier_mask.sum(1))[:, None] + layout.positions()
        if scatter:
            self.positions = torch.cat([token_index(self.slot_mask), self.positions], 1)
        new_mask = layout.mask.gather(1, layout.columns_of(COMPRESSION))  # columns of invalid tokens are padding
        self.pending_mask = new_mask if earlier is None else torch.cat([earlier.pending_mask, new_mask], 1)
        self.queue_order = self.queue_mask = None
        if updates is not None:
            entry_mask = self.pending_mask & updates[:, None]
            self.queue_order, self.queue_mask = newest_columns(memory.queue_mask, entry_mask, queue_budget)

    def attention_inputs(self, stack: Stack, states: Tensor) -> dict[str, Any]:
        """Arguments of every layer's call for hidden states (B, N, D)."""
        return stack.attention_inputs(states.new_empty(*self.positions.shape, 0), self.positions, self.key_mask)

    def updated_memory(self, layers: Sequence[LayerState]) -> MemoryState:
        """The memory after the piece, from its layers' updated states."""
        assert self.updates is not None, "no row's memory is updated by this piece"
        return MemoryState(tuple(layers), self.initialized | self.updates, self.queue_mask)
