"""COMI's two steps as slow, readable code: one row, one group, one token at a time (arXiv 2602.01719).

Same names and meaning as `comi.information_gain`, which tests compare with this file in values and gradients.
Computes in the dtype of its input. Per row, with x_k its real tokens in order, q the query and L the number of tokens:

    (1) cos(a, b)  = a.b / (|a| |b|)
    (2) g_k        = alpha cos(x_k, q) - beta max_{j != k} cos(x_k, x_j)     j in the group of k; 0 if there is none
coarse, groups i of r consecutive tokens:
    (3) p_i        = x_k with k = argmax_{k in group i} cos(x_k, q), the first of equals
    (4) G_i        = alpha cos(p_i, q) - beta max_{j != i} cos(p_i, p_j)
    (5) P          = softmax(-G / temperature)
    (6) sizes      = n + rounding by largest remainder of (L - n m) P        m groups, n tokens reserved for each
fine, consecutive groups of those sizes:
    (7) w          = softmax of g within the group
    (8) z_i        = sum_k w_k v_k                                            v = x unless other values are given
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(1); 0 for a zero vector."""
    norms = a.norm() * b.norm()
    return a @ b / norms if norms > 0 else (a * 0).sum()


def gain_among(
    vectors: list[Tensor], query: Tensor, alpha: float | Tensor, beta: float | Tensor, floor: bool = False
) -> list[Tensor]:
    """(2) and (4): gain of each vector among the others. `floor`: redundancy is at least 0, as in the released code."""
    gains = []
    for k, vector in enumerate(vectors):
        others = [cosine(vector, other) for j, other in enumerate(vectors) if j != k]
        redundancy = torch.stack(others).max() if others else torch.zeros_like(query[0])
        if floor:
            redundancy = redundancy.clamp(min=0)
        gains.append(alpha * cosine(vector, query) - beta * redundancy)
    return gains


def members(groups: Tensor) -> dict[int, list[int]]:
    """Columns of each group of one row (T,), in order."""
    columns: dict[int, list[int]] = {}
    for column, group in enumerate(groups.tolist()):
        if group >= 0:
            columns.setdefault(group, []).append(column)
    return columns


def marginal_information_gain(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    groups: Tensor,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 1.0,
    quirks: bool = False,
) -> Tensor:
    """(2) for every token: (B, T), 0 on padding."""
    rows = []
    for b in range(len(states)):
        row = [torch.zeros_like(states[b, 0, 0])] * states.shape[1]
        inside = members(groups[b].masked_fill(~mask[b], -1))
        longest = max((len(columns) for columns in inside.values()), default=0)
        for columns in inside.values():
            floor = quirks and len(columns) < longest
            gains = gain_among([states[b, k] for k in columns], query[b], alpha, beta, floor)
            for k, gain in zip(columns, gains):
                row[k] = gain
        rows.append(torch.stack(row))
    return torch.stack(rows)


def largest_remainder(quotas: list[float], total: int) -> list[int]:
    """(6): round down, then one more for the largest fractions, earlier groups first among equals."""
    sizes = [math.floor(quota) for quota in quotas]
    by_fraction = sorted(range(len(quotas)), key=lambda i: (-(quotas[i] - sizes[i]), i))
    for i in by_fraction[: total - sum(sizes)]:
        sizes[i] += 1
    return sizes


def allocate(
    gains: Tensor, lengths: Tensor, valid: Tensor, temperature: float = 1.0, min_group_size: int = 0
) -> Tensor:
    """(5) and (6): sizes (B, G)."""
    sizes = torch.zeros(gains.shape, dtype=torch.int64)
    for b, length in enumerate(lengths.tolist()):
        groups = [i for i in range(gains.shape[1]) if valid[b, i]]
        if not groups:
            continue
        shares = torch.softmax(-gains[b, groups].double() / temperature, 0).tolist()
        reserved = min(min_group_size, length // len(groups))
        rest = length - reserved * len(groups)
        for i, size in zip(groups, largest_remainder([rest * share for share in shares], rest)):
            sizes[b, i] = reserved + size
    return sizes


def reallocate_groups(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    ratio: int,
    alpha: float = 1.0,
    beta: float = 1.0,
    temperature: float = 1.0,
    min_group_size: int = 0,
) -> Tensor:
    """(3) to (6): sizes (B, ceil(T / ratio))."""
    slots = math.ceil(states.shape[1] / ratio)
    gains = torch.zeros(len(states), slots, dtype=states.dtype)
    valid = torch.zeros(len(states), slots, dtype=torch.bool)
    for b in range(len(states)):
        tokens = [states[b, k] for k in range(states.shape[1]) if mask[b, k]]
        chosen = []
        for start in range(0, len(tokens), ratio):
            group = tokens[start : start + ratio]
            relevance = [float(cosine(token, query[b])) for token in group]
            chosen.append(group[relevance.index(max(relevance))])
        for i, gain in enumerate(gain_among(chosen, query[b], alpha, beta)):
            gains[b, i] = gain
            valid[b, i] = True
    return allocate(gains, mask.sum(1), valid, temperature, min_group_size)


def merge_weights(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    groups: Tensor,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 1.0,
    quirks: bool = False,
) -> Tensor:
    """(7) for every token: (B, T), 0 on padding."""
    gains = marginal_information_gain(states, mask, query, groups, alpha, beta, quirks)
    rows = []
    for b in range(len(states)):
        row = [torch.zeros_like(states[b, 0, 0])] * states.shape[1]
        for columns in members(groups[b].masked_fill(~mask[b], -1)).values():
            for k, weight in zip(columns, torch.softmax(gains[b, columns], 0)):
                row[k] = weight
        rows.append(torch.stack(row))
    return torch.stack(rows)


def layout(sizes: Tensor, mask: Tensor) -> Tensor:
    """Consecutive groups of the given sizes over each row's real tokens: (B, T), -1 on padding."""
    groups = torch.full(mask.shape, -1)
    for b in range(len(mask)):
        columns = [k for k in range(mask.shape[1]) if mask[b, k]]
        owners = [i for i, size in enumerate(sizes[b].tolist()) for _ in range(size)]
        for column, group in zip(columns, owners, strict=True):
            groups[b, column] = group
    return groups


def merge_groups(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    sizes: Tensor,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 1.0,
    values: Tensor | None = None,
    quirks: bool = False,
) -> tuple[Tensor, Tensor]:
    """(7) and (8): memory (B, G, D) and its mask (B, G), groups without a token dropped."""
    values = states if values is None else values
    groups = layout(sizes, mask)
    weights = merge_weights(states, mask, query, groups, alpha, beta, quirks)
    rows, slots = [], sizes.shape[1]
    memory_mask = torch.zeros(len(states), slots, dtype=torch.bool)
    for b in range(len(states)):
        inside = members(groups[b])
        vectors = [sum(weights[b, k] * values[b, k] for k in inside[i]) for i in sorted(inside)]
        memory_mask[b, : len(vectors)] = True
        rows.append(torch.stack(vectors + [torch.zeros_like(values[b, 0])] * (slots - len(vectors))))
    return torch.stack(rows), memory_mask
