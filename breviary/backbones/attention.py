"""Causal attention that skips what it cannot see, block of queries by block.

Shape letters: B rows, H heads, N queries, K keys (cached and new: the last N are the queries' own), W head width.
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
    """As transformers' `sdpa`, for masks that are causal by slot (all that `Stack` makes).

    query (B, H, N, W), key and value (B, kv heads, K, W), attention_mask (B, 1, N, K) bool, True = seen; None = plain
    causal over N = K, or one query that sees all K. Gives (B, N, H, W). With a mask torch's kernel multiplies every query
    with every key; here a block of queries meets no key behind its last one: N/2 of K keys saved on average.
    """
    call, shared = dict(dropout_p=dropout, scale=scaling), query.shape[1] // key.shape[1]
    N, K = query.shape[2], key.shape[2]
    if attention_mask is None:
        assert N in (1, K), (query.shape, key.shape)
        out = scaled_dot_product_attention(query, key, value, is_causal=N > 1, enable_gqa=shared > 1, **call)
        return out.transpose(1, 2).contiguous(), None
    if (
        shared > 1 and query.device.type != "cpu"
    ):  # torch's one kernel on CUDA for a mask and shared heads keeps all scores
        key, value, shared = *(x.repeat_interleave(shared, 1) for x in (key, value)), 1
    blocks = []
    for start in range(0, N, BLOCK):
        end = min(start + BLOCK, N)
        seen = K - N + end
        blocks.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, :seen],
                value[:, :, :seen],
                attn_mask=attention_mask[:, :, start:end, :seen],
                enable_gqa=shared > 1,
                **call,
            )
        )
    return torch.cat(blocks, 2).transpose(1, 2).contiguous(), None


BLOCKWISE = "breviary_blockwise"

AttentionInterface.register(BLOCKWISE, blockwise_attention)
