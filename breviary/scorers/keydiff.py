"""KeyDiff (arXiv 2504.15364): keys unlike the average key."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from breviary.scorers.base import Scorer
from breviary.scorers.views import LayerKeys


class KeyDiff(Scorer):
    """The negative cosine of each rotated key with the mean of all normalised keys of its head.

    Cost: T d for each key head. Applied once to the whole context; the paper evicts after each block of 128 tokens.
    """

    def score(self, view: LayerKeys) -> Tensor:
        """-cos(k, mean(k / ||k||))."""
        keys = view.keys.float()
        valid = view.mask[:, None, :, None]
        anchor = normalize(keys, dim=-1).masked_fill(~valid, 0).sum(2, keepdim=True) / valid.sum(2, keepdim=True).clamp(
            1
        )
        return -cosine_similarity(keys, anchor, dim=-1)
