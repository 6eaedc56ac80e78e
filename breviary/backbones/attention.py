"""Causal attention computed in blocks of queries, which skips keys that no query of the block attends to.

Shape letters: B rows, H heads, N queries, K keys (cached, then the N new ones), W head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

BLOCK = 512  # queries


def blockwise_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with the interface of transformers' `sdpa`, for masks that are causal by slot (all masks of `Stack`).

    query           (B, H, N, W)
    key, value      (B, key/value heads, K, W)
    attention_mask  (B, 1, N, K) bool, True = visible; None = plain causal over N = K, or one query over K keys
    Returns (B, N, H, W). With a mask, torch's kernel multiplies every query with every key. Here a block of queries
    skips the keys after its last query: N/2 of K keys on average.
    """
    options: dict[str, Any] = dict(dropout_p=dropout, scale=scaling)
    groups = query.shape[1] // key.shape[1]
    N, K = query.shape[2], key.shape[2]
    if attention_mask is None:
        assert N in (1, K), (query.shape, key.shape)
        out = scaled_dot_product_attention(query, key, value, is_causal=N > 1, enable_gqa=groups > 1, **options)
        return out.transpose(1, 2).contiguous(), None
    if groups > 1 and query.device.type != "cpu":
        # On CUDA, torch's only kernel for a mask with grouped heads stores all scores.
        key, value, groups = *(x.repeat_interleave(groups, 1) for x in (key, value)), 1
    blocks = []
    for start in range(0, N, BLOCK):
        end = min(start + BLOCK, N)
        visible = K - N + end
        blocks.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, :visible],
                value[:, :, :visible],
                attn_mask=attention_mask[:, :, start:end, :visible],
                enable_gqa=groups > 1,
                **options,
            )
        )
    return torch.cat(blocks, 2).transpose(1, 2).contiguous(), None


BLOCKWISE = "breviary_blockwise"

AttentionInterface.register(BLOCKWISE, blockwise_attention)
