"""Batches padded on the left: readers must accept padding on any side, and the collator pads on the right."""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.contract import Batch, Tokens


def padded_left(batch: Batch) -> Batch:
    """A right-padded batch with the padding of every piece, and of evidence and offsets, moved to the left."""
    pieces = {name: getattr(batch, name) for name in ("prefix", "context", "query", "prompt", "answer")}
    moved = {name: _moved(tokens) for name, tokens in pieces.items()}
    choices = None if batch.choices is None else [_moved(option) for option in batch.choices]
    marks = {name: getattr(batch, name) for name in ("evidence", "offsets")}
    marks = {name: mark if mark is None else _rotated(mark, batch.context.lengths) for name, mark in marks.items()}
    return Batch(
        **moved, **marks, examples=batch.examples, task=batch.task, compressed=batch.compressed, choices=choices
    )


def _moved(tokens: Tokens) -> Tokens:
    return Tokens(_rotated(tokens.ids, tokens.lengths), _rotated(tokens.mask, tokens.lengths))


def _rotated(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, N, ...) with row b rotated to the right by N - lengths[b]."""
    places = torch.arange(values.shape[1])
    return torch.stack([row[(places + int(n)) % max(len(places), 1)] for row, n in zip(values, lengths)])
