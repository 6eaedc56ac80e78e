"""Causal attention computed in blocks of queries, which skips keys that no query of the block attends to.

Shape letters: B rows, H heads, N queries, K keys (cached, then the N new ones), W head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from breviary.backbones.attention.shared import SharedPrefix, attend_shared

BLOCK = 512  # queries


def blockwise_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | SharedPrefix | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with the interface of transformers' `sdpa`, for masks that are causal by slot (all masks of `Stack`).

    query           (B, H, N, W)
    key, value      (B, key/value heads, K, W)
    attention_mask  (B, 1, N, K) bool, True = visible; None = causal, the queries being the last N of the K keys; a
                    SharedPrefix where further keys precede
    Returns (B, N, H, W). With a mask, torch's kernel multiplies every query with every key. Here a block of queries
    skips the keys after its last query: N/2 of K keys on average.
    """
    if isinstance(attention_mask, SharedPrefix):
        return attend_shared(query, key, value, attention_mask, scaling), None
    options: dict[str, Any] = dict(dropout_p=dropout, scale=scaling)
    groups = query.shape[1] // key.shape[1]
    N, K = query.shape[2], key.shape[2]
    if attention_mask is None:
        attend = scaled_dot_product_attention if N in (1, K) else lower_right_attention
        causal = {"is_causal": N > 1} if N in (1, K) else {}
        out = attend(query, key, value, enable_gqa=groups > 1, **causal, **options)
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


def lower_right_attention(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool, **options: Any) -> Tensor:
    """Causal attention of N queries at the end of K keys, (B, H, N, W), without an (N, K) mask.

    CUDA kernels support this form. On a CPU torch would materialise the full mask, so blocks of queries share one mask
    of (BLOCK, K).
    """
    N, K = query.shape[2], key.shape[2]
    if query.device.type != "cpu":
        if enable_gqa and query.dtype == torch.float32:  # memory-efficient attention takes no grouped heads
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
            enable_gqa = False
        bias = causal_lower_right(N, K)
        return scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=enable_gqa, **options)
    rows = min(BLOCK, N)
    slots_K = torch.arange(K)
    visible_RK = slots_K <= slots_K[K - rows :, None]  # mask of the last block; earlier blocks take a slice of it
    blocks = []
    for end in range(N, 0, -rows):  # backwards: only the first block can be shorter
        start = max(end - rows, 0)
        keys = K - N + end
        block = scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, :keys],
            value[:, :, :keys],
            attn_mask=visible_RK[None, None, rows - (end - start) :, K - keys :],
            enable_gqa=enable_gqa,
            **options,
        )
        blocks.append(block)
    return torch.cat(blocks[::-1], 2)


BLOCKWISE = "breviary_blockwise"

AttentionInterface.register(BLOCKWISE, blockwise_attention)
