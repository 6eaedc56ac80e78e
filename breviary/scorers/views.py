"""What scorers see of a decoder layer.

Shape letters: B contexts, T context tokens (left-packed), P prefix tokens, J key/value heads, G query heads of one
key/value head, W observing tokens, d head width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from breviary.backbones.stack import rotate
from breviary.memory.observers import Observers

BLOCK = 64  # observers at a time, whose attention then stays in the processor's caches


@dataclass
class LayerQueries:
    """One decoder layer's queries of B contexts, while these are encoded.

    project      maps indices (B, N) of context tokens to their queries before rotation, (B, J, G, N, d)
    keys         (B, J, T, d) rotated; mask (B, T), right-padded
    positions    (B, T); rotary maps positions (B, N) to cos and sin, each (B, N, d)
    prefix_keys  (B, J, P, d); prefix_mask (B, P)
    """

    project: Callable[[Tensor], Tensor]
    keys: Tensor
    mask: Tensor
    positions: Tensor
    rotary: Callable[[Tensor], tuple[Tensor, Tensor]]
    prefix_keys: Tensor
    prefix_mask: Tensor

    def queries(self) -> Tensor:
        """Queries of all tokens before rotation, (B, J, G, T, d)."""
        return self.project(self._all)

    def rotated(self, index: Tensor | None = None) -> Tensor:
        """Rotated queries of the tokens `index` (B, N), (B, J, G, N, d). None = of all."""
        index = self._all if index is None else index
        queries = self.project(index)
        return rotate(queries.flatten(1, 2), *self.rotary(self.positions.gather(1, index))).view_as(queries)

    @property
    def _all(self) -> Tensor:
        return torch.arange(self.mask.shape[1], device=self.mask.device).expand(len(self.mask), -1)


@dataclass
class LayerKeys:
    """One decoder layer's keys and values of B contexts.

    layer, layers  index of the layer, and their number L
    keys, values   (B, J, T, d), keys rotated
    mask           (B, T) True = a token; right-padded
    prefix_keys    (B, J, P, d); prefix_mask (B, P)
    budget         (B,) int64, entries that each head keeps under an equal split
    observed       (B, N, F), what `Scorer.observe` stored of this layer; None where it stores nothing
    observers      None where the scorer reads no queries
    """

    layer: int
    layers: int
    keys: Tensor
    values: Tensor
    mask: Tensor
    prefix_keys: Tensor
    prefix_mask: Tensor
    budget: Tensor
    observed: Tensor | None = None
    observers: Observers | None = None

    @property
    def index(self) -> Tensor:
        """Index of each token of a context, (T,)."""
        return torch.arange(self.mask.shape[1], device=self.mask.device)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each context, (B, 1)."""
        return self.mask.sum(1, keepdim=True)

    def attention(self) -> Tensor:
        """The observers' attention to the context, (B, J, G, W, T) float32."""
        return torch.cat([*self.attention_blocks(2**30)], 3)

    def attention_blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        """As `attention`, for at most `size` observers at a time."""
        assert self.observers is not None, "this scorer reads no queries"
        for start in range(0, self.observers.mask.shape[1], size):
            block = self.observers.block(slice(start, start + size))
            visible = self.mask[:, None] & (self.index <= block.index[..., None])
            yield block.attention(self.keys, visible, self.prefix_keys, self.prefix_mask)

    @property
    def is_window(self) -> Tensor:
        """Which context tokens observe, (B, T): none where the question does."""
        assert self.observers is not None, "this scorer reads no queries"
        own = self.observers.index.masked_fill(~self.observers.mask, -1)
        return (self.index[None, :, None] == own[:, None]).any(-1)
