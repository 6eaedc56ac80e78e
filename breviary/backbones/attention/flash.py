"""flash-attn on batches without padding: rows of different lengths are packed into one sequence (varlen).

Shape letters: B rows, H heads, N queries, K keys (cached, then the N new ones), W head width.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface


@dataclass(frozen=True)
class Ragged:
    """Valid queries and keys of rows of different lengths. The queries of a row are its last keys.

    queries, keys              int64 indices into the flattened (B * N) queries and (B * K) keys
    query_starts, key_starts   (B + 1,) int32, cumulative sequence lengths (cu_seqlens)
    most_queries, most_keys    maximum per row (max_seqlen)
    """

    queries: Tensor
    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, key_mask: Tensor, queries: int) -> Ragged:
        """From the mask (B, K) of all keys, of which the last `queries` are new. One host sync, for all layers."""
        query_mask = key_mask[:, key_mask.shape[1] - queries :]
        counts = [mask.sum(1) for mask in (query_mask, key_mask)]
        most = torch.stack([count.max() for count in counts]).tolist()
        starts = [nn.functional.pad(count.cumsum(0), (1, 0)).int() for count in counts]
        indices = [mask.flatten().nonzero()[:, 0] for mask in (query_mask, key_mask)]
        return cls(*indices, *starts, *most)


def flash_mask(key_mask: Tensor | None, queries: int) -> Ragged | None:
    """The argument of `flash_attention` for a mask (B, K) as in `Stack.run`; None = causal, all keys valid.

    Raises: ValueError for a mask per head, which the kernels do not support.
    """
    if key_mask is None or (key_mask.dim() == 2 and bool(key_mask.all())):
        return None
    if key_mask.dim() == 3:
        raise ValueError(
            "backbone.attn_implementation=flash_attention_2: heads attend to different keys here, which flash-attn "
            "does not support; use backbone.attn_implementation=sdpa or flex"
        )
    return Ragged.of(key_mask, queries)


def flash_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Ragged | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with the interface of transformers, through the package flash-attn; not tested on a GPU.

    query (B, H, N, W); key, value (B, key/value heads, K, W). Returns (B, N, H, W), zeros at padded queries.
    transformers' own function is not used: it infers packed rows from gaps in the positions, which prompts have.
    """
    package: Any = importlib.import_module("flash_attn")
    rows = [x.transpose(1, 2).to(value.dtype) for x in (query, key, value)]
    options = dict(dropout_p=dropout, softmax_scale=scaling, causal=True)  # aligned at the last query and the last key
    if attention_mask is None:
        return package.flash_attn_func(*rows, **options), None
    ragged, flat = attention_mask, [x.flatten(0, 1) for x in rows]
    out = package.flash_attn_varlen_func(
        flat[0][ragged.queries],
        flat[1][ragged.keys],
        flat[2][ragged.keys],
        cu_seqlens_q=ragged.query_starts,
        cu_seqlens_k=ragged.key_starts,
        max_seqlen_q=ragged.most_queries,
        max_seqlen_k=ragged.most_keys,
        **options,
    )
    return torch.zeros_like(flat[0]).index_copy(0, ragged.queries, out).view(rows[0].shape), None


FLASH = "breviary_flash"

AttentionInterface.register(FLASH, flash_attention)
