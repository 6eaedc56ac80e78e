"""Random units: the lower bound of every selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from breviary.memory.hashing import HASH_RANGE, hash_integers, hash_tokens
from breviary.selection.relevance import Candidates, Relevance


class Random(Relevance):
    """A score in [0, 1) from a hash of the context, the number of the unit and `seed`: batch-mates have no effect.

    seed  another seed draws other units
    """

    needs_question = False

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed = seed

    def scores(self, candidates: Candidates) -> Tensor:
        """(B, U) float64."""
        context_B1 = hash_tokens(candidates.ids.masked_fill(~candidates.mask, 0), candidates.mask)[:, None]
        units_U = torch.arange(candidates.count, device=candidates.ids.device)
        return hash_integers(hash_integers(context_B1 + self.seed) + units_U * 7919).double() / HASH_RANGE

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As Relevance.problems."""
        if settings["seed"] >= 0:
            return []
        return [f"compressor.relevance.seed={settings['seed']}: must be 0 or more, e.g. 0"]
