"""Decoding attention over a shared prefix and each row's own keys, merged by logsumexp instead of concatenated.

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
class SharedPrefix:
    """Keys and values that precede each row's own. Passed as the attention mask, for one query per row on a CPU.

    keys, values  (C, J, K, W), K >= the longest length
    lengths       valid keys of each context, from the first on
    rows          index of the context of each of the B rows
    own           (B, N) bool, True = valid key of the row itself; None = all
    """

    keys: Tensor
    values: Tensor
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    own: Tensor | None = None


def attend_shared(query: Tensor, key: Tensor, value: Tensor, shared: SharedPrefix, scaling: float | None) -> Tensor:
    """Attention of one query per row, (B, H, 1, W), to its context's keys and its own (B, J, N, W): (B, 1, H, W).

    `torch.cat` would copy all keys of the context in every step. Instead both attentions are computed separately and
    weighted by their shares of the softmax's denominator.
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


def _attend_contexts(query_BJGW: Tensor, shared: SharedPrefix, scaling: float | None) -> tuple[Tensor, Tensor]:
    """Attention to the shared keys alone, (B, J, G, W), and the logsumexp of its scores, (B, J, G)."""
    B, J, G, W = query_BJGW.shape
    keys, values, lengths = shared.keys, shared.values, shared.lengths
    if shared.rows == tuple(range(len(lengths))) and len(set(lengths)) == 1 and lengths[0]:
        return _attend(query_BJGW, keys[:, :, : lengths[0]], values[:, :, : lengths[0]], scale=scaling)
    outs, sums, start = [], [], 0
    # A loop over contexts: each is a view of its own length, so nothing is copied and no padding is computed. Questions
    # on one context are adjacent and become the queries of one call.
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
