"""Order of text, compression and readout tokens in a chunk (CoMeT, spec 1.2), without a loop over tokens.

Shape letters: B rows, n text tokens of a piece, k compression tokens, G readout tokens.

    [ x_1 .. x_s <b> x_s+1 .. x_2s <b> ..  | R_1 .. R_G ]

A compression token <b> follows every s-th text token of the chunk. A chunk whose end updates the memory has one more
<b> after a shorter last group, then the readout tokens. A piece may begin in the middle of a chunk: the order within a
chunk does not depend on the pieces in which it is processed. Memory slots precede all columns and are not part of the
layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.memory.assembly import ROUND_TO, Layout

TEXT, COMPRESSION, READOUT = 0, 1, 2  # part numbers of the layout


def chunk_layout(
    text_mask: Tensor,
    earlier: Tensor,
    updates: Tensor,
    stride: Tensor,
    compression_tokens: int,
    readout_tokens: int,
    round_to: int = ROUND_TO,
) -> Layout:
    """Layout of one piece of each row's chunk, with parts TEXT (B, n), COMPRESSION (B, k) and READOUT (B, G).

    text_mask  (B, n) bool, the piece's text, right-padded
    earlier    (B,) int64, text tokens of the chunk in earlier pieces
    updates    (B,) bool, the chunk ends with this piece and updates the memory
    stride     (B,) int64, s
    compression_tokens  k, at least the largest `compression_token_count` of the rows
    readout_tokens      G
    """
    B, n = text_mask.shape
    device = text_mask.device
    text_B = text_mask.sum(1)
    group_B = earlier % stride  # text tokens in the unfinished group of the earlier pieces
    full_B = (group_B + text_B) // stride
    rest_B = (group_B + text_B) % stride
    count_B = full_B + (updates & (rest_B > 0))
    g_k = torch.arange(compression_tokens, device=device)
    # Compression token g follows the text token that completes its group. In a chunk that ends, the last one follows
    # the last text token. Without new text, the compression token of an unfinished group comes first.
    preceding_Bk = torch.minimum((g_k + 1) * stride[:, None] - group_B[:, None], text_B[:, None])  # text tokens
    keys = [
        2 * torch.arange(n, device=device) + 2,
        2 * preceding_Bk + 1,
        torch.arange(readout_tokens, device=device) + 2 * n + 3,
    ]
    masks = [text_mask, g_k < count_B[:, None], updates[:, None].expand(B, readout_tokens)]
    return Layout.of(masks, round_to, keys)


def compression_token_count(earlier: int, text: int, updates: bool, stride: int) -> int:
    """Compression tokens of one row's piece, on the host; arguments as in `chunk_layout`, `text` = its text tokens."""
    full, rest = divmod(earlier % stride + text, stride)
    return full + (updates and rest > 0)
