"""RAM's three steps as pure functions of states: relevance of segments, selection, skimming (arXiv 2602.01840).

    relevance        cosine of a segment's mean state with the question's (spec 1.4)
    select_segments  the most relevant segments, as many as the budget allows (1.5); not differentiable
    skim             one vector per segment: its tokens weighted by their own cosine with the question (1.6)

Shapes: B rows, S segments of a row, L tokens of a segment, D width. `mask (B, S, L)` is True on real tokens; a segment
without any is padding. Cosines and softmax run in fp32 for every input dtype and under autocast (fp64 stays fp64). A
row depends neither on the other rows of its batch nor on the values of its padding. No loop over rows, segments or
tokens, no host sync. Cost: a copy of the states with padding cleared, and one in fp32 unless they are fp32.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from breviary.memory.merging import without_autocast
from breviary.selection.cosine import cosine_with, split_segments
from breviary.selection.cosine import segment_cosine as relevance

BUDGETS = ("nominal", "strict")
SKIM_MODES = ("query_weighted", "mean", "drop")
EPSILON = 1e-9  # without it int(0.29 * 100) is 28

__all__ = ["floor_divide", "relevance", "select_segments", "skim", "skim_weights", "split_segments"]

Number = TypeVar("Number", int, Tensor)


def select_segments(
    relevance: Tensor,
    lengths: Tensor,
    ratio: float | None = None,
    budget: str = "nominal",
    slots: Tensor | None = None,
    skimmed: Tensor | None = None,
) -> Tensor:
    """Segments to read closely: (B, S) bool, the most relevant ones; ties go to the earlier segment.

    relevance  (B, S)
    lengths    (B, S) valid tokens of each segment; 0 = padding, which is never selected
    ratio      context tokens per slot
    budget     nominal: floor(valid segments / ratio) segments, as in the paper; skimmed vectors are not counted |
               strict: as many segments as fit, so that kept tokens plus one slot per other segment are at most
               floor(tokens / ratio); none where the skimmed vectors alone exceed that
    slots      (B,) int64 instead of a ratio: upper bound on all slots, as with strict
    skimmed    (B, S) int64, slots of each segment if it is skimmed, at most its length; default 1
    A larger budget selects a superset. Raises ValueError for an unknown budget, and unless exactly one of ratio and
    slots is given.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget={budget!r}: allowed are {', '.join(BUDGETS)} (compressor.budget)")
    if (ratio is None) == (slots is None):
        raise ValueError(f"ratio={ratio} and slots={slots}: set exactly one of them (compressor.ratio)")
    valid = lengths > 0
    scores = relevance.detach().masked_fill(~valid, -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    if ratio is not None and budget == "nominal":
        selected = floor_divide(valid.sum(1), ratio)
    else:
        limit = slots if ratio is None else floor_divide(lengths.sum(1), ratio)
        assert limit is not None  # exactly one of ratio and slots is given
        skimmed = valid.long() if skimmed is None else skimmed.masked_fill(~valid, 0)
        # A kept segment never takes fewer slots than a skimmed one, so totals grow with the number of kept segments.
        total = skimmed.sum(1, keepdim=True) + (lengths - skimmed).gather(1, order).cumsum(1)
        selected = (total <= limit[:, None]).sum(1)
    return valid & (rank < selected[:, None])


def floor_divide(number: Number, ratio: float) -> Number:
    """floor(number / ratio), robust to quotients that rounding leaves just below a whole number."""
    if isinstance(number, int):
        return int(number / ratio + EPSILON)
    return (number.double() / ratio + EPSILON).floor().long()


@without_autocast
def skim_weights(
    states: Tensor, mask: Tensor, query: Tensor, temperature: float = 1.0, mode: str = "query_weighted"
) -> Tensor:
    """Weight of each token in its segment's vector: (B, S, L) fp32, 0 on padding, sum 1 in every segment.

    states (B, S, L, D), query (B, D); differentiable in both
    mode    query_weighted: softmax of cos(state, query) / temperature | mean: equal weights | drop: all 0
    At temperature 1, the published value, weights differ by a factor of at most e^2, so the result is close to a mean.
    Raises ValueError for an unknown mode or a temperature that is not positive.
    """
    if mode not in SKIM_MODES:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(SKIM_MODES)} (compressor.skim)")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be above 0 (compressor.skim_temperature)")
    wide = torch.promote_types(states.dtype, torch.float32)
    if mode == "query_weighted":
        # Padding is cleared first: a NaN there, times 0, would reach the gradient of the query.
        logits = cosine_with(states.masked_fill(~mask[..., None], 0).to(wide), query.to(wide)) / temperature
    else:
        logits = torch.zeros(mask.shape, dtype=wide, device=mask.device)
    # Segments of padding alone are left unmasked: their softmax over -inf would be NaN.
    empty = ~mask.any(-1, keepdim=True)
    weights = logits.masked_fill(~(mask | empty), -torch.inf).softmax(-1)
    return weights.masked_fill(~mask, 0) * (mode != "drop")


@without_autocast
def skim(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    temperature: float = 1.0,
    values: Tensor | None = None,
    mode: str = "query_weighted",
) -> Tensor:
    """One vector per segment, (B, S, D'): the sum of `values` (B, S, L, D') times `skim_weights` of the states.

    values  default: the states. The result has their dtype; sums run in fp32
    Zero for padding, and everywhere with mode drop.
    """
    values = states if values is None else values
    weights = skim_weights(states, mask, query, temperature, mode)
    wide = torch.promote_types(values.dtype, weights.dtype)
    pooled = torch.einsum("bsl,bsld->bsd", weights.to(wide), values.to(wide).masked_fill(~mask[..., None], 0))
    return pooled.to(values.dtype)
