"""PyramidKV (arXiv 2406.02069): lower layers keep more than upper ones."""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.scorers.base import Scorer, ScorerWrapper, protected_entries, round_to_sum


class PyramidKV(ScorerWrapper):
    """Layer budgets that fall linearly, over the scores of another scorer (published: SnapKV).

    With b entries a head beside the protected window: the last layer keeps b / beta, the first 2 b - b / beta, and the
    layers together exactly L b. Where the first layer would exceed the context, it keeps all of it.

    scorer  ranks the entries
    beta    steepness, at least 1; 1 = every layer keeps the same
    """

    def __init__(self, scorer: Scorer, beta: float = 20):
        super().__init__(scorer)
        if beta < 1:
            raise ValueError(f"scorer.beta={beta}: must be at least 1 (1 = equal budgets), e.g. 20")
        self.beta = beta

    def allocate(self, scores: list[Tensor], masks: Tensor, budget: Tensor) -> list[Tensor]:
        """Entries of each layer's heads."""
        window = protected_entries(scores[0])
        base, room = (budget - window).clamp(min=0), masks.sum(1) - window
        last = base / self.beta
        first = torch.minimum(2 * base - last, room)
        last = 2 * base - first
        slope = torch.linspace(0, 1, len(scores), device=budget.device)
        counts = round_to_sum(first[:, None] + (last - first)[:, None] * slope, base * len(scores))
        counts = counts + torch.minimum(window, budget)[:, None]
        heads = scores[0].shape[1]
        return [counts[:, layer, None].expand(-1, heads) for layer in range(len(scores))]
