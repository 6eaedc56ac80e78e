"""Random entries: a lower bound for every scorer."""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.memory.hashing import HASH_RANGE, hash_integers
from breviary.scorers.base import Scorer
from breviary.scorers.views import LayerKeys


class RandomEntries(Scorer):
    """A pseudo-random score for each layer, head and token index; equal in every batch and process.

    seed  of the draw
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed = seed

    def score(self, view: LayerKeys) -> Tensor:
        """Uniform in [0, 1)."""
        heads = torch.arange(view.keys.shape[1], device=view.mask.device)[:, None]
        numbers = hash_integers(view.index + 100_003 * (heads + 1_009 * (view.layer + 251 * (self.seed + 1))))
        return (numbers / HASH_RANGE).float().expand(len(view.mask), -1, -1)
