"""torch's flex attention: masks are functions of row, head, query and key; blocks without a visible key are skipped.

Shape letters: B rows, H heads, J key/value heads, N queries, K keys (cached, then the N new ones), W head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface


@dataclass(frozen=True)
class FlexMask:
    """The visible blocks, and a function that adds a bias to the scores (None = no bias)."""

    blocks: BlockMask
    score_mod: Callable[..., Tensor] | None = None


def flex_mask(key_mask: Tensor | None, queries: int, device: torch.device, heads: int) -> FlexMask:
    """The mask of `Stack.run`: causal by slot, valid keys only, each slot visible to itself.

    key_mask  (B, K), or (B, J, K) bool or float; None = all N keys are valid
    heads     H
    """
    N = queries
    K = N if key_mask is None else key_mask.shape[-1]
    earlier = K - N
    if key_mask is None:
        return FlexMask(create_block_mask(lambda b, h, q, k: k <= q, None, None, N, K, device=device.type))
    if key_mask.dim() == 2:

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return ((k <= q + earlier) & key_mask[b, k]) | (k == q + earlier)

        return FlexMask(create_block_mask(visible, len(key_mask), None, N, K, device=device.type))
    group = heads // key_mask.shape[1]
    valid = key_mask if key_mask.dtype == torch.bool else key_mask > -torch.inf

    def visible_to_head(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((k <= q + earlier) & valid[b, h // group, k]) | (k == q + earlier)

    blocks = create_block_mask(visible_to_head, len(key_mask), heads, N, K, device=device.type)
    if key_mask.dtype == torch.bool:
        return FlexMask(blocks)
    bias = key_mask.masked_fill(~valid, 0).float()
    return FlexMask(blocks, lambda score, b, h, q, k: score + bias[b, h // group, k])


def flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: FlexMask,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with the interface of transformers: query (B, H, N, W), key and value (B, J, K, W) -> (B, N, H, W).

    Compiled on CUDA. On a CPU torch computes all scores, slowly, and has no backward pass.
    """
    assert not dropout, f"flex attention has no dropout: {dropout}"
    H, J = query.shape[1], key.shape[1]
    if H != J and query.device.type != "cpu" and H & (H - 1):  # the kernel groups heads in powers of two only
        key, value = (x.repeat_interleave(H // J, 1) for x in (key, value))
    attend = flex_attention if query.device.type == "cpu" else _compiled()
    out = attend(
        query,
        key,
        value,
        score_mod=attention_mask.score_mod,
        block_mask=attention_mask.blocks,
        scale=scaling,
        enable_gqa=key.shape[1] != H,
    )
    return out.transpose(1, 2).contiguous(), None


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


FLEX = "breviary_flex"

AttentionInterface.register(FLEX, flex)
