"""Keys of small norm (arXiv 2406.11430)."""

from __future__ import annotations

from torch import Tensor

from breviary.scorers.base import Scorer
from breviary.scorers.views import LayerKeys


class Knorm(Scorer):
    """The negative L2 norm of each key. Rotation does not change it.

    Cost: T d for each key head. Under normalised keys (Qwen3) or key biases (Qwen2) norms say little. The paper leaves
    its first layers whole in some runs; here every layer has the same budget.
    """

    def score(self, view: LayerKeys) -> Tensor:
        """-||k||."""
        return -view.keys.float().norm(dim=-1)
