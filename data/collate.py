"""From tokenised examples to one Batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from breviary.contract import Batch, Tokens

PIECES = ("prefix", "context", "query", "prompt", "answer")


class Collator:
    """Pads each piece of the examples to the longest of the batch.

    Masks are made from lengths, so `pad_id` may equal the end token or any other. A piece that is empty in every row
    has width 0. Raises ValueError for a padding side other than right or left.
    """

    def __init__(self, pad_id: int, padding_side: str = "right") -> None:
        if padding_side not in ("right", "left"):
            raise ValueError(f"padding_side is {padding_side!r}; allowed: right, left (key collator.padding_side)")
        self.pad_id = pad_id
        self.padding_side = padding_side

    def __call__(self, items: Sequence[dict[str, Any]]) -> Batch:
        """The batch of `items`, rows in their order (see `Prompt.tokenise` for the pieces)."""
        assert items, len(items)
        tokens = {name: self._tokens([item[name] for item in items]) for name in PIECES}
        return Batch(
            **tokens,
            evidence=self._evidence(items),
            offsets=self._offsets(items),
            examples=[item["example"] for item in items],
        )

    def _tokens(self, rows: list[list[int]]) -> Tokens:
        return Tokens(
            self._padded(rows, self.pad_id, torch.int64),
            self._padded([[True] * len(row) for row in rows], False, torch.bool),
        )

    def _evidence(self, items: Sequence[dict[str, Any]]) -> torch.Tensor | None:
        if all(item["evidence"] is None for item in items):
            return None
        marks = []
        for item in items:
            known = item["evidence"] is not None
            assert not known or len(item["evidence"]) == len(item["context"]), (
                len(item["evidence"]),
                len(item["context"]),
            )
            marks.append(item["evidence"] if known else [False] * len(item["context"]))
        return self._padded(marks, False, torch.bool)

    def _offsets(self, items: Sequence[dict[str, Any]]) -> torch.Tensor | None:
        if any(item["starts"] is None for item in items):
            return None
        return torch.stack(
            [self._padded([item[name] for item in items], 0, torch.int64) for name in ("starts", "ends")], dim=-1
        )

    def _padded(self, rows: list[list], fill: int | bool, dtype: torch.dtype) -> torch.Tensor:
        width = max(len(row) for row in rows)
        out_BN = torch.full((len(rows), width), fill, dtype=dtype)
        for b, row in enumerate(rows):
            start = 0 if self.padding_side == "right" else width - len(row)
            out_BN[b, start : start + len(row)] = torch.tensor(row, dtype=dtype)
        return out_BN
