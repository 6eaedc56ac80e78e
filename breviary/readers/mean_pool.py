"""Mean pooling: every `ratio` consecutive states become their mean (GMSA's group merging, arXiv 2505.12215, B1)."""

from __future__ import annotations

from torch import Tensor

from breviary.memory.merging import MergingCompressor, consecutive_groups


class MeanPool(MergingCompressor):
    """Groups of `ratio` consecutive tokens, the last one short, each merged into the plain mean of its tokens.

    Constructor arguments as in MergingCompressor. Independent of the question. Costs one pass over the states.
    """

    needs_question = False

    def group_tokens(
        self, states: Tensor, mask: Tensor, query: Tensor | None, ratio: int | Tensor, slots: int
    ) -> tuple[Tensor, Tensor | None]:
        """Consecutive groups, no weights."""
        return consecutive_groups(mask, ratio), None
