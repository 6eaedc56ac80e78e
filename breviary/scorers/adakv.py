"""AdaKV (arXiv 2407.11550): heads with higher scores keep more."""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.scorers.base import PROTECTED, Scorer, ScorerWrapper, best_entries, protected_entries, round_to_sum


class AdaKV(ScorerWrapper):
    """Head budgets within each layer, over the scores of another scorer.

    The best J b entries of all heads of a layer, b a head beside the protected window, determine each head's number c;
    a head keeps (1 - floor) c + floor b, rounded so that the layer keeps J b.

    scorer  ranks the entries
    floor   share of an equal budget that every head keeps, 0 to 1 (published: 0.2)
    Memory holds exactly the kept entries; heads are padded to the longest one of their layer while attention runs.
    """

    def __init__(self, scorer: Scorer, floor: float = 0.2):
        super().__init__(scorer)
        if not 0 <= floor <= 1:
            raise ValueError(f"scorer.floor={floor}: must be from 0 to 1, e.g. 0.2")
        self.floor = floor

    def allocate(self, scores: list[Tensor], masks: Tensor, budget: Tensor) -> list[Tensor]:
        """Entries of each head."""
        window = protected_entries(scores[0])
        base = (budget - window).clamp(min=0)
        counts = []
        for score in scores:
            candidates = score.masked_fill(~masks[:, None] | (score > PROTECTED / 2), -torch.inf)
            heads = score.shape[1]
            best = best_entries(candidates, base * heads).sum(-1)
            # No head can keep more than the context has: the floor only moves towards the equal split.
            shares = (1 - self.floor) * best + self.floor * base[:, None]
            counts.append(round_to_sum(shares, base * heads) + torch.minimum(window, budget)[:, None])
        return counts
