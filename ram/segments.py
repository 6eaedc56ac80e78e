"""RAM's three steps as pure functions of states: how relevant a segment is, which are kept, how the rest is skimmed.

    relevance        cosine of a segment's mean state with the question's (arXiv 2602.01840, spec 1.4)
    select_segments  the most relevant ones, as many as the budget allows (1.5); not differentiable
    skim             one vector for each segment, its tokens weighted by their own cosine with the question (1.6)

Shapes: B rows, S segments of a row, L tokens of a segment, D width. `mask (B, S, L)` is True on real tokens; a segment
without any is padding. Cosines and softmax run in fp32 whatever dtype comes in and also under autocast (fp64 stays
fp64). A row never depends on the other rows of its batch, nor on what its pads hold. No loop over rows, segments or
tokens, no host sync. Costs a copy of the states without their pads, and one in fp32 where they are not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.memory.merging import full_precision

BUDGETS = ("nominal", "strict")
MODES = ("query_weighted", "mean", "drop")
TINY = 1e-12  # norms below it count as zero vectors, whose cosine with anything is 0
EPSILON = 1e-9  # int(0.29 * 100) is 28


def cut(rows: Tensor, length: int) -> Tensor:
    """(B, T, ...) -> (B, S, L, ...) with L = length, the last segment padded with zeros; at least one segment."""
    width = rows.shape[1]
    segments = max(-(-width // length), 1)
    pad = [0, 0] * (rows.dim() - 2) + [0, segments * length - width]
    return torch.nn.functional.pad(rows, pad).view(len(rows), segments, length, *rows.shape[2:])


@full_precision
def relevance(states: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    """Cosine of each segment's mean state with the query: (B, S) fp32, 0 for padding.

    states (B, S, L, D), query (B, D). Differentiable in both. The mean is over valid tokens, which a cosine cannot tell
    from their sum.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    total_BSD = states.to(wide).masked_fill(~mask[..., None], 0).sum(2)
    return _cosine(total_BSD, query.to(wide))


def select_segments(
    relevance: Tensor,
    lengths: Tensor,
    ratio: float | None = None,
    budget: str = "nominal",
    slots: Tensor | None = None,
    skimmed: Tensor | None = None,
) -> Tensor:
    """Which segments are read closely: (B, S) bool, the most relevant ones, the earlier of equals first.

    relevance (B, S); lengths (B, S) valid tokens of each segment, 0 = padding, which is never kept
    ratio   context tokens per slot
    budget  nominal: floor(valid segments / ratio) segments, as the paper counts: skimmed vectors come on top of it;
            strict: as many as fit, so that kept tokens plus one slot for every other segment are at most
            floor(tokens / ratio); none where skimming alone exceeds that
    slots   (B,) int64 instead of a ratio: so many at most, as strict counts
    skimmed (B, S) int64, slots that each segment takes where it is not kept, at most its length; default 1
    Larger budgets keep supersets. Raises ValueError for an unknown budget, and unless one of ratio and slots is given.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget={budget!r}: allowed are {', '.join(BUDGETS)} (compressor.budget)")
    if (ratio is None) == (slots is None):
        raise ValueError(f"ratio={ratio} and slots={slots}: give exactly one of them (compressor.ratio)")
    valid = lengths > 0
    scores = relevance.detach().masked_fill(~valid, -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)  # of each segment among its row's
    segments = valid.sum(1)
    if slots is None and budget == "nominal":
        kept = kept_segments(segments, ratio)
    else:
        allowed = kept_segments(lengths.sum(1), ratio) if slots is None else slots
        skimmed = valid.long() if skimmed is None else skimmed.masked_fill(~valid, 0)
        # A kept segment never takes fewer slots than a skimmed one, padding nothing: the fitting numbers are a prefix.
        taken = skimmed.sum(1, keepdim=True) + (lengths - skimmed).gather(1, order).cumsum(1)
        kept = (taken <= allowed[:, None]).sum(1)
    return valid & (place < kept[:, None])


def kept_segments(segments: Tensor | int, ratio: float) -> Tensor | int:
    """floor(segments / ratio), safe against quotients that fall just short of a whole number."""
    if isinstance(segments, int):
        return int(segments / ratio + EPSILON)
    return (segments.double() / ratio + EPSILON).floor().long()


@full_precision
def skim_weights(
    states: Tensor, mask: Tensor, query: Tensor, temperature: float = 1.0, mode: str = "query_weighted"
) -> Tensor:
    """How much each token counts in its segment's vector: (B, S, L) fp32, 0 on pads, summing to 1 in every segment.

    states (B, S, L, D), query (B, D); differentiable in both
    mode    query_weighted: softmax of cos(state, query) / temperature; mean: equal weights; drop: all 0
    Without a temperature (1, as published) weights differ by e^2 at most: close to a mean.
    Raises ValueError for an unknown mode or a temperature that is not positive.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(MODES)} (compressor.skim)")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be above 0 (compressor.skim_temperature)")
    wide = torch.promote_types(states.dtype, torch.float32)
    if mode == "query_weighted":
        # Cleared first: what is 0 times the NaN of a pad would be the query's gradient.
        logits = _cosine(states.masked_fill(~mask[..., None], 0).to(wide), query.to(wide)) / temperature
    else:
        logits = torch.zeros(mask.shape, dtype=wide, device=mask.device)
    # Pads get -inf, but for segments of pads alone, whose softmax would be NaN.
    empty = ~mask.any(-1, keepdim=True)
    weights = logits.masked_fill(~(mask | empty), -torch.inf).softmax(-1)
    return weights.masked_fill(~mask, 0) * (mode != "drop")


@full_precision
def skim(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    temperature: float = 1.0,
    values: Tensor | None = None,
    mode: str = "query_weighted",
) -> Tensor:
    """One vector for each segment, (B, S, D'): the sum of `values` (B, S, L, D') times `skim_weights` of the states.

    values: default the states. In the values' dtype; sums run in fp32. Zero for padding, and everywhere with mode drop.
    """
    values = states if values is None else values
    weights = skim_weights(states, mask, query, temperature, mode)
    wide = torch.promote_types(values.dtype, weights.dtype)
    pooled = torch.einsum("bsl,bsld->bsd", weights.to(wide), values.to(wide).masked_fill(~mask[..., None], 0))
    return pooled.to(values.dtype)


def _cosine(states: Tensor, query: Tensor) -> Tensor:
    """states (B, ..., D), query (B, D) -> (B, ...); 0 for zero vectors."""
    flat_BND = states.flatten(1, -2)
    direction_BD = query / torch.linalg.vector_norm(query, dim=-1, keepdim=True).clamp(min=TINY)
    products_BN = (flat_BND @ direction_BD[:, :, None])[..., 0]
    norms_BN = torch.linalg.vector_norm(flat_BND, dim=-1).clamp(min=TINY)
    return (products_BN / norms_BN).view(states.shape[:-1])
