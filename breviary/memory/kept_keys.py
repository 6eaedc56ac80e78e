"""Keys and values that a decoder layer keeps of its cache, stored without padding.

Shape letters: B contexts, J key/value heads, K entries of a head, W head width, E entries of all rows and heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KeptKeys:
    """What one layer keeps of the keys and values of B contexts. Rows and heads may keep different numbers.

    keys, values  (E, W): the entries of row 0 head 0, then row 0 head 1, ..., each in order of position
    counts        for each row the number of entries of each head
    bias          (E,) float32, added to the scaled attention scores; None = none
    """

    keys: Tensor
    values: Tensor
    counts: tuple[tuple[int, ...], ...]
    bias: Tensor | None = None

    @classmethod
    def select(cls, keys: Tensor, values: Tensor, kept: Tensor, bias: Tensor | None = None) -> KeptKeys:
        """The entries where `kept` (B, J, K) is True, of keys and values (B, J, K, W) and bias (B, J, K)."""
        counts = tuple(tuple(row) for row in kept.sum(-1).tolist())
        return cls(keys[kept], values[kept], counts, None if bias is None else bias[kept].float())

    @property
    def width(self) -> int:
        """Largest number of entries of a head, K."""
        return max((count for row in self.counts for count in row), default=0)

    @property
    def is_uniform(self) -> bool:
        """Whether every head of every row keeps the same number of entries."""
        return len({count for row in self.counts for count in row}) <= 1

    @property
    def bytes(self) -> int:
        """Bytes of all entries, biases included."""
        tensors = [self.keys, self.values] + ([] if self.bias is None else [self.bias])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def row_bytes(self, row: int) -> int:
        """Bytes of one context's entries, biases included."""
        tensors = [self.keys, self.values] + ([] if self.bias is None else [self.bias])
        return sum(self.counts[row]) * sum(tensor[:1].nbytes for tensor in tensors)

    def padded(self) -> tuple[Tensor, Tensor]:
        """Keys and values, each (B, J, K, W), right-padded: views where heads keep equal numbers, else copies."""
        shape = (len(self.counts), len(self.counts[0]), self.width, self.keys.shape[-1])
        if self.is_uniform:
            return self.keys.view(shape), self.values.view(shape)
        valid = self._valid()
        keys, values = (self._scatter(x, valid, shape) for x in (self.keys, self.values))
        return keys, values

    def key_mask(self) -> Tensor | None:
        """Mask of `padded` as in `Stack.run`, (B, J, K): bool, or float where scores are biased. None = all valid."""
        if self.bias is None:
            return None if self.is_uniform else self._valid()
        valid = self._valid()
        full = self.bias.new_full(valid.shape, -torch.inf)
        return full.masked_scatter(valid, self.bias)

    def rows(self, index: Sequence[int]) -> KeptKeys:
        """The contexts in `index`, in that order."""
        ends = torch.tensor([sum(row) for row in self.counts]).cumsum(0).tolist()
        spans = [slice(ends[b] - sum(self.counts[b]), ends[b]) for b in index]
        keys, values = (torch.cat([x[span] for span in spans]) for x in (self.keys, self.values))
        bias = None if self.bias is None else torch.cat([self.bias[span] for span in spans])
        return KeptKeys(keys, values, tuple(self.counts[b] for b in index), bias)

    @staticmethod
    def join(parts: Sequence[KeptKeys]) -> KeptKeys:
        """The contexts of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        biases = [part.bias for part in parts if part.bias is not None]
        return KeptKeys(
            torch.cat([part.keys for part in parts]),
            torch.cat([part.values for part in parts]),
            tuple(row for part in parts for row in part.counts),
            torch.cat(biases) if biases else None,
        )

    def _valid(self) -> Tensor:
        """Which entries of `padded` are kept ones, (B, J, K) bool."""
        counts = torch.tensor(self.counts, device=self.keys.device)
        return torch.arange(self.width, device=self.keys.device) < counts[..., None]

    @staticmethod
    def _scatter(entries: Tensor, valid: Tensor, shape: tuple[int, ...]) -> Tensor:
        full = entries.new_zeros(shape)
        full[valid] = entries
        return full
