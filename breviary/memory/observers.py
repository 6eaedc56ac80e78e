"""Tokens that observe a cache: their queries, their attention to it, and the pass that runs them behind it.

Shape letters: B contexts, S columns of [prefix ; context], T context tokens (left-packed), P prefix tokens, J key/value
heads, G query heads of one key/value head, W observing tokens, X further keys that observers see, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from breviary.backbones.stack import ReadOnlyCache, Stack
from breviary.contract import Tokens
from breviary.memory.assembly import Layout
from breviary.memory.columns import Columns

Pair = tuple[Tensor, Tensor]


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
