"""Splitting and joining batches of encoded contexts, for caches.

Shape letters: B contexts, S segments of a context, L tokens of a segment.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from breviary.contract import Encoded


def split_contexts(encoded: Encoded) -> list[Encoded]:
    """One `Encoded` of batch size 1 per context, cut to its number of segments and longest segment."""
    segments = encoded.mask.any(-1).sum(-1).clamp(min=1).tolist()
    widths = encoded.mask.sum(-1).amax(-1).clamp(min=1).tolist()
    parts = []
    for b, (s, width) in enumerate(zip(segments, widths)):
        row = slice(b, b + 1)
        pairs = [(k[row, :s, :, :width].clone(), v[row, :s, :, :width].clone()) for k, v in encoded.keys_values]
        states, mask, ids = (x[row, :s, :width].clone() for x in (encoded.states, encoded.mask, encoded.ids))
        parts.append(Encoded(states, mask, ids, pairs))
    return parts


def join_contexts(parts: list[Encoded]) -> Encoded:
    """The contexts of `parts` as one batch, padded with zeros to common numbers of segments and tokens."""
    segments = max(part.mask.shape[1] for part in parts)
    width = max(part.mask.shape[2] for part in parts)

    def padded(x: Tensor, width_dim: int) -> Tensor:
        pad = [0, 0] * (x.dim() - 1 - width_dim) + [0, width - x.shape[width_dim]]
        pad += [0, 0] * (width_dim - 2) + [0, segments - x.shape[1]]
        return torch.nn.functional.pad(x, pad)

    pairs = [
        (
            torch.cat([padded(part.keys_values[i][0], 3) for part in parts]),
            torch.cat([padded(part.keys_values[i][1], 3) for part in parts]),
        )
        for i in range(len(parts[0].keys_values))
    ]
    states, mask, ids = (
        torch.cat([padded(getattr(part, name), 2) for part in parts]) for name in ("states", "mask", "ids")
    )
    return Encoded(states, mask, ids, pairs)


def move_encoded(encoded: Encoded, device: torch.device | str) -> Encoded:
    """The same encoded contexts on `device`."""
    pairs = [(k.to(device), v.to(device)) for k, v in encoded.keys_values]
    return replace(
        encoded,
        states=encoded.states.to(device),
        mask=encoded.mask.to(device),
        ids=encoded.ids.to(device),
        keys_values=pairs,
    )
