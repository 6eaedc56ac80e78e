"""Where text, compression and readout tokens of a chunk stand (CoMeT, spec 1.2), without a loop over tokens.

Shape letters: B rows, n text tokens of a piece, k compression tokens, G readout tokens, N columns of the chunk's sequence.

    [ x_1 .. x_s <b> x_s+1 .. x_2s <b> ..  | R_1 .. R_G ]

A compression token <b> follows every s-th text token of the chunk; a chunk that is closed has one more behind a shorter
last group, and the readouts at its end. A piece may begin in the middle of a chunk: what a chunk looks like does not
depend on the pieces in which it is read. Memory seats, which precede all this, are no part of the layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.memory.assembly import ROUND_TO, Layout

TEXT, BEACONS, READOUTS = 0, 1, 2  # the layout's parts


def chunk_layout(
    text_mask: Tensor,
    before: Tensor,
    closes: Tensor,
    stride: Tensor,
    beacons: int,
    readouts: int,
    round_to: int = ROUND_TO,
) -> Layout:
    """Layout of one piece of every row's chunk, parts TEXT (B, n), BEACONS (B, k), READOUTS (B, G).

    text_mask  (B, n) bool, the piece's text, right-padded
    before     (B,) int64, text tokens of the chunk that were read earlier
    closes     (B,) bool, the chunk ends with this piece
    stride     (B,) int64, s
    beacons    k, at least as many as any row gets (see `beacon_count`); readouts  G
    """
    B, n = text_mask.shape
    device = text_mask.device
    text_B = text_mask.sum(1)
    in_group_B = before % stride  # text tokens of the group that was left open
    full_B = (in_group_B + text_B) // stride
    rest_B = (in_group_B + text_B) % stride
    count_B = full_B + (closes & (rest_B > 0))
    g_k = torch.arange(beacons, device=device)
    # Beacon g follows the text token that completes its group; the last one of a closed chunk, the last text token. A
    # group that was complete but for its closing (no new text) has its beacon first of all.
    after_Bk = torch.minimum(
        (g_k + 1) * stride[:, None] - in_group_B[:, None], text_B[:, None]
    )  # text tokens before it
    keys = [2 * torch.arange(n, device=device) + 2, 2 * after_Bk + 1, torch.arange(readouts, device=device) + 2 * n + 3]
    masks = [text_mask, g_k < count_B[:, None], closes[:, None].expand(B, readouts)]
    return Layout.of(masks, "right", round_to, keys)


def beacon_count(before: int, text: int, closes: bool, stride: int) -> int:
    """Compression tokens of one piece, on the host: `before`, `text`, `closes`, `stride` of its row."""
    full, rest = divmod(before % stride + text, stride)
    return full + (closes and rest > 0)
