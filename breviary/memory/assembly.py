"""Packing of padded parts into one sequence per row: parts in order, no gaps, one block of padding.

Shape letters: B rows, N width of a part, S = sum of all part widths, rounded up, D hidden width.

Every input sequence of a decoder or encoder is packed here. The published codes pad each part by itself
([memory|pad|question|pad|answer|pad]), so that positions, logits of the first answer token and losses depend on
batch-mates. Here the valid tokens of a row are contiguous, and a batch of N equals N batches of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Sequences are padded to a multiple of this width, as every new shape has a cost. Matrix libraries compile a kernel for
# it (bfloat16 on CPUs: several times the work itself, and memory that grows with every shape) or use tiles partly.
ROUND_TO = 16


@dataclass
class Layout:
    """Column of every token of several padded parts in one packed sequence.

    order   (B, S) int64: sequence column -> column of the concatenated parts
    column  (B, S) int64: the inverse, column of the concatenated parts -> sequence column
    mask    (B, S) bool: True = a real token; right-padded, so that causal attention needs no mask
    widths  width N of each part
    """

    order: Tensor
    column: Tensor
    mask: Tensor
    widths: tuple[int, ...]

    @classmethod
    def of(cls, masks: list[Tensor], round_to: int = ROUND_TO, keys: list[Tensor] | None = None) -> Layout:
        """Layout of parts with the given validity masks, each (B, N), any padding.

        round_to  the sequence is as wide as all parts together, rounded up to a multiple of this; trimming it would
                  need a host sync. Parts of width zero make one such multiple, as layers need a column. 1 for sequences
                  that are packed into another one before any layer processes them; these may have no column
        keys      (B, N) or (N,) int64 >= 0 for each part: tokens are sorted by key, which interleaves the parts;
                  None = one part after the other
        """
        valid_BS = torch.cat(masks, dim=1)
        least = round_to if round_to > 1 else 0
        valid_BS = _pad_columns(valid_BS, max(-(-valid_BS.shape[1] // round_to) * round_to, least))
        if keys is None:
            # A stable sort by validity moves the padding to the end and preserves the order of the tokens.
            keys_BS = (~valid_BS).to(torch.uint8)
        else:
            keys_BS = _pad_columns(
                torch.cat([key.expand(mask.shape) for key, mask in zip(keys, masks)], 1), valid_BS.shape[1]
            )
            keys_BS = keys_BS.masked_fill(~valid_BS, torch.iinfo(torch.int64).max)
        order_BS = keys_BS.argsort(dim=1, stable=True)
        column_BS = torch.empty_like(order_BS)
        column_BS.scatter_(1, order_BS, torch.arange(order_BS.shape[1], device=order_BS.device).expand_as(order_BS))
        return cls(order_BS, column_BS, valid_BS.gather(1, order_BS), tuple(m.shape[1] for m in masks))

    def pack(self, parts: list[Tensor]) -> Tensor:
        """The parts, each (B, N) or (B, N, D), as one sequence (B, S[, D]); zeros on padding."""
        widths = tuple(part.shape[1] for part in parts)
        assert widths == self.widths, f"parts of widths {widths}, layout of {self.widths}"
        joined = _pad_columns(torch.cat(parts, dim=1), self.mask.shape[1])
        if joined.dim() == 2:
            return joined.gather(1, self.order).masked_fill(~self.mask, 0)
        index = self.order[..., None].expand(-1, -1, joined.shape[-1])
        return joined.gather(1, index).masked_fill(~self.mask[..., None], 0)

    def columns_of(self, part: int) -> Tensor:
        """Sequence column of each token of part number `part`, (B, N); arbitrary on the part's padding."""
        start = sum(self.widths[:part])
        return self.column[:, start : start + self.widths[part]]

    def unpack(self, sequence: Tensor, part: int) -> Tensor:
        """The columns of part number `part` of a sequence: (B, S, D) -> (B, N, D)."""
        return take_columns(sequence, self.columns_of(part))

    def positions(self) -> Tensor:
        """Consecutive positions of the real tokens, (B, S)."""
        return token_index(self.mask)


def _pad_columns(joined: Tensor, width: int) -> Tensor:
    """(B, S[, D]) padded with columns of zeros to `width`."""
    missing = width - joined.shape[1]
    return torch.nn.functional.pad(joined, [0, 0] * (joined.dim() - 2) + [0, missing]) if missing else joined


def take_columns(sequence: Tensor, columns: Tensor) -> Tensor:
    """The given columns (B, N) of a sequence: (B, S, D) -> (B, N, D)."""
    return sequence.gather(1, columns[..., None].expand(-1, -1, sequence.shape[-1]))


def token_index(mask: Tensor) -> Tensor:
    """Index of every real token among its row's real tokens, (B, N) int64; arbitrary but >= 0 on padding."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
