"""SnapKV (arXiv 2404.14469): what the last tokens attend to."""

from __future__ import annotations

from torch import Tensor

from breviary.scorers.base import Scorer, check_kernel, check_window, pool, protect
from breviary.scorers.views import LayerKeys


class SnapKV(Scorer):
    """The attention of the last `window` tokens, summed, averaged over the query heads of a group, and pooled.

    window   observing tokens: the prompt's last ones where the question is known, else the context's, which are kept
    kernel   odd width of the pooling; pooling max (released LongBench runs) | avg (released class) | none
    Cost: W T d for each head. Deviations from the released code: the softmax runs in float32; groups of query heads
    share one choice, so that keys are never repeated in the cache; the window counts in the budget.
    """

    question_aware = True
    observes = "tail"

    def __init__(self, window: int = 32, kernel: int = 7, pooling: str = "max"):
        super().__init__()
        check_window(window)
        check_kernel(kernel, pooling)
        self.window, self.kernel, self.pooling = window, kernel, pooling

    def score(self, view: LayerKeys) -> Tensor:
        """Pooled attention outside the window; the window above all, its last tokens first."""
        received = view.attention().sum(3).mean(2)
        candidates = view.mask & ~view.is_window
        scores = pool(received, candidates, self.kernel, self.pooling)
        return protect(scores, view.is_window, view.index)
