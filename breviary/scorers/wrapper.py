"""A scorer that changes how another one's scores share out the budget."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from breviary.contract import Tokens
from breviary.scorers.base import LayerKeys, LayerQueries, Scorer


class ScorerWrapper(Scorer):
    """Passes everything to `scorer`; a subclass overrides `allocate`.

    Raises: ValueError for a scorer that fits values, which its own budget determines.
    """

    def __init__(self, scorer: Scorer):
        super().__init__()
        if type(scorer).fit is not Scorer.fit or isinstance(scorer, ScorerWrapper):
            raise ValueError(f"scorer.scorer={type(scorer).__name__}: must rank entries only, e.g. SnapKV")
        self.scorer = scorer
        self.question_aware, self.observes = scorer.question_aware, scorer.observes
        self.window = scorer.window

    def score(self, view: LayerKeys) -> Tensor:
        """As the wrapped scorer."""
        return self.scorer.score(view)

    def observe(self, layer: LayerQueries) -> Tensor:
        """As the wrapped scorer."""
        return self.scorer.observe(layer)

    def observed_index(self, lengths: Tensor) -> Tensor:
        """As the wrapped scorer."""
        return self.scorer.observed_index(lengths)

    def probes(self, ids: Tensor, mask: Tensor, tokenizer: Any) -> list[tuple[Tokens, Tensor]]:
        """As the wrapped scorer."""
        return self.scorer.probes(ids, mask, tokenizer)

    def probe_tokens(self, context_tokens: int) -> int:
        """As the wrapped scorer."""
        return self.scorer.probe_tokens(context_tokens)
