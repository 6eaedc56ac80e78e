"""RAM's steps as slow, readable code: one row, one segment, one token at a time (arXiv 2602.01840).

Same names, argument order and meaning as `ram.segments`, `ram.losses` and `ram.labels.positive_segments`. Tests
compare these with this file in values and gradients. Computes in the dtype of its input. Per row, with h_ij the valid
tokens of segment i, q the query, n segments that have a token, T tokens in them:

    (1) cos(a, b) = a.b / (|a| |b|)
selection of the segments to read closely:
    (2) r_i       = mean_j h_ij
    (3) s_i       = cos(r_i, q)
    (4) k         = floor(n / ratio)                                                                         nominal
                  = the largest k for which the tokens of the k best, plus one slot (or `skimmed` slots)    strict
                    for each other segment, are at most floor(T / ratio), or slots; 0 where there is none
    (5) kept      = the k segments with the largest s_i; ties go to the earlier segment
skimming of the others:
    (6) w_ij      = softmax_j of cos(h_ij, q) / temperature within the segment;  mean: 1 / its tokens;  drop: 0
    (7) z_i       = sum_j w_ij v_ij                                            v = h unless other values are given
contrastive loss, P segments that hold the answer, t the temperature:
    (8) loss      = -log( sum_{i in P} exp(s_i / t) / sum_i exp(s_i / t) )       over the rows that have a P
    (9) P         = segments with a marked token
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = 1e-9  # without it int(0.29 * 100) is 28


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(1); 0 for a zero vector."""
    norms = a.norm() * b.norm()
    return a @ b / norms if norms > 0 else (a * 0).sum()


def tokens_of(mask: Tensor) -> list[int]:
    """Columns of a segment's valid tokens, mask (L,)."""
    return [j for j in range(len(mask)) if mask[j]]


def relevance(states: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    """(2) and (3) for every segment: (B, S), 0 for padding."""
    rows = []
    for b in range(len(states)):
        row = []
        for i in range(states.shape[1]):
            columns = tokens_of(mask[b, i])
            if columns:
                mean = sum(states[b, i, j] for j in columns) / len(columns)
                row.append(cosine(mean, query[b]))
            else:
                row.append(states.new_zeros(()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def select_segments(
    relevance: Tensor,
    lengths: Tensor,
    ratio: float | None = None,
    budget: str = "nominal",
    slots: Tensor | None = None,
    skimmed: Tensor | None = None,
) -> Tensor:
    """(4) and (5): kept (B, S) bool."""
    keep = torch.zeros(lengths.shape, dtype=torch.bool)
    for b in range(len(lengths)):
        tokens, scores = lengths[b].tolist(), relevance[b].tolist()
        segments = [i for i in range(len(tokens)) if tokens[i] > 0]
        best = sorted(segments, key=lambda i: (-scores[i], i))
        if slots is None and budget == "nominal":
            assert ratio is not None  # exactly one of ratio and slots is given
            kept = math.floor(len(segments) / ratio + EPSILON)
        else:
            limit = math.floor(sum(tokens) / ratio + EPSILON) if slots is None else int(slots[b])
            skims = [1] * len(tokens) if skimmed is None else skimmed[b].tolist()
            totals = [sum(tokens[i] for i in best[:k]) + sum(skims[i] for i in best[k:]) for k in range(len(best) + 1)]
            kept = max((k for k in range(len(best) + 1) if totals[k] <= limit), default=0)
        keep[b, best[:kept]] = True
    return keep


def skim_weights(
    states: Tensor, mask: Tensor, query: Tensor, temperature: float = 1.0, mode: str = "query_weighted"
) -> Tensor:
    """(6) for every token: (B, S, L), 0 on padding."""
    rows = []
    for b in range(len(states)):
        row = []
        for i in range(states.shape[1]):
            segment = [states.new_zeros(())] * states.shape[2]
            columns = tokens_of(mask[b, i])
            if mode == "query_weighted" and columns:
                cosines = torch.stack([cosine(states[b, i, j], query[b]) for j in columns])
                for j, weight in zip(columns, torch.softmax(cosines / temperature, 0)):
                    segment[j] = weight
            elif mode == "mean":
                for j in columns:
                    segment[j] = states.new_ones(()) / len(columns)
            row.append(torch.stack(segment))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def skim(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    temperature: float = 1.0,
    values: Tensor | None = None,
    mode: str = "query_weighted",
) -> Tensor:
    """(7) for every segment: (B, S, D'), 0 for padding."""
    values = states if values is None else values
    weights = skim_weights(states, mask, query, temperature, mode)
    rows = []
    for b in range(len(states)):
        row = []
        for i in range(states.shape[1]):
            total = values.new_zeros(values.shape[-1])
            for j in tokens_of(mask[b, i]):
                total = total + weights[b, i, j] * values[b, i, j]
            row.append(total)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def contrastive_loss(
    relevance: Tensor, positives: Tensor, valid: Tensor, temperature: float = 0.1, reduction: str = "mean"
) -> Tensor:
    """(8); 0, with a gradient of 0, where no row has a positive."""
    losses = []
    for b in range(len(relevance)):
        segments = [i for i in range(relevance.shape[1]) if valid[b, i]]
        positive = [n for n, i in enumerate(segments) if positives[b, i]]
        if positive:
            shares = torch.softmax(relevance[b, segments] / temperature, 0)
            losses.append(-shares[positive].sum().log())
    total = sum(losses, (relevance * 0).sum())
    return total / max(len(losses), 1) if reduction == "mean" else total


def positive_segments(tokens: Tensor, length: int) -> Tensor:
    """(9): (B, S) bool from left-packed marks (B, T), at least one segment."""
    segments = max(math.ceil(tokens.shape[1] / length), 1)
    return torch.tensor([[any(row[i * length : (i + 1) * length]) for i in range(segments)] for row in tokens.tolist()])
