"""Merging token states into memory slots: the one place that does it, for every method.

A method says which group each token belongs to and how much it weighs; the values merged may be
other states than those the groups and weights were made from. Batched tensor code: no loop over
rows, tokens or slots, no host sync (but for a per-row ratio, see `widest`).

Shapes: B rows, T tokens, G groups, D width. `mask (B, T)` is True on real tokens, pads on any side.
`groups (B, T)` int64 holds each token's group, -1 on pads. Ratios are tokens per slot, an int or,
where a budget in slots gives every row its own, an int64 (B,) tensor of values >= 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from breviary.assemble import ranks


def full_precision(function: Callable) -> Callable:
    """For functions of states (their first argument): autocast would run the cosines' matrix products in bf16."""

    @functools.wraps(function)
    def wrapped(states: Tensor, *args, **kwargs):
        with torch.autocast(states.device.type, enabled=False):
            return function(states, *args, **kwargs)

    return wrapped


def consecutive_groups(mask: Tensor, ratio: int | Tensor) -> Tensor:
    """Groups of `ratio` consecutive real tokens, the last one short: (B, T) int64, -1 on pads."""
    return torch.where(mask, ranks(mask) // _per_row(ratio, mask.device), -1)


def groups_from_sizes(sizes: Tensor, mask: Tensor) -> Tensor:
    """Groups laid out in order over the real tokens, `sizes (B, G)` of them each: (B, T) int64, -1 on pads.

    Each row of `sizes` sums to the row's real tokens; a group of size 0 gets no token.
    """
    ends = sizes.cumsum(-1)
    return torch.where(mask, torch.searchsorted(ends, ranks(mask), right=True), -1)


def slot_count(lengths: Tensor, ratio: int | Tensor) -> Tensor:
    """ceil(length / ratio) slots for each row, (B,) int64."""
    ratio = ratio.to(lengths.device) if isinstance(ratio, Tensor) else ratio
    return -(-lengths // ratio)


def widest(width: int, ratio: int | Tensor) -> int:
    """Most slots that a row of `width` tokens can need; a ratio tensor on an accelerator costs one host sync."""
    smallest = int(ratio.min()) if isinstance(ratio, Tensor) else ratio
    return -(-width // smallest)


def merge_slots(values: Tensor, groups: Tensor, slots: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One vector per group: the sum of its values, each times its weight.

    values (B, T, D); groups (B, T), every index below `slots`; weights (B, T) taken as they are, None = plain
    mean of each group. Returns memory (B, slots, D) in the values' dtype and its mask (B, slots): groups without
    a token are dropped, the others moved left in order, zeros where masked. Sums run in fp32 (fp64 for fp64
    values), differentiably in values and weights. Costs one fp32 copy of values that are not fp32, none of fp32.
    """
    batch, width, dim = values.shape
    wide = torch.promote_types(values.dtype, torch.float32)
    packed, counts, mask = _pack(groups, slots)
    if weights is None:
        weights = 1 / counts.gather(1, packed).clamp(min=1).to(wide)
    # Pads take part with the row's spare last slot, which is cut off below: shapes stay known without a sync.
    bags = (packed + torch.arange(batch, device=groups.device)[:, None] * (slots + 1)).flatten()
    order = bags.argsort(stable=True)
    flat_counts = counts.flatten()
    starts = flat_counts.cumsum(0) - flat_counts
    summed = F.embedding_bag(order, values.reshape(batch * width, dim).to(wide), starts, mode="sum",
                             per_sample_weights=weights.to(wide).flatten()[order])
    return summed.view(batch, slots + 1, dim)[:, :slots].to(values.dtype), mask


def last_position(positions: Tensor, groups: Tensor, slots: int) -> Tensor:
    """Position of each group's last token, packed as `merge_slots` packs: (B, slots), 0 where masked.

    positions (B, T) of any dtype; "last" is by column, whatever the positions say.
    """
    packed, _, mask = _pack(groups, slots)
    columns = torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
    last = columns.new_zeros(len(groups), slots + 1).scatter_reduce(1, packed, columns, "amax")[:, :slots]
    return positions.gather(1, last).masked_fill(~mask, 0)


def _per_row(ratio: int | Tensor, device: torch.device) -> int | Tensor:
    return ratio.to(device)[:, None] if isinstance(ratio, Tensor) else ratio


def _pack(groups: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's slot once empty groups are dropped, pads in slot `slots` (B, T); tokens of each slot
    (B, slots + 1); mask (B, slots) of the slots in use."""
    raw = torch.where(groups < 0, slots, groups)
    ones = torch.ones_like(raw)
    zeros = raw.new_zeros(len(raw), slots + 1)
    used = zeros.scatter_add(1, raw, ones)[:, :slots] > 0
    place = F.pad(used.long().cumsum(1) - 1, (0, 1), value=slots)
    packed = place.gather(1, raw)
    mask = torch.arange(slots, device=raw.device) < used.sum(1, keepdim=True)
    return packed, zeros.scatter_add(1, packed, ones), mask
