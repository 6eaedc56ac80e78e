"""Collates tokenised examples into a Batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from breviary.contract import Batch, Tokens

PIECES = ("prefix", "context", "query", "prompt", "answer")


class Collator:
    """Pads each piece on the right, to the longest of the batch.

    Masks are made from lengths, so `pad_id` may equal the end token or any other. A piece that is empty in every row
    has width 0.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> Batch:
        """The batch of `items`, one row each in the same order (see `Prompt.tokenise` for the pieces)."""
        assert items, len(items)
        prefix, context, query, prompt, answer = (self._tokens([item[name] for item in items]) for name in PIECES)
        return Batch(
            prefix=prefix,
            context=context,
            query=query,
            prompt=prompt,
            answer=answer,
            evidence=self._evidence(items),
            offsets=self._offsets(items),
            examples=[item["example"] for item in items],
            compressed=self._compressed(items),
            choices=self._choices(items),
            targets=self._targets(items),
        )

    def _tokens(self, rows: list[list[int]]) -> Tokens:
        return Tokens(
            _pad(rows, self.pad_id, torch.int64), _pad([[True] * len(row) for row in rows], False, torch.bool)
        )

    def _compressed(self, items: Sequence[dict[str, Any]]) -> Tokens | None:
        rows = [item.get("compressed") for item in items]
        return None if all(row is None for row in rows) else self._tokens([row or [] for row in rows])

    def _choices(self, items: Sequence[dict[str, Any]]) -> list[Tokens] | None:
        rows = [item.get("choices") or [] for item in items]
        places = range(max(map(len, rows)))
        return [self._tokens([row[i] if i < len(row) else [] for row in rows]) for i in places] or None

    def _evidence(self, items: Sequence[dict[str, Any]]) -> torch.Tensor | None:
        if all(item["evidence"] is None for item in items):
            return None
        rows = [[False] * len(item["context"]) if item["evidence"] is None else item["evidence"] for item in items]
        for row, item in zip(rows, items):
            assert len(row) == len(item["context"]), (len(row), len(item["context"]))
        return _pad(rows, False, torch.bool)

    def _targets(self, items: Sequence[dict[str, Any]]) -> torch.Tensor | None:
        rows = [item.get("targets") or [False] * len(item["context"]) for item in items]
        return _pad(rows, False, torch.bool) if any(map(any, rows)) else None

    def _offsets(self, items: Sequence[dict[str, Any]]) -> torch.Tensor | None:
        if any(item["starts"] is None for item in items):
            return None
        starts, ends = (_pad([item[name] for item in items], 0, torch.int64) for name in ("starts", "ends"))
        return torch.stack([starts, ends], dim=-1)


def _pad(rows: list[list], fill: int, dtype: torch.dtype) -> torch.Tensor:
    return pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], batch_first=True, padding_value=fill)
