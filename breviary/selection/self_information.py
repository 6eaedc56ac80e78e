"""Selective Context (arXiv 2310.06201): words or sentences that a language model finds hard to predict."""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.selection.likelihood import LikelihoodRelevance
from breviary.selection.relevance import Candidates


class SelfInformation(LikelihoodRelevance):
    """Mean nats of a unit's tokens; each sentence is read by itself, behind a start token. Needs no question.

    The paper sums over a unit, the released code takes the mean. Its units are noun phrases (spaCy); here words or
    sentences (compressor.units). Units fill the budget exactly, where the code drops those below a percentile.
    Costs one pass of the model over the context.
    """

    needs_question = False

    def scores(self, candidates: Candidates) -> Tensor:
        """(B, U) float32."""
        nats = torch.zeros(candidates.ids.shape, device=candidates.ids.device)
        sentences = candidates.split("sentences")
        rows: list[list[int]] = []
        starts: list[tuple[int, int]] = []
        for b, (ids, numbers) in enumerate(zip(candidates.rows(), sentences)):
            units = numbers[: len(ids)].tolist()
            for column, unit in enumerate(units):
                if column == 0 or unit != units[column - 1]:
                    rows.append([self.start_id])
                    starts.append((b, column))
                rows[-1].append(ids[column])
        for (b, column), nll in zip(starts, self.nll_rows(rows)):
            nats[b, column : column + len(nll) - 1] = nll[1:]
        return candidates.unit_mean(nats)
