"""The interface of scorers.

Shape letters: see views.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, max_pool1d

from breviary.contract import Tokens
from breviary.scorers.views import LayerKeys, LayerQueries

OBSERVED = 64  # last context tokens whose queries are stored where a scorer observes the tail
PROTECTED = 1e30  # score of entries that are kept before all others


class Scorer(nn.Module):
    """Ranks the entries of each layer's keys and values. Every head keeps the best; ties keep the lower index.

    question_aware  whether the question can be the observer (compressor.question=known)
    window          observers: so many last tokens of the context or of the prompt; 0 = the scorer reads no queries
    observes        what `observe` stores while contexts are encoded: none | tail | the name of other features
    biases          whether an entry holds a float32 bias (`fit`)
    """

    question_aware: bool = False
    observes: str = "none"
    window: int = 0
    biases: bool = False

    def score(self, view: LayerKeys) -> Tensor:
        """Scores (B, J, T) float32; higher is kept first. Padding may have any value."""
        raise NotImplementedError

    def allocate(self, scores: list[Tensor], masks: Tensor, budget: Tensor) -> list[Tensor]:
        """Entries that each head keeps, (B, J) int64 for each layer. Here: the budget (B,) for every head.

        scores  (B, J, T) of each layer; masks (B, T)
        """
        return [budget[:, None].expand(-1, score.shape[1]) for score in scores]

    def fit(self, view: LayerKeys, kept: Tensor) -> tuple[Tensor, Tensor] | None:
        """New values (B, J, T, d) and biases (B, J, T) of kept entries (B, J, T) bool; None = unchanged, unbiased."""
        return None

    def observe(self, layer: LayerQueries) -> Tensor:
        """Features that scoring needs beside keys and values, (B, N, F), zero on padding.

        Here: rotated queries of the tokens of `observed_index`, (B, N, J * G * d).
        """
        index = self.observed_index(layer.mask.sum(1, keepdim=True))
        rotated = layer.rotated(index.clamp(0, layer.mask.shape[1] - 1))
        return rotated.flatten(1, 2).transpose(1, 2).flatten(2).masked_fill((index < 0)[..., None], 0)

    def observed_index(self, lengths: Tensor) -> Tensor:
        """Context tokens whose queries `observe` stores, (B, N) int64, below 0 = none, of contexts of `lengths` (B, 1).

        Here: the last OBSERVED, in order, right-aligned.
        """
        return lengths - OBSERVED + torch.arange(OBSERVED, device=lengths.device)

    def probes(self, ids: Tensor, mask: Tensor, tokenizer: Any) -> list[tuple[Tokens, slice]]:
        """Texts that are run behind the whole cache to observe it: tokens, and the part of T that each sees and scores.

        ids, mask  (B, T) of the contexts. The best score over all probes counts.
        """
        return []

    def probe_tokens(self, context_tokens: int) -> int:
        """Upper bound on the tokens of a probe, which need positions of the backbone."""
        return 0


class ScorerWrapper(Scorer):
    """Passes everything to `scorer`; a subclass overrides `allocate`.

    Raises: ValueError for a scorer that fits values, which its own budget determines.
    """

    def __init__(self, scorer: Scorer):
        super().__init__()
        if type(scorer).fit is not Scorer.fit or isinstance(scorer, ScorerWrapper):
            raise ValueError(f"scorer.scorer={type(scorer).__name__}: must rank entries only, e.g. SnapKV")
        self.scorer = scorer
        self.question_aware, self.observes = scorer.question_aware, scorer.observes
        self.window = scorer.window

    def score(self, view: LayerKeys) -> Tensor:
        """As the wrapped scorer."""
        return self.scorer.score(view)

    def observe(self, layer: LayerQueries) -> Tensor:
        """As the wrapped scorer."""
        return self.scorer.observe(layer)

    def observed_index(self, lengths: Tensor) -> Tensor:
        """As the wrapped scorer."""
        return self.scorer.observed_index(lengths)

    def probes(self, ids: Tensor, mask: Tensor, tokenizer: Any) -> list[tuple[Tokens, slice]]:
        """As the wrapped scorer."""
        return self.scorer.probes(ids, mask, tokenizer)

    def probe_tokens(self, context_tokens: int) -> int:
        """As the wrapped scorer."""
        return self.scorer.probe_tokens(context_tokens)


def protect(scores: Tensor, where: Tensor, index: Tensor) -> Tensor:
    """`scores` (B, J, T) with entries `where` (B, T) kept before all others, those with a higher `index` (T,) first."""
    first = PROTECTED * (1 + index * 1e-6)
    return torch.where(where[:, None], first, scores)


def pool(scores: Tensor, mask: Tensor, kernel: int, mode: str) -> Tensor:
    """Smooths scores (B, J, T) over neighbouring tokens; borders count as zero. mode: avg | max | none."""
    if mode == "none" or kernel == 1:
        return scores
    scores = scores.masked_fill(~mask[:, None], 0)
    if mode == "avg":
        return avg_pool1d(scores, kernel, 1, kernel // 2)
    return max_pool1d(scores, kernel, 1, kernel // 2)


def ranks(scores: Tensor) -> Tensor:
    """Place of each entry in descending order along the last dimension, from 0; ties keep the lower index first."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def select(scores: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
    """The `counts` (B, J) highest of scores (B, J, T) among mask (B, T), as (B, J, T) bool. Ties: the lower index."""
    return (ranks(scores.masked_fill(~mask[:, None], -torch.inf)) < counts[..., None]) & mask[:, None]


def best_entries(scores: Tensor, total: Tensor) -> Tensor:
    """The `total` (B,) highest of scores (B, ...) in each row, over all other dimensions, as bool."""
    return (ranks(scores.flatten(1)) < total[:, None]).view_as(scores)


def check_kernel(kernel: int, pooling: str) -> None:
    """Raises: ValueError for a pooling that would shift or change the number of scores."""
    if pooling not in ("avg", "max", "none"):
        raise ValueError(f"scorer.pooling={pooling}: allowed are avg, max, none")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"scorer.kernel={kernel}: must be an odd number of tokens, e.g. 7")


def check_window(window: int) -> None:
    """Raises: ValueError for a window that encoding does not store."""
    if not 1 <= window <= OBSERVED:
        raise ValueError(f"scorer.window={window}: must be from 1 to {OBSERVED} tokens, e.g. 32")


def protected_entries(scores: Tensor) -> Tensor:
    """Number of entries that `protect` raised in scores (B, J, T), (B,) int64; equal for all heads."""
    return (scores[:, 0] > PROTECTED / 2).sum(-1)


def round_to_sum(shares: Tensor, total: Tensor) -> Tensor:
    """Whole numbers near `shares` (..., N) >= 0 whose sum is `total` (...), by largest remainder."""
    floors = shares.floor()
    missing = total - floors.sum(-1).long()
    return floors.long() + (ranks(shares - floors) < missing[..., None])
