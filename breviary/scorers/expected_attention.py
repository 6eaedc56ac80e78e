"""Expected attention (arXiv 2510.00636): what future questions would attend to, from the distribution of queries."""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.backbones.stack import rotate
from breviary.scorers.base import Scorer, protect
from breviary.scorers.views import LayerKeys, LayerQueries


class ExpectedAttention(Scorer):
    """Attention under a normal distribution of queries, times the norm of the value.

    With mean m and covariance S of a head's queries before rotation, turned by the mean rotation of the next `future`
    positions: z_j = m . k_j / sqrt(d) + k_j S k_j / (2 d), a = softmax(z), score (a + epsilon) ||v_j||, a averaged over
    the query heads of a group.

    sinks    first tokens, left out of the statistics and always kept; those of the prefix count
    future   positions after the context over which the rotation is averaged
    epsilon  added to the attention: how much the value's norm counts
    Cost: T d^2 for each head. Rotating the covariance by a mean rotation is the paper's approximation.
    """

    observes = "moments"

    def __init__(self, sinks: int = 4, future: int = 512, epsilon: float = 0.02):
        super().__init__()
        if sinks < 0 or future < 1 or epsilon < 0:
            raise ValueError(
                f"scorer: sinks={sinks} must be 0 or more, future={future} at least 1, epsilon={epsilon} 0 or more"
            )
        self.sinks, self.future, self.epsilon = sinks, future, epsilon

    def observe(self, layer: LayerQueries) -> Tensor:
        """Mean and covariance of each query head, after the mean rotation: (B, J * G, d + d * d)."""
        queries = layer.queries().flatten(1, 2).float()
        index = torch.arange(queries.shape[2], device=queries.device)
        sinks = self.sinks - layer.prefix_mask.sum(1, keepdim=True)  # left of them in the context
        counted = (layer.mask & (index >= sinks))[:, None, :, None]
        number = counted.sum(2, keepdim=True).clamp(min=1)
        mean = queries.masked_fill(~counted, 0).sum(2, keepdim=True) / number
        centred = (queries - mean).masked_fill(~counted, 0)
        covariance = centred.transpose(2, 3) @ centred / number
        start = layer.positions.amax(1, keepdim=True) + 1
        angles = layer.rotary(start + torch.arange(self.future, device=start.device))
        cos, sin = (x.float().mean(1, keepdim=True) for x in angles)
        half_turned = rotate(covariance, cos, sin).transpose(2, 3)
        turned = rotate(half_turned, cos, sin)
        return torch.cat([rotate(mean, cos, sin).flatten(2), turned.flatten(2)], -1)

    def score(self, view: LayerKeys) -> Tensor:
        """(a + epsilon) ||v||; sinks above all."""
        assert view.observed is not None
        B, J, T, d = view.keys.shape
        moments = view.observed.float().unflatten(1, (J, -1))
        mean, covariance = moments[..., :d], moments[..., d:].unflatten(-1, (d, d))
        keys = view.keys.float()[:, :, None]
        spread = ((keys @ covariance) * keys).sum(-1) / (2 * d)
        scores = (keys @ mean[..., None])[..., 0] / d**0.5 + spread
        is_sink = view.index < (self.sinks - view.prefix_mask.sum(1, keepdim=True))
        candidates = view.mask & ~is_sink
        weights = scores.masked_fill(~candidates[:, None, None], torch.finfo(torch.float32).min).softmax(-1).mean(2)
        return protect((weights + self.epsilon) * view.values.float().norm(dim=-1), is_sink, -view.index)
