"""Cosine of a segment's mean state with the question's vector: RAM's relevance (arXiv 2602.01840, spec 1.4).

Shape letters: B contexts, S segments, L tokens of a segment, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.memory.merging import without_autocast
from breviary.selection.relevance import Candidates, Relevance

MIN_NORM = 1e-12  # smaller norms count as zero vectors, whose cosine with every vector is 0


class Cosine(Relevance):
    """Mean state of each segment against the compressor's own vector of the question. Differentiable in both."""

    needs_states = True

    def scores(self, candidates: Candidates) -> Tensor:
        """(B, S) float32, 0 for padding. Units are segments."""
        assert candidates.units == "segments", candidates.units
        assert candidates.states is not None and candidates.query is not None, "a compressor without states"
        states, mask = (split_segments(x, candidates.segment_size) for x in (candidates.states, candidates.mask))
        return segment_cosine(states, mask, candidates.query)


def split_segments(rows: Tensor, length: int) -> Tensor:
    """(B, T, ...) -> (B, S, L, ...) with L = length; the last segment is padded with zeros; S is at least 1."""
    width = rows.shape[1]
    segments = max(-(-width // length), 1)
    pad = [0, 0] * (rows.dim() - 2) + [0, segments * length - width]
    return torch.nn.functional.pad(rows, pad).view(len(rows), segments, length, *rows.shape[2:])


@without_autocast
def segment_cosine(states: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    """Cosine of each segment's mean state with the query: (B, S) fp32, 0 for padding.

    states (B, S, L, D), query (B, D). Differentiable in both. The mean is over valid tokens; the code sums, as the
    cosine does not depend on the length of a vector.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    total_BSD = states.to(wide).masked_fill(~mask[..., None], 0).sum(2)
    return cosine_with(total_BSD, query.to(wide))


def cosine_with(states: Tensor, query: Tensor) -> Tensor:
    """states (B, ..., D), query (B, D) -> (B, ...); 0 for zero vectors."""
    flat_BND = states.flatten(1, -2)
    direction_BD = query / torch.linalg.vector_norm(query, dim=-1, keepdim=True).clamp(min=MIN_NORM)
    products_BN = (flat_BND @ direction_BD[:, :, None])[..., 0]
    norms_BN = torch.linalg.vector_norm(flat_BND, dim=-1).clamp(min=MIN_NORM)
    return (products_BN / norms_BN).view(states.shape[:-1])
