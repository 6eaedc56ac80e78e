"""TOVA (arXiv 2401.06104): what the last token attends to, one choice for all heads of a layer."""

from __future__ import annotations

from torch import Tensor

from breviary.scorers.base import Scorer
from breviary.scorers.views import LayerKeys


class TOVA(Scorer):
    """The last token's attention, averaged over all heads of the layer; no token is protected.

    Cost: T d for each head. Applied once, at the end of the context or prompt; the paper drops one token per step.
    """

    question_aware = True
    observes = "tail"
    window = 1

    def score(self, view: LayerKeys) -> Tensor:
        """Equal for all heads."""
        received = view.attention()[:, :, :, 0].mean((1, 2))
        return received[:, None].expand(-1, view.keys.shape[1], -1)
