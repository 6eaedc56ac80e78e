"""COMI's groups and weights, independent of the encoder and of merging (arXiv 2602.01719, spec A3 and A4).

Shape letters: R rows, L tokens of a row, G slots of a row, D width.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from breviary.memory.merging import consecutive_groups, groups_from_sizes
from comi.information_gain import merge_weights, precompute, reallocate_groups


class GainGrouping(nn.Module):
    """Tokens of high marginal information gain get short groups and large weights.

    Arguments as in `comi.model.COMI`. Other methods that accept a grouping can use it, e.g. as `skimmer` of RAM.
    """

    def __init__(
        self,
        coarse: bool = True,
        fine: bool = True,
        redundancy_coarse: bool = True,
        redundancy_fine: bool = True,
        alpha: float = 1.0,
        beta: float = 1.0,
        temperature: float = 1.0,
        min_group_size: int = 0,
        learned_weights: str = "none",
        quirks: bool = False,
    ):
        super().__init__()
        self.is_float32 = True  # as cast_for_inference reads it
        self.coarse, self.fine, self.quirks = coarse, fine, quirks
        self.redundancy_coarse, self.redundancy_fine = redundancy_coarse, redundancy_fine
        self.alpha, self.beta = alpha, beta
        self.temperature, self.min_group_size = temperature, min_group_size
        if learned_weights == "merge":
            self.merge_alpha = nn.Parameter(torch.tensor([float(alpha)]))  # shape (1,): DeepSpeed rejects scalars
            if redundancy_fine:  # otherwise it would never receive a gradient
                self.merge_beta = nn.Parameter(torch.tensor([float(beta)]))
        self.learned_weights = learned_weights

    def forward(
        self,
        states: Tensor | None,
        mask: Tensor,
        query: Tensor | None,
        ratio: int | Tensor,
        slots: int,
        relevance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Groups and weights, both (R, L), from states (R, L, D), mask (R, L) and query (R, D).

        The coarse stage determines group sizes, the fine stage weights; weights None = plain means.

        ratio      tokens per slot, an int or (R,)
        slots      upper bound on the groups of a row
        relevance  (R, L) of each token, in place of the cosine with the query; None = the cosine

        At ratio 1 every token is a group and states and query may be None. Learned weights then get gradients of 0, as
        DDP and ZeRO wait for a gradient of each; here and not in the caller, because ZeRO-3 gathers weights by call.
        """
        groups_RL = consecutive_groups(mask, ratio)
        if isinstance(ratio, int) and ratio == 1:
            learned_weights = list(self.parameters())
            ones_RL = torch.ones(mask.shape, device=mask.device)
            return groups_RL, ones_RL + sum(0 * weight for weight in learned_weights) if learned_weights else None
        assert states is not None and query is not None, "states and query at a ratio above 1"
        precomputed = precompute(states, query)
        if relevance is not None:
            precomputed = dataclasses.replace(precomputed, relevance=relevance.to(precomputed.relevance.dtype))
        if self.coarse:
            beta = self.beta if self.redundancy_coarse else 0.0
            sizes_RG = reallocate_groups(
                states,
                mask,
                query,
                ratio,
                self.alpha,
                beta,
                self.temperature,
                self.min_group_size,
                slots=slots,
                precomputed=precomputed,
            )
            groups_RL = groups_from_sizes(sizes_RG, mask)
        if not self.fine:
            return groups_RL, None
        learned = self.learned_weights == "merge"
        alpha = self.merge_alpha if learned else self.alpha
        beta = 0.0 if not self.redundancy_fine else self.merge_beta if learned else self.beta
        return groups_RL, merge_weights(
            states, mask, query, groups_RL, slots, alpha, beta, quirks=self.quirks, precomputed=precomputed
        )
