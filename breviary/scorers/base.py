"""The interface of scorers, and what they see of a decoder layer.

Shape letters: B contexts, T context tokens (left-packed), P prefix tokens, J key/value heads, G query heads of one
key/value head, W observing tokens, X further keys that observers see, d head width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, max_pool1d

from breviary.backbones.stack import rotate
from breviary.contract import Tokens

OBSERVED = 64  # last context tokens whose queries are stored where a scorer observes the tail
PROTECTED = 1e30  # score of entries that are kept before all others


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
        scores = torch.einsum("bjgwd,bjkd->bjgwk", self.queries.float(), all_keys) / keys.shape[-1] ** 0.5
        scores = scores.masked_fill(~all_visible[:, None, None], torch.finfo(torch.float32).min)
        P, T = prefix_keys.shape[2], keys.shape[2]
        weights = scores.softmax(-1)[..., P : P + T]
        return weights.masked_fill(~(visible & self.mask[..., None])[:, None, None], 0)


@dataclass
class LayerQueries:
    """One decoder layer's queries of B contexts, while these are encoded.

    queries      (B, J, G, T, d) before rotation; keys (B, J, T, d) rotated; mask (B, T), right-padded
    positions    (B, T); rotary maps positions (B, N) to cos and sin, each (B, N, d)
    prefix_keys  (B, J, P, d); prefix_mask (B, P)
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor
    positions: Tensor
    rotary: Callable[[Tensor], tuple[Tensor, Tensor]]
    prefix_keys: Tensor
    prefix_mask: Tensor

    def rotated(self) -> Tensor:
        """The queries after rotation, (B, J, G, T, d)."""
        return rotate(self.queries.flatten(1, 2), *self.rotary(self.positions)).view_as(self.queries)


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
    chunk          (B, T) the part of the context that observers see and score; None = all of it
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
    chunk: Tensor | None = None

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

    def attention_blocks(self, size: int = 256) -> Iterator[Tensor]:
        """As `attention`, for at most `size` observers at a time."""
        assert self.observers is not None, "this scorer reads no queries"
        seen = self.mask if self.chunk is None else self.mask & self.chunk
        for start in range(0, self.observers.mask.shape[1], size):
            block = self.observers.block(slice(start, start + size))
            visible = seen[:, None] & (self.index <= block.index[..., None])
            yield block.attention(self.keys, visible, self.prefix_keys, self.prefix_mask)

    @property
    def is_window(self) -> Tensor:
        """Which context tokens observe, (B, T): none where the question does."""
        assert self.observers is not None, "this scorer reads no queries"
        own = self.observers.index.masked_fill(~self.observers.mask, -1)
        return (self.index[None, :, None] == own[:, None]).any(-1)


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
        rotated = layer.rotated().flatten(1, 2).transpose(1, 2).flatten(2)  # (B, T, J * G * d)
        index = self.observed_index(layer.mask.sum(1, keepdim=True))
        taken = rotated.gather(1, index.clamp(0, rotated.shape[1] - 1)[..., None].expand(-1, -1, rotated.shape[-1]))
        return taken.masked_fill((index < 0)[..., None], 0)

    def observed_index(self, lengths: Tensor) -> Tensor:
        """Context tokens whose queries `observe` stores, (B, N) int64, below 0 = none, of contexts of `lengths` (B, 1).

        Here: the last OBSERVED, in order, right-aligned.
        """
        return lengths - OBSERVED + torch.arange(OBSERVED, device=lengths.device)

    def probes(self, ids: Tensor, mask: Tensor, tokenizer: Any) -> list[tuple[Tokens, Tensor]]:
        """Texts that are run behind the whole cache to observe it: tokens, and the chunk (B, T) that each one scores.

        ids, mask  (B, T) of the contexts. The best score over all probes counts.
        """
        return []

    def probe_tokens(self, context_tokens: int) -> int:
        """Upper bound on the tokens of a probe, which need positions of the backbone."""
        return 0


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


def select(scores: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
    """The `counts` (B, J) highest of scores (B, J, T) among mask (B, T), as (B, J, T) bool. Ties: the lower index."""
    order = scores.masked_fill(~mask[:, None], -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    place = torch.empty_like(order).scatter_(-1, order, rank)
    return (place < counts[..., None]) & mask[:, None]


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
    order = (shares - floors).argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(
        -1, order, torch.arange(shares.shape[-1], device=shares.device).expand_as(order)
    )
    return floors.long() + (place < missing[..., None])
