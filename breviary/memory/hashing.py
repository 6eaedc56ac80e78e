"""Hashes of token sequences, for random choices that depend on the tokens alone and not on batch-mates or processes."""

from __future__ import annotations

import torch
from torch import Tensor

HASH_RANGE = 2**31 - 1  # prime; its square fits int64


def hash_integers(numbers: Tensor) -> Tensor:
    """A hash in [0, HASH_RANGE) of each number, same shape, int64."""
    # The square makes the map non-linear. With a linear one, sums of token times column that are equal would collide.
    for _ in range(3):
        numbers = (numbers % HASH_RANGE) ** 2 + 48271
    return numbers % HASH_RANGE


def hash_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """A hash in [0, HASH_RANGE) of each row's tokens and their columns: ids and mask (..., T) -> (...)."""
    columns = torch.arange(ids.shape[-1], device=ids.device)
    return hash_integers(ids * 48271 + columns * 2654435761).masked_fill(~mask, 0).sum(-1) % HASH_RANGE
