"""H2O, heavy-hitter oracle (arXiv 2306.14048): the most attended tokens so far, and the most recent ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from breviary.memory.observers import Observers
from breviary.scorers.base import Scorer, protect
from breviary.scorers.views import LayerKeys, LayerQueries

BLOCK = 256  # queries at a time


class H2O(Scorer):
    """The sum over all context tokens of the attention that a token receives; half of the budget goes to recent ones.

    Cost: the whole attention matrix, T^2 d for each head a second time, in blocks of queries; no kernel returns it.
    Early tokens are seen by more queries and are favoured, as published. Scores do not change while decoding.
    """

    observes = "received attention"

    def observe(self, layer: LayerQueries) -> Tensor:
        """Received attention, averaged over the query heads of a group: (B, T, J)."""
        queries, T = layer.rotated(), layer.mask.shape[1]
        index = torch.arange(T, device=layer.mask.device)
        received = queries.new_zeros(len(queries), layer.keys.shape[1], T, dtype=torch.float32)
        for start in range(0, T, BLOCK):
            part = slice(start, start + BLOCK)
            own = index[part].expand(len(queries), -1)
            nothing = layer.mask.new_zeros(*own.shape, 0)
            block = Observers(queries[:, :, :, part], layer.mask[:, part], own, layer.keys[:, :, :0], nothing)
            visible = layer.mask[:, None] & (index <= own[..., None])
            received += block.attention(layer.keys, visible, layer.prefix_keys, layer.prefix_mask).sum(3).mean(2)
        return received.transpose(1, 2)

    def score(self, view: LayerKeys) -> Tensor:
        """Received attention; the last budget // 2 tokens above all."""
        assert view.observed is not None
        received = view.observed.transpose(1, 2).float()
        # Cached contexts may be padded to another width than when they were encoded.
        received = pad(received, (0, max(len(view.index) - received.shape[2], 0)))[..., : len(view.index)]
        recent = view.index >= view.lengths - torch.div(view.budget, 2, rounding_mode="floor")[:, None]
        return protect(received, recent & view.mask, view.index)
