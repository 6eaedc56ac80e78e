"""Attention of one new token of each row to keys that rows share and to the rows' own, without joining the two.

Shape letters: B rows, C contexts, H query heads, J key/value heads, G = H / J, K shared keys, N own keys, W head width.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

# The CPU kernel behind scaled_dot_product_attention, which also returns each query's logsumexp of scores.
_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class SharedPart:
    """Keys and values that precede the rows' own, in place of an attention mask; for one query of each row on a CPU.

    keys, values  (C, J, at least the longest length, W)
    lengths       number of valid keys of each context, its first ones
    rows          context of each of the B rows
    own           (B, N) bool, the rows' own keys that are valid; None = all
    """

    keys: Tensor
    values: Tensor
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    own: Tensor | None = None


def attend_shared(query: Tensor, key: Tensor, value: Tensor, shared: SharedPart, scaling: float | None) -> Tensor:
    """One query of each row, (B, H, 1, W), over its context's keys and its own (B, J, N, W). Returns (B, 1, H, W).

    Joining the two by `torch.cat` would copy all keys of the context in every step. The two results are weighted by
    their shares of the softmax's denominator instead.
    """
    B, H, _, W = query.shape
    J = key.shape[1]
    query_BJGW = query.reshape(B, J, H // J, W)
    own_mask = None if shared.own is None else _additive(shared.own[:, None, None], query.dtype)
    own, own_sum = _attend(query_BJGW, key, value, attn_mask=own_mask, scale=scaling)
    context, context_sum = _attend_contexts(query_BJGW, shared, scaling)
    share = (context_sum - own_sum).sigmoid()[..., None]
    wide = torch.promote_types(query.dtype, torch.float32)
    out = context.to(wide) * share + own.to(wide) * (1 - share)
    return out.to(query.dtype).view(B, 1, H, W)


def _attend_contexts(query_BJGW: Tensor, shared: SharedPart, scaling: float | None) -> tuple[Tensor, Tensor]:
    """Attention to the shared keys alone, (B, J, G, W), and the logsumexp of its scores, (B, J, G)."""
    B, J, G, W = query_BJGW.shape
    keys, values, lengths = shared.keys, shared.values, shared.lengths
    if shared.rows == tuple(range(len(lengths))) and len(set(lengths)) == 1 and lengths[0]:
        return _attend(query_BJGW, keys[:, :, : lengths[0]], values[:, :, : lengths[0]], scale=scaling)
    outs, sums, start = [], [], 0
    # Over contexts: each is a view of its own length, so that nothing is copied and padding is not read. The questions
    # on a context are adjacent and are the queries of one call.
    for context, group in itertools.groupby(shared.rows):
        count, n = len(list(group)), lengths[context]
        query = query_BJGW[start : start + count]
        start += count
        if not n:
            outs.append(torch.zeros_like(query))
            sums.append(query.new_full((count, J, G), -torch.inf, dtype=torch.promote_types(query.dtype, torch.float)))
            continue
        key, value = keys[context : context + 1, :, :n], values[context : context + 1, :, :n]
        if count == 1:
            out, total = _attend(query, key, value, scale=scaling)
        else:
            query = query.transpose(0, 1).reshape(1, J, count * G, W)
            out, total = _attend(query, key, value, scale=scaling)
            out = out.view(J, count, G, W).transpose(0, 1)
            total = total.view(J, count, G).transpose(0, 1)
        outs.append(out)
        sums.append(total)
    return torch.cat(outs), torch.cat(sums)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the boolean mask is True, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)
