"""CoMeT's memory of one layer (spec 1.4): gated global slots and a FIFO queue, and the new weights that keep them.

Shape letters: B rows, G global slots (as many as readout tokens), k compression tokens of a chunk, T queue slots, D width.

    S~ = norm_g(R)                                   R (B, G, D)  the layer's output at the readout tokens
    S' = S~ after a text's first chunk, else g S + (1 - g) S~,  g = sigmoid([S~ ; S] W_g + bias), one scalar a slot
    M  = RLA_g(S)                                    what is seated in the next chunk; S itself is carried
    E  = RLA_t(norm_t(K))                            K (B, k, D)  the layer's output at the compression tokens
    Q' = the newest slots of [Q ; E], as many as the budget
    RLA(x) = x + U(D x), rank 8, no bias
All of it in float32 at least, whatever the model's type: S is carried over hundreds of chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

INITS = ("normal", "zero")
STD = 0.02  # of new linear weights, as published


@dataclass(frozen=True)
class LayerState:
    """One layer's memory: carried (B, G, D) float32, zeros before a text's first chunk is closed; queue (B, T, D)."""

    carried: Tensor
    queue: Tensor


@dataclass(frozen=True)
class MemoryState:
    """The memory of every layer, and which of its slots hold something.

    layers      () = nothing was taken in yet, in any row
    started     (B,) bool, a chunk has been closed: the global slots hold something
    queue_mask  (B, T) bool, True = a slot; the newest stands last
    """

    layers: tuple[LayerState, ...]
    started: Tensor
    queue_mask: Tensor

    @classmethod
    def fresh(cls, rows: int, device: torch.device) -> MemoryState:
        """The memory of texts of which nothing was taken in."""
        empty = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        return cls((), empty.any(1), empty)

    @property
    def seat_mask(self) -> Tensor:
        """(B, G + T) bool, valid memory seats: global slots, then the queue from old to new."""
        G = self.layers[0].carried.shape[1] if self.layers else 0
        return torch.cat([self.started[:, None].expand(-1, G), self.queue_mask], 1)

    @property
    def bytes(self) -> int:
        """Bytes that the slots take."""
        return sum(x.numel() * x.element_size() for layer in self.layers for x in (layer.carried, layer.queue))

    def rows(self, index: Tensor) -> MemoryState:
        """The rows (R,) int64, in that order."""
        layers = tuple(LayerState(x.carried[index], x.queue[index]) for x in self.layers)
        return MemoryState(layers, self.started[index], self.queue_mask[index])

    def fresh_where(self, begins: Tensor) -> MemoryState:
        """Forgets everything in the rows (B,) bool where another text begins."""
        return replace(self, started=self.started & ~begins, queue_mask=self.queue_mask & ~begins[:, None])

    def cut_where(self, rows: Tensor) -> MemoryState:
        """The same values; in the rows (B,) bool gradients end here."""

        def cut(x: Tensor) -> Tensor:
            return torch.where(rows[:, None, None], x.detach(), x)

        return replace(self, layers=tuple(LayerState(cut(x.carried), cut(x.queue)) for x in self.layers))


class Norm(nn.RMSNorm):
    """Root-mean-square norm in float32 at least, (..., D) -> (..., D)."""

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return functional.rms_norm(wide(x), self.normalized_shape, wide(self.weight), self.eps)


class Adapter(nn.Module):
    """Residual low-rank adapter, x + U(D x): (..., D) -> (..., D) in float32."""

    def __init__(self, width: int, rank: int, init: str):
        super().__init__()
        self.down, self.up = _linear(width, rank), _linear(rank, width)
        if init == "zero":  # the identity until it is trained
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return x + _apply(self.up, _apply(self.down, x))


class LayerMemory(nn.Module):
    """The weights that keep one layer's memory: 36 D of them at rank 8.

    gated      False = the newest readouts replace the old state (an ablation)
    gate_bias  added to the gate's logit, not trained; above 0 favours what is there
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
        self.gate_bias = gate_bias
        self.global_norm, self.temporary_norm = Norm(width, eps[0]), Norm(width, eps[1])
        self.gate = _linear(2 * width, 1) if gated else None
        self.global_adapter, self.temporary_adapter = (Adapter(width, rank, adapter_init) for _ in range(2))

    def seats(self, state: LayerState) -> Tensor:
        """What is seated before a chunk, (B, G + T, D): M, then the queue, in the queue's type."""
        if not state.carried.shape[1]:
            return state.queue
        return torch.cat([self.global_adapter(state.carried).to(state.queue.dtype), state.queue], 1)

    def carry(self, carried: Tensor, readouts: Tensor, started: Tensor, closes: Tensor) -> Tensor:
        """S after a chunk, (B, G, D) float32, changed in the rows (B,) whose chunk closes.

        carried S (B, G, D), readouts R (B, G, D), started (B,) whether S holds anything yet
        """
        if not carried.shape[1]:
            return carried
        new = candidate = self.global_norm(readouts)
        if self.gate is not None:
            kept_share = torch.sigmoid(_apply(self.gate, torch.cat([candidate, carried], -1)) + self.gate_bias)
            new = torch.where(started[:, None, None], kept_share * carried + (1 - kept_share) * candidate, candidate)
        return torch.where(closes[:, None, None], new, carried)

    def entries(self, beacons: Tensor) -> Tensor:
        """What compression tokens' outputs (B, k, D) put into the queue, (B, k, D), in their type."""
        return self.temporary_adapter(self.temporary_norm(beacons)).to(beacons.dtype)


def newest(mask: Tensor, entries_mask: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """First in, first out: which of [queue ; entries] stay, the newest last, pads first.

    mask (B, T) of the queue, entries_mask (B, k) of what comes in. Gives columns (B, T') int64 of the two side by side,
    T' = min(T + k, budget), and their mask (B, T').
    """
    joined = torch.cat([mask, entries_mask], 1)
    order = joined.to(torch.uint8).argsort(dim=1, stable=True)[:, max(joined.shape[1] - budget, 0) :]
    return order, joined.gather(1, order)


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=STD)
    return linear


def _apply(linear: nn.Linear, x: Tensor) -> Tensor:
    """In float32 at least, also under autocast; the weight's own type where it is narrower (DeepSpeed's bf16 engine)."""
    with torch.autocast(x.device.type, enabled=False):
        return wide(linear(x.to(linear.weight.dtype)))
