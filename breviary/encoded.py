"""What a compressor keeps of contexts before a question is known, and batches of it taken apart and put together.

Shape letters: B examples, S segments of a context, L tokens of a segment, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Encoded:
    """What a compressor keeps of contexts before a question is known.

    Long contexts are read in segments: S rows of up to L tokens per context, empty rows at the end
    of shorter contexts.
    states  (B, S, L, D) states after the layers that read
    mask    (B, S, L)
    ids     (B, S, L) int64, of the tokenizer of what read them, 0 on padding, below 0 where no token of the text stands
    keys_values  per layer (keys, values), each (B, S, heads, L, head width); empty where the question
            does not read on from the context
    """

    states: Tensor
    mask: Tensor
    ids: Tensor
    keys_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def split(self) -> list[Encoded]:
        """One Encoded of batch size 1 for each context, cut to its own segments and length."""
        segments = self.mask.any(-1).sum(-1).clamp(min=1).tolist()
        widths = self.mask.sum(-1).amax(-1).clamp(min=1).tolist()
        out = []
        for b, (s, width) in enumerate(zip(segments, widths)):
            row = slice(b, b + 1)
            kept = [(k[row, :s, :, :width], v[row, :s, :, :width]) for k, v in self.keys_values]
            out.append(Encoded(*(x[row, :s, :width].clone() for x in (self.states, self.mask, self.ids)),
                               [(k.clone(), v.clone()) for k, v in kept]))
        return out

    @staticmethod
    def join(parts: list[Encoded]) -> Encoded:
        """The contexts of `parts` as one batch, padded with zeros to common sizes."""
        segments = max(p.mask.shape[1] for p in parts)
        width = max(p.mask.shape[2] for p in parts)

        def padded(x: Tensor, width_dim: int) -> Tensor:
            pad = [0, 0] * (x.dim() - 1 - width_dim) + [0, width - x.shape[width_dim]]
            pad += [0, 0] * (width_dim - 2) + [0, segments - x.shape[1]]
            return torch.nn.functional.pad(x, pad)

        keys_values = [
            (torch.cat([padded(p.keys_values[i][0], 3) for p in parts]),
             torch.cat([padded(p.keys_values[i][1], 3) for p in parts]))
            for i in range(len(parts[0].keys_values))
        ]
        return Encoded(*(torch.cat([padded(getattr(p, name), 2) for p in parts]) for name in ("states", "mask", "ids")),
                       keys_values)

    def to(self, device: torch.device | str) -> Encoded:
        """The same on `device`."""
        moved = [(k.to(device), v.to(device)) for k, v in self.keys_values]
        return replace(self, states=self.states.to(device), mask=self.mask.to(device), ids=self.ids.to(device),
                       keys_values=moved)
