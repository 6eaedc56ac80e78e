"""StreamingLLM (arXiv 2309.17453): the first tokens and the most recent ones."""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.scorers.base import PROTECTED, Scorer
from breviary.scorers.views import LayerKeys


class StreamingLLM(Scorer):
    """Keeps `sinks` first and then the last tokens; scores nothing else.

    sinks  attention sinks, counted from the prefix's first token: a prefix of P tokens leaves max(0, sinks - P) of them
           to the context
    Cost: none. Positions stay as they were; the paper's renumbering matters beyond the backbone's trained length only.
    """

    def __init__(self, sinks: int = 4):
        super().__init__()
        if sinks < 0:
            raise ValueError(f"scorer.sinks={sinks}: must be 0 or more tokens, e.g. 4")
        self.sinks = sinks

    def score(self, view: LayerKeys) -> Tensor:
        """The index of each token; sinks above all, the first of them first."""
        own = (self.sinks - view.prefix_mask.sum(1, keepdim=True)).clamp(min=0)
        index = view.index.float()
        scores = torch.where(view.index < own, PROTECTED * (1 - index * 1e-6), index)
        return scores[:, None].expand(-1, view.keys.shape[1], -1)
