"""The memory of one layer (CoMeT, spec 1.4): gated global slots and a FIFO queue, with their trained weights.

Shape letters: B rows, G global slots = readout tokens, k compression tokens of a chunk, T queue slots, D width.

    S~ = norm_g(R)                                   R (B, G, D)  the layer's output at the readout tokens
    S' = S~ after a text's first chunk, else g S + (1 - g) S~,  g = sigmoid([S~ ; S] W_g + bias), one scalar per slot
    M  = RLA_g(S)                                    the global slots of the next chunk; S is the recurrent state
    E  = RLA_t(norm_t(K))                            K (B, k, D)  the layer's output at the compression tokens
    Q' = the newest slots of [Q ; E], up to the queue budget
    RLA(x) = x + U(D x), rank 8, no bias
Everything is computed in float32 or wider for any dtype of the model: S is carried over hundreds of chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

INITS = ("normal", "zero")
STD = 0.02  # standard deviation of new linear weights, as published


@dataclass(frozen=True)
class LayerState:
    """Memory of one layer.

    global_state  (B, G, D) S in float32 or wider; zeros before a text's first memory update
    queue         (B, T, D) Q in the model's dtype
    """

    global_state: Tensor
    queue: Tensor


@dataclass(frozen=True)
class MemoryState:
    """Memory of all layers, with the validity of its slots.

    layers       () before the first memory update of any row
    initialized  (B,) bool, the row's memory has been updated: its global slots are valid
    queue_mask   (B, T) bool, True = a valid slot; the newest is last
    """

    layers: tuple[LayerState, ...]
    initialized: Tensor
    queue_mask: Tensor

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> MemoryState:
        """The memory before a text's first chunk."""
        no_slots = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        return cls((), no_slots.any(1), no_slots)

    @property
    def slot_mask(self) -> Tensor:
        """(B, G + T) bool, valid slots: global slots, then the queue from old to new."""
        G = self.layers[0].global_state.shape[1] if self.layers else 0
        return torch.cat([self.initialized[:, None].expand(-1, G), self.queue_mask], 1)

    @property
    def bytes(self) -> int:
        """Bytes of all slots."""
        return sum(x.numel() * x.element_size() for layer in self.layers for x in (layer.global_state, layer.queue))

    def rows(self, index: Tensor) -> MemoryState:
        """The rows (R,) int64, in that order."""
        layers = tuple(LayerState(take_rows(x.global_state, index), take_rows(x.queue, index)) for x in self.layers)
        return MemoryState(layers, self.initialized[index], self.queue_mask[index])

    def reset_where(self, rows: Tensor) -> MemoryState:
        """The memory with no valid slot in the rows (B,) bool, where another text starts."""
        return replace(self, initialized=self.initialized & ~rows, queue_mask=self.queue_mask & ~rows[:, None])

    def detach_where(self, rows: Tensor) -> MemoryState:
        """The same values, detached from the graph in the rows (B,) bool."""

        def detach(x: Tensor) -> Tensor:
            return torch.where(rows[:, None, None], x.detach(), x)

        return replace(self, layers=tuple(LayerState(detach(x.global_state), detach(x.queue)) for x in self.layers))


class Norm(nn.RMSNorm):
    """Root-mean-square norm in float32 or wider, (..., D) -> (..., D)."""

    def forward(self, x: Tensor) -> Tensor:
        """The normed vectors."""
        return functional.rms_norm(at_least_float32(x), self.normalized_shape, at_least_float32(self.weight), self.eps)


class Adapter(nn.Module):
    """Residual low-rank adapter, x + U(D x): (..., D) -> (..., D) in float32 or wider."""

    def __init__(self, width: int, rank: int, init: str):
        super().__init__()
        self.down, self.up = _linear(width, rank), _linear(rank, width)
        if init == "zero":  # starts as the identity
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted vectors."""
        return x + _apply(self.up, _apply(self.down, x))


class LayerMemory(nn.Module):
    """The memory weights of one layer: 36 D parameters at rank 8.

    gated      False = new readouts replace the global state (an ablation)
    gate_bias  constant added to the gate's logit, not trained; a positive value favours the old state
    eps        of both norms, (global, temporary)
    """

    def __init__(
        self,
        width: int,
        rank: int = 8,
        gated: bool = True,
        gate_bias: float = 0.0,
        adapter_init: str = "normal",
        eps: tuple[float, float] = (1e-6, 1e-6),
    ):
        super().__init__()
        self.is_float32 = True  # as cast_for_inference reads it
        self.gate_bias = gate_bias
        self.global_norm, self.temporary_norm = Norm(width, eps[0]), Norm(width, eps[1])
        self.gate = _linear(2 * width, 1) if gated else None
        self.global_adapter, self.temporary_adapter = (Adapter(width, rank, adapter_init) for _ in range(2))

    def slots(self, state: LayerState) -> Tensor:
        """Slots that precede a chunk, (B, G + T, D): M, then the queue, in the queue's dtype."""
        if not state.global_state.shape[1]:
            return state.queue
        return torch.cat([self.global_adapter(state.global_state).to(state.queue.dtype), state.queue], 1)

    def update_global(self, state: Tensor, readouts: Tensor, initialized: Tensor, updates: Tensor) -> Tensor:
        """S' (B, G, D) after a chunk, in float32 or wider; rows outside `updates` (B,) bool do not change.

        state S (B, G, D), readouts R (B, G, D), initialized (B,) bool: S is valid
        """
        if not state.shape[1]:
            return state
        new = candidate = self.global_norm(readouts)
        if self.gate is not None:
            g = torch.sigmoid(_apply(self.gate, torch.cat([candidate, state], -1)) + self.gate_bias)
            new = torch.where(initialized[:, None, None], g * state + (1 - g) * candidate, candidate)
        return torch.where(updates[:, None, None], new, state)

    def queue_entries(self, outputs: Tensor) -> Tensor:
        """E (B, k, D) from the layer's outputs at the compression tokens K (B, k, D), in their dtype."""
        return self.temporary_adapter(self.temporary_norm(outputs)).to(outputs.dtype)


def newest_columns(queue_mask: Tensor, entry_mask: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """First in, first out: the columns of [queue ; entries] that stay, padding first and the newest last.

    queue_mask (B, T), entry_mask (B, k) of the new entries. Returns columns (B, T') int64 of the two side by side,
    T' = min(T + k, budget), and their mask (B, T').
    """
    mask = torch.cat([queue_mask, entry_mask], 1)
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, max(mask.shape[1] - budget, 0) :]
    return order, mask.gather(1, order)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index]; of a single row a view, so that the questions on one text share its memory."""
    return x.expand(len(index), *x.shape[1:]) if len(x) == 1 else x[index]


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=STD)
    return linear


def _apply(linear: nn.Linear, x: Tensor) -> Tensor:
    """The result in float32 or wider, also under autocast. Computed in the weight's dtype (DeepSpeed's bf16 engine)."""
    with torch.autocast(x.device.type, enabled=False):
        return at_least_float32(linear(x.to(linear.weight.dtype)))
