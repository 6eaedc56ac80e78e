"""Random states, queries and masks, shared by the tests of COMI's functions."""

import torch


def draw(seed, rows, width, dim=8, shared=1.0, dtype=torch.float32):
    """States with a common direction, and a query."""
    g = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, width, dim, generator=g) + shared * torch.randn(rows, 1, dim, generator=g)
    return states.to(dtype), torch.randn(rows, dim, generator=g).to(dtype)


def right_padded(lengths, width):
    return torch.arange(width) < torch.as_tensor(lengths)[:, None]


def batch_of(seed, lengths, dtype=torch.float32, dim=8):
    states, query = draw(seed, len(lengths), max(lengths), dim, dtype=dtype)
    return states, right_padded(lengths, max(lengths)), query
