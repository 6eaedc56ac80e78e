"""COMI's two steps as pure functions of states: sizes of groups, then one vector per group (arXiv 2602.01719).

    coarse  `reallocate_groups`: tokens of high marginal information gain get short groups
    fine    `merge_groups`: within a group, tokens are weighted by a softmax of their gain

Shapes: B rows, T tokens, G groups, D width; `mask (B, T)` True on real tokens, padding on any side. Groups are
contiguous and in order over a row's real tokens: `groups (B, T)` int64 never decreases along a row, -1 on padding.
Norms, cosines and softmax run in fp32 for every input dtype and under autocast (fp64 stays fp64); quotas in fp64. A row
depends neither on the other rows of its batch nor on the values of its padding, up to the rounding of its cosines:
quotas that differ by less may round either way. TF32, where allowed, makes that rounding coarser.

Cost beside one fp32 copy of the states (none where they are fp32):
    within groups  time O(B T (m + TILE) D), m = tokens spanned by the largest group; memory O(B T TILE) for any m.
                   One host sync reads m, as the bound known without it is e^4 times the ratio.
    among groups   time O(B G^2 D), memory O(B G BLOCK), no sync.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from breviary.memory.merging import (
    consecutive_groups,
    groups_from_sizes,
    max_slot_count,
    merge_slots,
    slot_count,
    without_autocast,
)

TILE = 64  # tokens per tile within groups; each pair of tiles is one small matrix product
BLOCK = 256  # representatives compared at once with all later ones
MIN_NORM = 1e-12  # smaller norms count as zero vectors, whose cosine with every vector is 0

Scale: TypeAlias = float | Tensor  # a weight of the gain: a number or a learned tensor of one element


@dataclass(frozen=True)
class Precomputed:
    """Values that both steps need, computed once from states and query by `precompute`.

    states (B, T, D) in fp32; inverse_norm (B, T); relevance (B, T) = cosine of each state with the query
    """

    states: Tensor
    inverse_norm: Tensor
    relevance: Tensor


@without_autocast
def precompute(states: Tensor, query: Tensor) -> Precomputed:
    """Norms of states (B, T, D) and their relevance to query (B, D), for the argument `precomputed` of both steps."""
    wide = torch.promote_types(states.dtype, torch.float32)
    states, query = states.to(wide), query.to(wide)
    inverse_norm = 1 / torch.linalg.vector_norm(states, dim=-1).clamp(min=MIN_NORM)
    direction = query / torch.linalg.vector_norm(query, dim=-1, keepdim=True).clamp(min=MIN_NORM)
    relevance = (states @ direction[:, :, None])[..., 0] * inverse_norm
    return Precomputed(states, inverse_norm, relevance)


@without_autocast
def marginal_information_gain(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    groups: Tensor,
    alpha: Scale = 1.0,
    beta: Scale = 1.0,
    *,
    quirks: bool = False,
    precomputed: Precomputed | None = None,
) -> Tensor:
    """alpha cos(x, query) - beta max cos(x, another real token of x's group): (B, T) fp32, 0 on padding.

    COMI's marginal information gain. states (B, T, D), query (B, D), groups (B, T). The only token of a group has
    redundancy 0. Differentiable in states, query, alpha and beta (the maximum passes its gradient to one of the
    most similar tokens). `beta=0` as a number skips the redundancy.

    quirks  as in the released code, columns that pad a group to the length of the row's longest group count as
            similarity 0, so that redundancy is max(0, .) in shorter groups. Costs a second host sync
    """
    precomputed = precomputed or precompute(states, query)
    gain = alpha * precomputed.relevance
    if isinstance(beta, Tensor) or beta != 0:
        redundancy = _redundancy(precomputed, groups)
        if quirks:
            shorter = _is_shorter_than_longest(groups)
            redundancy = torch.where(shorter, redundancy.clamp(min=0), redundancy)
        gain = gain - beta * redundancy
    return gain.masked_fill(~mask, 0)


@without_autocast
def reallocate_groups(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    ratio: int | Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    temperature: float = 1.0,
    min_group_size: int = 0,
    *,
    slots: int | None = None,
    precomputed: Precomputed | None = None,
) -> Tensor:
    """Number of tokens of each group, (B, G) int64 with G = ceil(T / ratio): COMI's coarse step.

    Each group of `ratio` consecutive real tokens is represented by its token most similar to the query, the first of
    equals. The representative's gain, with redundancy among the row's representatives, determines the group's share
    of the row's tokens (see `allocate`). A row of L real tokens has ceil(L / ratio) groups, whose sizes sum to L;
    other sizes are 0. Not differentiable, as sizes are whole numbers.

    ratio  int, or (B,) int64
    slots  G, where the caller knows an upper bound; with a ratio per row this saves a host sync and unused groups
    Raises ValueError for a ratio or temperature that is not positive.
    """
    if not isinstance(ratio, Tensor) and ratio < 1:
        raise ValueError(f"ratio={ratio}: must be at least 1 token per slot (compressor.ratio)")
    slots = max_slot_count(mask.shape[1], ratio) if slots is None else slots
    lengths = mask.sum(-1)
    with torch.no_grad():
        precomputed = precomputed or precompute(states, query)
        valid = torch.arange(slots, device=mask.device) < slot_count(lengths, ratio)[:, None]
        groups = consecutive_groups(mask, ratio)
        gains = _group_gains(precomputed, groups, valid, alpha, beta)
        return allocate(gains, lengths, valid, temperature, min_group_size)


def allocate(
    gains: Tensor, lengths: Tensor, valid: Tensor, temperature: float = 1.0, min_group_size: int = 0
) -> Tensor:
    """Distributes `lengths (B,)` tokens over the groups by softmax(-gain / temperature): sizes (B, G) int64.

    gains (B, G); valid (B, G) bool, at least one group where the length is not 0; invalid groups get 0. Quotas are
    rounded by largest remainder, ties to the earlier group. Every valid group first gets min(min_group_size,
    length // groups) tokens, and the shares divide the rest; min_group_size 0 is the published rule.

    Sizes sum to the length exactly: quotas sum to it up to fp64 rounding, which is below 1e-6 for lengths below 2^31.
    So the number of tokens left after rounding down is between 0 and the number of valid groups.
    Raises ValueError for a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be above 0 (compressor.temperature)")
    logits = (-gains.double() / temperature).masked_fill(~valid, -torch.inf)
    shares = torch.where(valid, logits.softmax(-1), 0.0)
    groups = valid.sum(-1)
    reserved = (lengths // groups.clamp(min=1)).clamp(max=min_group_size)
    rest = lengths - reserved * groups
    quotas = rest[:, None] * shares
    whole = quotas.floor()
    remaining = rest - whole.sum(-1).long()
    order = (quotas - whole).masked_fill(~valid, -1.0).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    return torch.where(valid, reserved[:, None] + whole.long() + (rank < remaining[:, None]), 0)


@without_autocast
def merge_weights(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    groups: Tensor,
    slots: int,
    alpha: Scale = 1.0,
    beta: Scale = 1.0,
    *,
    quirks: bool = False,
    precomputed: Precomputed | None = None,
) -> Tensor:
    """Softmax of the gain within each group: (B, T) fp32, 0 on padding, sum 1 over every group that has a token.

    Arguments as in `marginal_information_gain`; every group index is below `slots`.
    """
    gain = marginal_information_gain(states, mask, query, groups, alpha, beta, quirks=quirks, precomputed=precomputed)
    index = torch.where(mask, groups, slots)
    top = gain.new_full((len(gain), slots + 1), -torch.inf).scatter_reduce(1, index, gain.detach(), "amax")
    share = (gain - top.gather(1, index)).exp()
    total = torch.zeros_like(top).scatter_add(1, index, share)
    return (share / total.gather(1, index)).masked_fill(~mask, 0)


def merge_groups(
    states: Tensor,
    mask: Tensor,
    query: Tensor,
    sizes: Tensor,
    alpha: Scale = 1.0,
    beta: Scale = 1.0,
    values: Tensor | None = None,
    *,
    quirks: bool = False,
    precomputed: Precomputed | None = None,
) -> tuple[Tensor, Tensor]:
    """One vector per group, its tokens weighted by `merge_weights`: COMI's fine step.

    sizes   (B, G) from `reallocate_groups`
    states  (B, T, D), from which weights are computed
    values  (B, T, D') to sum; default the states
    Returns memory (B, G, D') in the values' dtype and mask (B, G). Groups without a token are dropped, the others move
    left; masked slots are zero.
    """
    groups, slots = groups_from_sizes(sizes, mask), sizes.shape[1]
    weights = merge_weights(states, mask, query, groups, slots, alpha, beta, quirks=quirks, precomputed=precomputed)
    return merge_slots(states if values is None else values, groups, slots, weights)


def _group_gains(precomputed: Precomputed, groups: Tensor, valid: Tensor, alpha: float, beta: float) -> Tensor:
    """Gain of each group's representative among the row's representatives, (B, G)."""
    batch, slots = valid.shape
    width = groups.shape[1]
    index = torch.where(groups < 0, slots, groups)
    top = precomputed.relevance.new_full((batch, slots + 1), -torch.inf)
    top = top.scatter_reduce(1, index, precomputed.relevance, "amax")
    columns = torch.arange(width, device=groups.device).expand_as(groups)
    tops = torch.where(precomputed.relevance == top.gather(1, index), columns, width - 1)
    first = tops.new_full((batch, slots + 1), width - 1).scatter_reduce(1, index, tops, "amin")[:, :slots]
    gains = alpha * top[:, :slots].masked_fill(~valid, 0)
    if beta == 0:
        return gains
    rows = torch.arange(batch, device=groups.device)[:, None]
    unit = precomputed.states[rows, first] * precomputed.inverse_norm[rows, first][..., None]
    return gains - beta * _pairwise_redundancy(unit, valid)


def _pairwise_redundancy(unit: Tensor, valid: Tensor) -> Tensor:
    """Largest cosine of each valid unit vector (B, G, D) with another one of its row, 0 if there is none: (B, G)."""
    best = unit.new_full(valid.shape, -torch.inf)
    for start in range(0, unit.shape[1], BLOCK):
        block = unit[:, start : start + BLOCK] @ unit[:, start:].mT  # cosine is symmetric: later columns suffice
        rows = block.shape[1]
        block.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        block.masked_fill_(~valid[:, None, start:], -torch.inf)
        best[:, start : start + rows] = torch.maximum(best[:, start : start + rows], block.amax(2))
        block.masked_fill_(~valid[:, start : start + rows, None], -torch.inf)
        best[:, start:] = torch.maximum(best[:, start:], block.amax(1))
    return best.masked_fill(best == -torch.inf, 0)


def _redundancy(precomputed: Precomputed, groups: Tensor) -> Tensor:
    """Largest cosine of each token with another of its group, 0 if there is none: (B, T), differentiable."""
    similarity, partner = _most_similar(precomputed, groups)
    alone = similarity == -torch.inf
    if torch.is_grad_enabled() and precomputed.states.requires_grad:
        # The search runs without gradients; only the most similar pair is recomputed with them.
        rows = torch.arange(len(groups), device=groups.device)[:, None]
        product = (precomputed.states * precomputed.states[rows, partner]).sum(-1)
        similarity = product * precomputed.inverse_norm * precomputed.inverse_norm.gather(1, partner)
    return torch.where(alone, 0, similarity)


@torch.no_grad()
def _most_similar(precomputed: Precomputed, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and column of the token of its group most similar to each token; -inf and any column if there is none.

    Each tile of TILE columns is compared with itself, then with the next tile, and so on up to the reach of the largest
    group. All rows of the batch form one sequence of tiles, in which every group has its own id.
    """
    batch, width = groups.shape
    padding = -width % TILE
    pad = torch.nn.functional.pad
    states = pad(precomputed.states, (0, 0, 0, padding)).view(-1, TILE, precomputed.states.shape[-1])
    scale = pad(precomputed.inverse_norm, (0, padding)).view(-1, TILE)
    first_id = torch.arange(batch, device=groups.device)[:, None] * (width + 1)
    ids = pad(torch.where(groups < 0, -1, groups + first_id), (0, padding), value=-1).view(-1, TILE)
    best = scale.new_full(scale.shape, -torch.inf)
    partner = torch.zeros_like(ids)
    tiles = len(ids)
    per_row = (width + padding) // TILE
    columns = (torch.arange(tiles, device=ids.device) % per_row * TILE)[:, None]

    def update(tile: slice, maximum: tuple[Tensor, Tensor], base: Tensor) -> None:
        value, index = maximum
        better = value > best[tile]
        best[tile] = torch.where(better, value, best[tile])
        partner[tile] = torch.where(better, index + base, partner[tile])

    for offset in range(1 + _tiles_spanned(groups, per_row)):
        left, right = slice(0, tiles - offset), slice(offset, tiles)
        similarity = torch.bmm(states[left], states[right].mT)
        similarity *= scale[left, :, None]
        similarity *= scale[right, None, :]
        same = (ids[left, :, None] == ids[right, None, :]) & (ids[left, :, None] >= 0)
        if offset == 0:
            same.diagonal(dim1=1, dim2=2).fill_(False)
        similarity.masked_fill_(~same, -torch.inf)
        update(left, similarity.max(2), columns[right])
        if offset:
            update(right, similarity.max(1), columns[left])
    return best.view(batch, -1)[:, :width], partner.view(batch, -1)[:, :width]


def _tiles_spanned(groups: Tensor, per_row: int) -> int:
    """Largest number of tiles that a group spans beyond its first tile. The one host sync."""
    if per_row <= 1:
        return 0
    latest = groups.cummax(1).values  # group of the latest real token
    before = torch.nn.functional.pad(latest, (1, 0), value=-1)[:, :-1]
    tile = torch.arange(groups.shape[1], device=groups.device).expand_as(groups) // TILE
    first = torch.where(groups > before, tile, 0).cummax(1).values
    return int(torch.where(groups >= 0, tile - first, 0).max())


def _is_shorter_than_longest(groups: Tensor) -> Tensor:
    """True on tokens of groups with fewer tokens than the row's largest group, (B, T)."""
    index = groups + 1  # padding in column 0
    counts = index.new_zeros(len(index), int(index.max()) + 2).scatter_add(1, index, torch.ones_like(index))
    return counts.gather(1, index) < counts[:, 1:].amax(1, keepdim=True)
