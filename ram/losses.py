"""RAM's contrastive loss: raises the similarity of the question with segments that hold the answer (spec 1.9)."""

from __future__ import annotations

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum")


def contrastive_loss(
    relevance: Tensor, positives: Tensor, valid: Tensor, temperature: float = 0.1, reduction: str = "mean"
) -> Tensor:
    """InfoNCE with several positives, whose probabilities are summed inside the logarithm: any positive suffices.

    Per row: -log( sum over positives exp(r / temperature) / sum over valid segments exp(r / temperature) ).

    relevance   (B, S)
    positives, valid  (B, S) bool; positives outside `valid` are ignored
    reduction   mean: over the rows that have a positive | sum: over the same rows, for a mean over more than this batch
    Rows without a positive contribute 0. Where no row has one, the loss is 0 with a gradient of 0. Computed in fp32
    (fp64 stays fp64). Raises ValueError for an unknown reduction or a temperature that is not positive.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: allowed are {', '.join(REDUCTIONS)}")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be above 0 (compressor.contrastive_temperature)")
    positives = positives & valid
    has_positive_B = positives.any(1)
    logits = relevance.to(torch.promote_types(relevance.dtype, torch.float32)) / temperature
    # Rows without a positive use all segments in both sums: the logarithms stay finite and cancel.
    unmasked_B1 = ~has_positive_B[:, None]
    numerator = logits.masked_fill(~(positives | unmasked_B1), -torch.inf).logsumexp(1)
    denominator = logits.masked_fill(~(valid | unmasked_B1), -torch.inf).logsumexp(1)
    loss = (denominator - numerator).masked_fill(~has_positive_B, 0).sum()
    return loss if reduction == "sum" else loss / has_positive_B.sum().clamp(min=1)
