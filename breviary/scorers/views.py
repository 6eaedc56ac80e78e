"""What scorers see of a decoder layer, and the pass that lets tokens observe a cache.

Shape letters: B contexts, T context tokens (left-packed), P prefix tokens, J key/value heads, G query heads of one
key/value head, W observing tokens, X further keys that observers see, d head width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from breviary.backbones.stack import ReadOnlyCache, Stack, rotate
from breviary.contract import Tokens
from breviary.memory.assembly import Layout
from breviary.memory.columns import Columns

Pair = tuple[Tensor, Tensor]
BLOCK = 64  # observers at a time, whose attention then stays in the processor's caches


@dataclass
class Observers:
    """Queries whose attention to the context a scorer reads.

    queries  (B, J, G, W, d), rotated; mask (B, W)
    index    (B, W) int64, each observer's own index among the context's tokens; T or more = it sees all of them
    keys     (B, J, X, d), further keys, behind the context; visible (B, W, X)
    """

    queries: Tensor
    mask: Tensor
    index: Tensor
    keys: Tensor
    visible: Tensor

    def block(self, part: slice) -> Observers:
        """Some of the observers."""
        return Observers(
            self.queries[:, :, :, part], self.mask[:, part], self.index[:, part], self.keys, self.visible[:, part]
        )

    def attention(self, keys: Tensor, visible: Tensor, prefix_keys: Tensor, prefix_mask: Tensor) -> Tensor:
        """Attention over the context's tokens, (B, J, G, W, T) float32, zero for observers that are padding.

        The softmax is over all visible keys: prefix, context (keys (B, J, T, d), visible (B, W, T)), and `self.keys`.
        """
        all_keys = torch.cat([prefix_keys, keys, self.keys], 2).float()
        all_visible = torch.cat([prefix_mask[:, None].expand(-1, visible.shape[1], -1), visible, self.visible], 2)
        # The scores of all observers are large: masked in place. Training needs the softmax as it is.
        scores = torch.einsum("bjgwd,bjkd->bjgwk", self.queries.float() * keys.shape[-1] ** -0.5, all_keys)
        scores.masked_fill_(~all_visible[:, None, None], torch.finfo(torch.float32).min)
        P, T = prefix_keys.shape[2], keys.shape[2]
        weights = scores.softmax(-1)[..., P : P + T]
        return weights.masked_fill(~(visible & self.mask[..., None])[:, None, None], 0)


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


def run_behind(
    decoder: Stack,
    states: Tensor,
    tokens: Tokens,
    columns: Columns,
    pairs: Sequence[Pair],
    window: int | None = None,
    first: int = 0,
) -> Iterator[Observers | None]:
    """Runs tokens behind a whole cache and yields their last `window` ones as observers of each layer.

    states          (B, F, D) embeddings of `tokens`
    columns, pairs  of the cache: keys and values (B, J, S, d) of each of its layers
    window          None = all tokens observe
    first           layers before this one are run, and yield None
    """
    layout = Layout.of([tokens.mask])
    states = layout.pack([states])
    lengths = layout.mask.sum(1, keepdim=True)
    positions = (layout.positions() + columns.lengths[:, None]).masked_fill(~layout.mask, 0)
    width = states.shape[1] if window is None else min(window, states.shape[1])
    place = torch.arange(width, device=states.device).expand(len(states), -1)
    if window is not None:
        place = lengths - width + place
    own = torch.arange(states.shape[1], device=states.device)
    mask = (place >= 0) & (place < lengths)
    visible = layout.mask[:, None] & (own <= place[..., None])
    sees_all = torch.full_like(place, columns.mask.shape[1])
    key_mask, cache = torch.cat([columns.valid, layout.mask], 1), ReadOnlyCache(pairs)
    for index in range(len(pairs)):
        if index < first:
            yield None
            states = decoder.run(states, range(index, index + 1), positions, key_mask, cache)
            continue
        queries = decoder.queries(index, states, positions)
        keys, _ = decoder.keys_values(index, states, positions)
        taken = queries.gather(
            2, place.clamp(min=0)[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3])
        )
        yield Observers(taken.unflatten(1, (keys.shape[1], -1)), mask, sees_all, keys, visible)
        if index < len(pairs) - 1:
            states = decoder.run(states, range(index, index + 1), positions, key_mask, cache)
