"""Memories that were read once for all questions on them: keys and values of the decoder's upper layers.

Where a memory is the context's alone (full context, mean pooling), the decoder need not read it again for another question.
Shape letters: B contexts, K tokens and slots of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Prefilled:
    """[prefix ; memory] of each context as the decoder's layers from the joining one on hold it.

    keys_values  {layer: (keys, values)}, each (B, heads, K, head width)
    mask         (B, K) True = a key that may be attended to; right-padded
    slots        (B,) int64, memory slots among them
    """

    keys_values: dict[int, tuple[Tensor, Tensor]]
    mask: Tensor
    slots: Tensor

    def split(self) -> list[Prefilled]:
        """One of batch size 1 for each context, cut to its own length (at least one column, masked where it has no token)."""
        out = []
        for b, width in enumerate(self.mask.sum(1).clamp(min=1).tolist()):
            row = slice(b, b + 1)
            kept = {layer: (k[row, :, :width].clone(), v[row, :, :width].clone()) for layer, (k, v) in self.keys_values.items()}
            out.append(Prefilled(kept, self.mask[row, :width].clone(), self.slots[row].clone()))
        return out

    @staticmethod
    def join(parts: list[Prefilled]) -> Prefilled:
        """The contexts of `parts` as one batch, padded to the longest."""
        width = max(part.mask.shape[1] for part in parts)

        def joined(tensors: list[Tensor]) -> Tensor:
            """Keys or values, each (1, heads, K, head width)."""
            return torch.cat([torch.nn.functional.pad(x, (0, 0, 0, width - x.shape[2])) for x in tensors])

        layers = {layer: tuple(joined([part.keys_values[layer][i] for part in parts]) for i in (0, 1))
                  for layer in parts[0].keys_values}
        mask = torch.cat([torch.nn.functional.pad(part.mask, (0, width - part.mask.shape[1])) for part in parts])
        return Prefilled(layers, mask, torch.cat([part.slots for part in parts]))
