"""COMI's two steps as pure functions of states: sizes of groups, then one vector per group (arXiv 2602.01719).

    coarse  `reallocate_groups`: tokens of high marginal information gain get short groups
    fine    `merge_groups`: inside a group, a softmax of the gain weighs the tokens

Shapes: B rows, T tokens, G groups, D width; `mask (B, T)` True on real tokens, pads on any side. Groups are
contiguous and in order over a row's real tokens: `groups (B, T)` int64 never falls along a row, -1 on pads.
Norms, cosines and softmax run in fp32 whatever dtype comes in and also under autocast (fp64 stays fp64); quotas
in fp64. A row never depends on the other rows of its batch, nor on what its pads hold, up to the rounding of its
cosines: quotas that tie nearer than that may round to either neighbour. (TF32, where allowed, makes it coarser.)

Cost beside one fp32 copy of the states (none where they are fp32):
    within groups  time O(B T (m + TILE) D), m = tokens the largest group spans; memory O(B T TILE) whatever m is.
                   One host sync reads m: the bound known beforehand is e^4 times the ratio.
    among groups   time O(B G^2 D), memory O(B G ROWS), no sync.
"""

from __future__ import annotations

from dataclasses import dataclass

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

TILE = 64  # tokens compared at once within groups: one tile against another is one small matrix product
ROWS = 256  # representatives compared at once with all later ones
TINY = 1e-12  # norms below it count as zero vectors, whose cosine with anything is 0

Scale = float | Tensor  # a weight of the gain: a number, or a learned 0-dim tensor


@dataclass(frozen=True)
class Compared:
    """What both steps need of states and query, computed once by `compare`.

    states (B, T, D) in fp32; inverse_norm (B, T); relevance (B, T) = cosine of each state with the query
    """

    states: Tensor
    inverse_norm: Tensor
    relevance: Tensor


@without_autocast
def compare(states: Tensor, query: Tensor) -> Compared:
    """Norms and relevance of states (B, T, D) against query (B, D); pass it on as `compared` to save a second time."""
    wide = torch.promote_types(states.dtype, torch.float32)
    states, query = states.to(wide), query.to(wide)
    inverse_norm = 1 / torch.linalg.vector_norm(states, dim=-1).clamp(min=TINY)
    direction = query / torch.linalg.vector_norm(query, dim=-1, keepdim=True).clamp(min=TINY)
    relevance = (states @ direction[:, :, None])[..., 0] * inverse_norm
    return Compared(states, inverse_norm, relevance)


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
    compared: Compared | None = None,
) -> Tensor:
    """alpha cos(x, query) - beta max cos(x, another real token of x's group): (B, T) fp32, 0 on pads.

    COMI's marginal information gain. states (B, T, D), query (B, D), groups (B, T). A token alone in its group has
    redundancy 0. Differentiable in states, query, alpha and beta (the maximum passes its gradient to one of the
    most similar tokens). `beta=0` as a number skips the redundancy. `quirks` reproduces the released code, where
    the columns that pad a group to the row's longest one count as similarity 0: redundancy max(0, .) in shorter
    groups; it costs a second host sync.
    """
    compared = compared or compare(states, query)
    gain = alpha * compared.relevance
    if isinstance(beta, Tensor) or beta != 0:
        redundancy = _redundancy(compared, groups)
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
    compared: Compared | None = None,
) -> Tensor:
    """Tokens of each group, (B, G) int64 with G = ceil(T / ratio): COMI's coarse step.

    Of every `ratio` consecutive real tokens the one most similar to the query stands for its group (the first of
    equals); its gain, with redundancy among the row's representatives, decides the group's share of the row's
    tokens (see `allocate`). A row of L real tokens has ceil(L / ratio) groups, the rest are 0; its sizes sum to L.
    Not differentiable, as sizes are whole numbers. ratio: int, or (B,) int64. `slots`: G where the caller knows that
    no row needs more; with a ratio per row it saves a host sync and the work for groups that no row has.
    Raises ValueError for a ratio or temperature that is not positive.
    """
    if not isinstance(ratio, Tensor) and ratio < 1:
        raise ValueError(f"ratio={ratio}: must be at least 1 token per slot (compressor.ratio)")
    slots = max_slot_count(mask.shape[1], ratio) if slots is None else slots
    lengths = mask.sum(-1)
    with torch.no_grad():
        compared = compared or compare(states, query)
        valid = torch.arange(slots, device=mask.device) < slot_count(lengths, ratio)[:, None]
        groups = consecutive_groups(mask, ratio)
        gains = _group_gains(compared, groups, valid, alpha, beta)
        return allocate(gains, lengths, valid, temperature, min_group_size)


def allocate(
    gains: Tensor, lengths: Tensor, valid: Tensor, temperature: float = 1.0, min_group_size: int = 0
) -> Tensor:
    """Share `lengths (B,)` tokens out to the groups by softmax(-gain / temperature): sizes (B, G) int64.

    gains (B, G); valid (B, G) bool, at least one group where the length is not 0; the others get 0. Largest
    remainder rounding, ties to the earlier group. Every valid group first gets min(min_group_size,
    length // groups) tokens, the shares divide the rest; 0 is the published rule.

    Sizes sum to the length exactly: quotas sum to it up to fp64 rounding, less than 1e-6 for any length below
    2^31, so the tokens left after rounding down number between 0 and the valid groups, and each gets a group.
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
    left = rest - whole.sum(-1).long()
    order = (quotas - whole).masked_fill(~valid, -1.0).argsort(dim=-1, descending=True, stable=True)
    place = order.argsort(dim=-1)
    return torch.where(valid, reserved[:, None] + whole.long() + (place < left[:, None]), 0)


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
    compared: Compared | None = None,
) -> Tensor:
    """Softmax of the gain within each group: (B, T) fp32, 0 on pads, summing to 1 over every group that has a token.

    Arguments as `marginal_information_gain`; every group index is below `slots`.
    """
    gain = marginal_information_gain(states, mask, query, groups, alpha, beta, quirks=quirks, compared=compared)
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
    compared: Compared | None = None,
) -> tuple[Tensor, Tensor]:
    """One vector per group, tokens weighed by `merge_weights`: COMI's fine step.

    sizes (B, G) from `reallocate_groups`. The states (B, T, D) give the weights, `values (B, T, D')` (default: the
    states) are summed. Returns memory (B, G, D') in the values' dtype and mask (B, G): groups without a token are
    dropped, the others moved left, zeros where masked.
    """
    groups, slots = groups_from_sizes(sizes, mask), sizes.shape[1]
    weights = merge_weights(states, mask, query, groups, slots, alpha, beta, quirks=quirks, compared=compared)
    return merge_slots(states if values is None else values, groups, slots, weights)


def _group_gains(compared: Compared, groups: Tensor, valid: Tensor, alpha: float, beta: float) -> Tensor:
    """Gain of each group's representative among the row's representatives, (B, G)."""
    batch, slots = valid.shape
    width = groups.shape[1]
    index = torch.where(groups < 0, slots, groups)
    top = compared.relevance.new_full((batch, slots + 1), -torch.inf)
    top = top.scatter_reduce(1, index, compared.relevance, "amax")
    columns = torch.arange(width, device=groups.device).expand_as(groups)
    tops = torch.where(compared.relevance == top.gather(1, index), columns, width - 1)
    first = tops.new_full((batch, slots + 1), width - 1).scatter_reduce(1, index, tops, "amin")[:, :slots]
    gains = alpha * top[:, :slots].masked_fill(~valid, 0)
    if beta == 0:
        return gains
    rows = torch.arange(batch, device=groups.device)[:, None]
    unit = compared.states[rows, first] * compared.inverse_norm[rows, first][..., None]
    return gains - beta * _redundancy_among(unit, valid)


def _redundancy_among(unit: Tensor, valid: Tensor) -> Tensor:
    """Largest cosine of each valid unit vector (B, G, D) with another one of its row; 0 if there is none: (B, G)."""
    best = unit.new_full(valid.shape, -torch.inf)
    for start in range(0, unit.shape[1], ROWS):
        block = unit[:, start : start + ROWS] @ unit[:, start:].mT  # similarity is symmetric: later ones only
        rows = block.shape[1]
        block.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        block.masked_fill_(~valid[:, None, start:], -torch.inf)
        best[:, start : start + rows] = torch.maximum(best[:, start : start + rows], block.amax(2))
        block.masked_fill_(~valid[:, start : start + rows, None], -torch.inf)
        best[:, start:] = torch.maximum(best[:, start:], block.amax(1))
    return best.masked_fill(best == -torch.inf, 0)


def _redundancy(compared: Compared, groups: Tensor) -> Tensor:
    """Largest cosine of each token with another of its group, 0 if there is none: (B, T), differentiable."""
    similarity, partner = _most_similar(compared, groups)
    alone = similarity == -torch.inf
    if torch.is_grad_enabled() and compared.states.requires_grad:
        # The search keeps nothing for the backward pass; the one pair that it found is compared once more.
        rows = torch.arange(len(groups), device=groups.device)[:, None]
        product = (compared.states * compared.states[rows, partner]).sum(-1)
        similarity = product * compared.inverse_norm * compared.inverse_norm.gather(1, partner)
    return torch.where(alone, 0, similarity)


@torch.no_grad()
def _most_similar(compared: Compared, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and column of the token of its group most similar to each token; -inf and any column if there is none.

    Tiles of TILE columns are compared with themselves, then with the next tile, and so on as far as the largest
    group reaches. All rows of the batch form one sequence of tiles; ids keep rows and groups apart.
    """
    batch, width = groups.shape
    short = -width % TILE
    pad = torch.nn.functional.pad
    states = pad(compared.states, (0, 0, 0, short)).view(-1, TILE, compared.states.shape[-1])
    scale = pad(compared.inverse_norm, (0, short)).view(-1, TILE)
    first_id = torch.arange(batch, device=groups.device)[:, None] * (width + 1)
    ids = pad(torch.where(groups < 0, -1, groups + first_id), (0, short), value=-1).view(-1, TILE)
    best = scale.new_full(scale.shape, -torch.inf)
    partner = torch.zeros_like(ids)
    tiles = len(ids)
    per_row = (width + short) // TILE
    columns = (torch.arange(tiles, device=ids.device) % per_row * TILE)[:, None]

    def take(part: slice, found: tuple[Tensor, Tensor], base: Tensor) -> None:
        value, index = found
        better = value > best[part]
        best[part] = torch.where(better, value, best[part])
        partner[part] = torch.where(better, index + base, partner[part])

    for offset in range(1 + _tiles_reached(groups, per_row)):
        here, there = slice(0, tiles - offset), slice(offset, tiles)
        similarity = torch.bmm(states[here], states[there].mT)
        similarity *= scale[here, :, None]
        similarity *= scale[there, None, :]
        same = (ids[here, :, None] == ids[there, None, :]) & (ids[here, :, None] >= 0)
        if offset == 0:
            same.diagonal(dim1=1, dim2=2).fill_(False)
        similarity.masked_fill_(~same, -torch.inf)
        take(here, similarity.max(2), columns[there])
        if offset:
            take(there, similarity.max(1), columns[here])
    return best.view(batch, -1)[:, :width], partner.view(batch, -1)[:, :width]


def _tiles_reached(groups: Tensor, per_row: int) -> int:
    """How many tiles beyond its first one the farthest-reaching group extends: the one host sync."""
    if per_row <= 1:
        return 0
    so_far = groups.cummax(1).values  # group of the latest real token
    before = torch.nn.functional.pad(so_far, (1, 0), value=-1)[:, :-1]
    tile = torch.arange(groups.shape[1], device=groups.device).expand_as(groups) // TILE
    first = torch.where(groups > before, tile, 0).cummax(1).values
    return int(torch.where(groups >= 0, tile - first, 0).max())


def _is_shorter_than_longest(groups: Tensor) -> Tensor:
    """True on tokens of groups with fewer tokens than the row's largest group, (B, T)."""
    index = groups + 1  # pads in column 0
    counts = index.new_zeros(len(index), int(index.max()) + 2).scatter_add(1, index, torch.ones_like(index))
    return counts.gather(1, index) < counts[:, 1:].amax(1, keepdim=True)
