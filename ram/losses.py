"""RAM's contrastive loss: segments that hold the answer are to be more like the question than the others (spec 1.9)."""

from __future__ import annotations

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum")


def contrastive_loss(
    relevance: Tensor, positives: Tensor, valid: Tensor, temperature: float = 0.1, reduction: str = "mean"
) -> Tensor:
    """InfoNCE with several positives, their masses summed inside the logarithm: any positive suffices.

    Per row: -log( sum over positives exp(r / temperature) / sum over valid segments exp(r / temperature) ).
    relevance (B, S); positives, valid (B, S) bool, positives outside `valid` do not count
    reduction  mean: over the rows that have a positive; sum: over the same rows, for a mean over more than this batch
    Rows without a positive contribute 0; where none has one the loss is 0, still with a gradient (of 0). In fp32 (fp64
    stays). Raises ValueError for an unknown reduction or a temperature that is not positive.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: allowed are {', '.join(REDUCTIONS)}")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be above 0 (compressor.contrastive_temperature)")
    positives = positives & valid
    counted_B = positives.any(1)
    logits = relevance.to(torch.promote_types(relevance.dtype, torch.float32)) / temperature
    # Rows that do not count get a mask of everything: the logarithms stay finite, and cancel.
    everything = ~counted_B[:, None]
    top = logits.masked_fill(~(positives | everything), -torch.inf).logsumexp(1)
    bottom = logits.masked_fill(~(valid | everything), -torch.inf).logsumexp(1)
    loss = (bottom - top).masked_fill(~counted_B, 0).sum()
    return loss if reduction == "sum" else loss / counted_B.sum().clamp(min=1)
