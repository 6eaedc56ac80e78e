"""The marked evidence: the upper bound of every selection."""

from __future__ import annotations

from torch import Tensor

from breviary.selection.relevance import Candidates, Relevance


class Gold(Relevance):
    """Share of each unit's tokens that belong to a gold passage. Further budget is filled from the beginning.

    A row whose gold passages were all truncated keeps its beginning. Data that marks none is refused before weights are
    loaded, and here where a caller passes none.
    """

    needs_evidence = True

    def scores(self, candidates: Candidates) -> Tensor:
        """(B, U) float32. Raises: ValueError where the batch marks no evidence."""
        evidence, mask = candidates.question.evidence, candidates.mask
        if evidence is None and not bool(mask.any()):
            return candidates.unit_mean(mask.float())
        if evidence is None:
            raise ValueError(
                "relevance gold: this context has no marked gold passages; give data with documents and is_gold "
                "(docs/own_data.md), or another relevance, e.g. compressor=bm25"
            )
        missing = mask.shape[1] - evidence.shape[1]
        padded = evidence.new_zeros(mask.shape)
        width = min(evidence.shape[1], mask.shape[1])
        padded[:, :width] = evidence[:, :width]
        assert missing >= 0 or not bool(evidence[:, width:].any()), (mask.shape, evidence.shape)
        return candidates.unit_mean(padded.float())
