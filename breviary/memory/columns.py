"""Where prefix and context lie in right-padded rows of cached keys.

Shape letters: B rows, S columns, P prefix tokens, T context tokens, J key/value heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Columns:
    """Which columns of right-padded rows [prefix ; context] hold the prefix, and which the context.

    valid            (B, S) bool
    prefix_mask      (B, P); mask (B, T) of the context's tokens, left-packed
    context_columns  (B, T) int64, column of each context token; arbitrary on padding
    start            P where every row's prefix has as many tokens, and a column follows; None otherwise
    """

    valid: Tensor
    prefix_mask: Tensor
    mask: Tensor
    context_columns: Tensor
    start: int | None

    @classmethod
    def of(cls, valid: Tensor, ids: Tensor) -> Columns:
        """valid (B, S), and ids (B, S), below 0 on the prefix."""
        in_prefix = valid & (ids < 0)
        lengths = in_prefix.sum(1, keepdim=True)
        least, most = (int(x) for x in lengths.aminmax()) if len(valid) else (0, 0)
        width = valid.shape[1]
        own = lengths + torch.arange(max(width - least, 1), device=valid.device)
        mask = own < valid.sum(1, keepdim=True)
        start = least if least == most < width else None
        return cls(valid, in_prefix[:, :most], mask, own.clamp(max=width - 1), start)

    @property
    def lengths(self) -> Tensor:
        """Tokens of prefix and context together, (B,)."""
        return self.valid.sum(1)

    def context(self, x: Tensor) -> Tensor:
        """The context's columns of (B, S): (B, T)."""
        return x.gather(1, self.context_columns)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix and context of keys or values (B, J, S, d): (B, J, P, d) and (B, J, T, d), views where possible."""
        prefix = x[:, :, : self.prefix_mask.shape[1]]
        if self.start is not None:
            return prefix, x[:, :, self.start :]
        index = self.context_columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        return prefix, x.gather(2, index)

    def with_prefix(self, kept: Tensor) -> Tensor:
        """Kept context tokens (B, J, T) as columns (B, J, S), the whole prefix among them."""
        index, in_context = self._to_columns()
        columns = kept.gather(2, index[:, None].expand(-1, kept.shape[1], -1)) & in_context[:, None]
        return columns | (self.valid & ~in_context)[:, None]

    def replace(self, x: Tensor, of_context: Tensor) -> Tensor:
        """x (B, J, S[, d]) with the context's columns from `of_context` (B, J, T[, d])."""
        index, in_context = self._to_columns()
        shape = (len(x), 1, -1, *[1] * (x.dim() - 3))
        index, in_context = index.view(shape), in_context.view(shape)
        return torch.where(in_context, of_context.gather(2, index.expand(-1, x.shape[1], -1, *x.shape[3:])), x)

    def _to_columns(self) -> tuple[Tensor, Tensor]:
        """For each column (B, S) the index of its context token, and whether it holds one."""
        column = torch.arange(self.valid.shape[1], device=self.valid.device)
        start = self.prefix_mask.sum(1, keepdim=True)
        return (column - start).clamp(0, max(self.mask.shape[1] - 1, 0)), self.valid & (column >= start)
