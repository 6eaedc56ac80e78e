"""Splitting and joining batches of encoded contexts, for caches.

Shape letters: B contexts, S segments of a context, L tokens of a segment.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from breviary.backbones.stack import LazyLayers
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
        parts.append(Encoded(states, mask, ids, pairs, [x[row].clone() for x in encoded.observed]))
    return parts


def join_contexts(parts: list[Encoded]) -> Encoded:
    """The contexts of `parts` as one batch, padded with zeros to common numbers of segments and tokens.

    Where all parts are one object, states are views of it. Keys and values of a layer are joined when they are read, so
    that no copy of them is held.
    """
    distinct = list({id(part): part for part in parts}.values())
    segments = max(part.mask.shape[1] for part in distinct)
    width = max(part.mask.shape[2] for part in distinct)
    rows = [next(c for c, one in enumerate(distinct) if one is part) for part in parts]

    def joined(tensors: list[Tensor], width_dim: int) -> Tensor:
        """One tensor of each distinct part -> a batch with a row for each part."""
        batch = torch.cat([padded(x, width_dim) for x in tensors]) if len(tensors) > 1 else tensors[0]
        if len(tensors) == 1:
            return batch.expand(len(rows), *batch.shape[1:])
        return batch if len(tensors) == len(rows) else batch[torch.tensor(rows, device=batch.device)]

    def padded(x: Tensor, width_dim: int) -> Tensor:
        pad = [0, 0] * (x.dim() - 1 - width_dim) + [0, width - x.shape[width_dim]]
        pad += [0, 0] * (width_dim - 2) + [0, segments - x.shape[1]]
        return torch.nn.functional.pad(x, pad) if any(pad) else x  # before torch 2.12 no dimension may be empty

    def pair(layer: int) -> tuple[Tensor, Tensor]:
        keys, values = ([part.keys_values[layer][i] for part in distinct] for i in (0, 1))
        return joined(keys, 3), joined(values, 3)

    states, mask, ids = (joined([getattr(part, name) for part in distinct], 2) for name in ("states", "mask", "ids"))
    pairs = LazyLayers(len(distinct[0].keys_values), pair)
    observed = [pad_sequence([x[0] for x in layer], batch_first=True) for layer in zip(*(p.observed for p in distinct))]
    if len(distinct) < len(rows):
        observed = [x[torch.tensor(rows, device=x.device)] for x in observed]
    return Encoded(states, mask.contiguous(), ids.contiguous(), pairs, observed)


def move_encoded(encoded: Encoded, device: torch.device | str) -> Encoded:
    """The same encoded contexts on `device`."""
    pairs = [(k.to(device), v.to(device)) for k, v in encoded.keys_values]
    return replace(
        encoded,
        states=encoded.states.to(device),
        mask=encoded.mask.to(device),
        ids=encoded.ids.to(device),
        keys_values=pairs,
        observed=[x.to(device) for x in encoded.observed],
    )
