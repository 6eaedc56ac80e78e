"""Attention matching (arXiv 2602.16284): few keys with biases and new values that reproduce the attention's output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from breviary.scorers.base import Scorer
from breviary.scorers.views import LayerKeys

BOUND = 3.0  # of a bias, in nats
STEPS = 2  # of projected gradient


class AttentionMatching(Scorer):
    """Keeps the keys of largest root mean square attention, then fits their biases and values (HighestAttn).

    With reference queries q_i: the mass of the kept keys, sum_j u_j exp(q_i . k_j / sqrt(d)), matches that of all keys
    with u in [e^-3, e^3] and bias ln u; then values minimise the squared error of the attention's output.

    queries  reference queries: so many context tokens, evenly spaced, with all query heads of a group
    ridge    added to the normal equations, relative to their mean diagonal
    Cost: for each head n T d, and solving for k unknowns. An entry holds a float32 bias beside key and value. The
    prefix is left out of the match: it stays in the cache.
    """

    observes = "sample"
    biases = True

    def __init__(self, queries: int = 256, ridge: float = 1e-6):
        super().__init__()
        if queries < 1 or ridge <= 0:
            raise ValueError(f"scorer: queries={queries} must be at least 1, ridge={ridge} above 0, e.g. 1e-6")
        self.queries, self.ridge = queries, ridge

    def observed_index(self, lengths: Tensor) -> Tensor:
        """Evenly spaced tokens, the last one among them; all of a shorter context, then none."""
        place = torch.arange(1, self.queries + 1, device=lengths.device)
        number = lengths.clamp(max=self.queries)
        index = torch.div(place * lengths, number.clamp(min=1), rounding_mode="floor") - 1
        return index.masked_fill(place > number, -1)

    def score(self, view: LayerKeys) -> Tensor:
        """Root mean square over the reference queries of the attention within the context."""
        weights, valid = self._weights(view)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
        return ((weights**2).sum(2) / valid.sum(2).clamp(min=1)).sqrt()

    def fit(self, view: LayerKeys, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Values (B, J, T, d) and biases (B, J, T) of the kept entries."""
        weights, _ = self._weights(view)
        mass = weights.sum(-1, keepdim=True).double()
        values = view.values.double()
        output = weights.double() @ values / mass.clamp(min=1e-30)
        width = max(int(kept.sum(-1).max()), 1)
        index = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[..., :width]  # kept entries first, in order
        valid = kept.gather(-1, index)
        part = weights.double().gather(3, index[:, :, None].expand(-1, -1, weights.shape[2], -1)) * valid[:, :, None]
        factor = self._match_mass(part, mass[..., 0]).masked_fill(~valid, 1)
        share = part * factor[:, :, None]
        share = share / share.sum(-1, keepdim=True).clamp(min=1e-30)
        fitted = self._solve(share, output)
        full = index[..., None].expand(-1, -1, -1, values.shape[-1])
        new = values.scatter(2, full, torch.where(valid[..., None], fitted, values.gather(2, full)))
        bias = torch.zeros_like(kept, dtype=torch.float32).scatter(2, index, factor.log().float())
        return new.to(view.values.dtype), bias

    def _weights(self, view: LayerKeys) -> tuple[Tensor, Tensor]:
        """exp(q . k / sqrt(d) - largest), (B, J, G * N, T), of the reference queries, and their validity (..., 1)."""
        assert view.observed is not None
        B, J, T, d = view.keys.shape
        queries = view.observed.float().unflatten(2, (J, -1, d)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        index = self.observed_index(view.lengths)[:, : view.observed.shape[1]]
        valid = (index >= 0).repeat(1, queries.shape[2] // index.shape[1])[:, None, :, None]
        scores = queries @ view.keys.float().transpose(2, 3) / math.sqrt(d)
        scores = scores.masked_fill(~view.mask[:, None, None], -torch.inf)
        largest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        return (scores - largest).exp().masked_fill(~valid, 0), valid

    def _match_mass(self, part: Tensor, mass: Tensor) -> Tensor:
        """Factors u (B, J, K) in [e^-BOUND, e^BOUND] with part (B, J, N, K) @ u near mass (B, J, N)."""
        low, high = math.exp(-BOUND), math.exp(BOUND)
        factor = self._solve(part, mass[..., None]).clamp(low, high)
        gram, target = part.transpose(2, 3) @ part, part.transpose(2, 3) @ mass[..., None]
        step = 1 / torch.linalg.matrix_norm(gram, 2).clamp(min=1e-30)[..., None, None]
        for _ in range(STEPS):
            factor = (factor - step * (gram @ factor - target)).clamp(low, high)
        return factor[..., 0]

    def _solve(self, left: Tensor, right: Tensor) -> Tensor:
        """Least squares of left (B, J, N, K) @ x = right (B, J, N, F), with a ridge."""
        gram = left.transpose(2, 3) @ left
        diagonal = gram.diagonal(dim1=2, dim2=3)  # zero for entries that only other contexts of the batch have
        ridge = self.ridge * (diagonal.sum(-1) / (diagonal > 0).sum(-1).clamp(min=1)).clamp(min=1e-12)
        gram = gram + ridge[..., None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve(gram, left.transpose(2, 3) @ right)
