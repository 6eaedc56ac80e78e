"""LLMLingua (arXiv 2310.05736) and LongLLMLingua (2310.06839): documents, then tokens, that a language model finds
hard to predict. No model is tuned for it, and questions and answers are never compressed.

Differences from the released code: a token is kept for its own surprise, not for its successor's; each segment keeps
exactly its share, rounded so that the shares sum to the budget; the last document is cut at the budget of step 1;
short texts and last segments are compressed too. Shape letters: B contexts, T context tokens, U documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from breviary.contract import Tokens
from breviary.runtime.markup import tokenise
from breviary.selection.likelihood import CompressedPast, LikelihoodRelevance
from breviary.selection.relevance import Candidates, fill_budget
from breviary.selection.units import pad_lists

Piece = tuple[list[int], int]  # columns of a segment's tokens, in reading order, and how many of them are kept


class LLMLingua(LikelihoodRelevance):
    """Independent of the question: the hardest documents, then the hardest tokens of each segment.

    1. Documents (units) by perplexity, the highest first, until document_budget times the budget; document order.
    2. What remains is cut into segments. Each token's nats are measured behind its segment's earlier tokens and what
       was kept of the segments before; the hardest are kept. The first token has no past and is always kept.

    document_budget  k_c: budget of step 1, in budgets of step 2
    segment_size     tokens of a segment of step 2
    Costs about two passes of the model over the documents of step 1, one segment after another, and one over all.
    """

    needs_question = False
    keeps_order = True  # of documents; False: the best first

    def __init__(self, model: str | None = None, document_budget: float = 2.0, segment_size: int = 100):
        super().__init__(model)
        self.document_budget, self.segment_size = document_budget, segment_size

    def scores(self, candidates: Candidates) -> Tensor:
        """Mean nats of each document's tokens by itself, (B, U) float32."""
        contexts = [[[row[c] for c in unit] for unit in units] for row, units in _units(candidates)]
        nll = iter(self.nll_rows([unit for units in contexts for unit in units]))
        means = [[float(next(nll)[1:].sum()) / max(len(unit) - 1, 1) for unit in units] for units in contexts]
        return _padded(means, candidates)

    @torch.no_grad()
    def select(self, candidates: Candidates, slots: Tensor) -> Tensor:
        """As Relevance.select."""
        if not bool(candidates.mask.any()):
            return torch.full_like(candidates.numbers, -1)
        pieces = [
            self.pieces(documents, budget)
            for documents, budget in zip(self._documents(candidates, slots), slots.tolist())
        ]
        return self._keep_tokens(candidates, pieces)

    def _documents(self, candidates: Candidates, slots: Tensor) -> list[list[list[int]]]:
        """Step 1: columns of the documents that remain of each context, in reading order."""
        limits = torch.minimum((slots * self.document_budget).long(), candidates.mask.sum(1))
        if self.keeps_order and bool((limits >= candidates.mask.sum(1)).all()):
            return candidates.columns()
        scores = self.scores(candidates)
        kept = (fill_budget(scores, candidates.numbers, limits) >= 0).tolist()
        contexts = []
        for b, units in enumerate(candidates.columns()):
            ranked = list(range(len(units)))
            if not self.keeps_order:
                row = scores[b].tolist()
                ranked = sorted(ranked, key=lambda unit: (-row[unit], unit))
            documents = [[column for column in units[unit] if kept[b][column]] for unit in ranked]
            contexts.append([document for document in documents if document])
        return contexts

    def pieces(self, documents: list[list[int]], budget: int) -> list[Piece]:
        """Segments of all documents together, and the number of tokens that each keeps."""
        text = [column for document in documents for column in document]
        return share_budget([(text, budget / max(len(text), 1))], self.segment_size)

    def _keep_tokens(self, candidates: Candidates, pieces: list[list[Piece]]) -> Tensor:
        """Step 2: places (B, T) of the kept tokens."""
        places = torch.full_like(candidates.numbers, -1)
        device, B = places.device, len(places)
        count = torch.zeros(B, 1, dtype=torch.int64, device=device)
        none = torch.zeros(B, 0, dtype=torch.int64, device=device)
        kept = Tokens(none, none.bool())
        with self.reading() as stack:
            readers = [(CompressedPast(stack, B, device), past) for past in self.pasts(candidates)]
            # Segments depend on what was kept of earlier ones: one pass for each, with a row for each context.
            for step in range(max(map(len, pieces))):
                rows = [row[step] if step < len(row) else ([], 0) for row in pieces]
                columns = pad_lists([columns for columns, _ in rows], fill=-1).to(device)
                segment = Tokens(candidates.ids.gather(1, columns.clamp(min=0)), columns >= 0)
                quota = torch.tensor([[quota] for _, quota in rows], device=device)
                surprise = self.surprise(
                    [reader.nll(_joined(past, kept) if step == 0 else kept, segment) for reader, past in readers]
                )
                chosen = keep_top(surprise, segment.mask, quota)
                index, offset = chosen.nonzero(as_tuple=True), (chosen.cumsum(1) - 1 + count)
                places[index[0], columns[index]] = offset[index]
                count = count + chosen.sum(1, keepdim=True)
                kept = _left_packed(segment.ids, chosen)
        return places

    def pasts(self, candidates: Candidates) -> list[Tokens | None]:
        """Tokens that precede the compressed text, for each reading of it; None = none."""
        return [None]

    def surprise(self, nll: Sequence[Tensor]) -> Tensor:
        """Score of each token, (B, N), from its nats in each reading."""
        return nll[0]

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As Relevance.problems."""
        problems = super().problems(settings, backbone)
        if settings["document_budget"] < 1:
            problems.append(
                f"compressor.relevance.document_budget={settings['document_budget']}: must be at least 1, e.g. 2.0"
            )
        if settings["segment_size"] < 1:
            problems.append(
                f"compressor.relevance.segment_size={settings['segment_size']}: must be at least 1 token, e.g. 100"
            )
        return problems


class LongLLMLingua(LLMLingua):
    """Aware of the question: documents that make it likely come first and keep more of their tokens.

    1. Documents by the mean nats of [question ; statement] behind each of them, the lowest first, until document_budget
       times the budget. They stay in this order.
    2. The share of kept tokens falls linearly over the ranks, from the mean share + delta to the mean share - delta,
       clipped to 0..1. A token is kept for how much more likely the question makes it: the difference of its nats
       without and with the question before the compressed text.

    statement  follows the question in step 1
    delta      see step 2
    Not included: recovery of answer spans, which needs the original text while answering.
    """

    needs_question, keeps_order = True, False

    def __init__(
        self,
        model: str | None = None,
        document_budget: float = 2.0,
        segment_size: int = 200,
        delta: float = 0.3,
        statement: str = " We can get the answer to this question in the given documents.",
    ):
        super().__init__(model, document_budget, segment_size)
        self.delta, self.statement = delta, statement

    def scores(self, candidates: Candidates) -> Tensor:
        """Minus the mean nats of question and statement behind each document, (B, U) float32."""
        statement = tokenise(self.tokenizer, self.statement, plain=True)
        tails = [[*question, *statement] for question in candidates.question_rows()]
        contexts = [
            [[*(row[c] for c in unit), *tail] for unit in units]
            for (row, units), tail in zip(_units(candidates), tails)
        ]
        ends = [len(tail) for rows, tail in zip(contexts, tails) for _ in rows]
        nll = iter(self.nll_rows([row for rows in contexts for row in rows], ends))
        means = [
            [-float(next(nll)[len(row) - len(tail) :].sum()) / max(len(tail), 1) for row in rows]
            for rows, tail in zip(contexts, tails)
        ]
        return _padded(means, candidates)

    def pieces(self, documents: list[list[int]], budget: int) -> list[Piece]:
        """Segments of each document, with its own share."""
        shares = falling_shares([len(document) for document in documents], budget, self.delta)
        return share_budget(list(zip(documents, shares)), self.segment_size)

    def pasts(self, candidates: Candidates) -> list[Tokens | None]:
        """Nothing, and the question."""
        return [None, _left_packed(candidates.question.ids, candidates.question.mask)]

    def surprise(self, nll: Sequence[Tensor]) -> Tensor:
        """Nats without the question minus nats with it; infinite for a first token."""
        return (nll[0] - nll[1]).masked_fill(nll[0].isinf(), torch.inf)

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As Relevance.problems."""
        problems = super().problems(settings, backbone)
        if not 0 <= settings["delta"] <= 1:
            problems.append(f"compressor.relevance.delta={settings['delta']}: must be in 0..1, e.g. 0.3")
        return problems


# ------------------------------------------------------------------ pure functions


def keep_top(scores: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """The `count` (B, 1) largest scores of each row, (B, N) bool; ties go to the earlier token. mask (B, N)."""
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(1) < count) & mask


def share_budget(texts: Sequence[tuple[list[int], float]], segment_size: int) -> list[Piece]:
    """Segments of each text, and the tokens that each keeps: its share of its length.

    texts  (columns, share of them that is kept in 0..1). Rounded by the running total, so that the sum
           over all segments is the total rounded once
    """
    pieces, total, used = [], 0.0, 0
    for columns, share in texts:
        for start in range(0, len(columns), segment_size):
            segment = columns[start : start + segment_size]
            total += share * len(segment)
            kept = min(int(total + 0.5 + 1e-9), used + len(segment)) - used  # 1e-9: sums of shares fall just short
            pieces.append((segment, kept))
            used += kept
    return pieces


def falling_shares(lengths: Sequence[int], budget: int, delta: float) -> list[float]:
    """Share of each document's tokens, from first to last: tau + delta ... tau - delta, clipped to 0..1.

    tau is such that the shares keep `budget` of sum(lengths) tokens (found by bisection; where lengths are equal and
    nothing is clipped, it is their ratio).
    """
    last = max(len(lengths) - 1, 1)
    offsets = [delta * (1 - 2 * rank / last) if len(lengths) > 1 else 0.0 for rank in range(len(lengths))]

    def shares(tau: float) -> list[float]:
        return [min(max(tau + offset, 0.0), 1.0) for offset in offsets]

    low, high = -delta, 1 + delta
    for _ in range(60):
        middle = (low + high) / 2
        total = sum(share * length for share, length in zip(shares(middle), lengths))
        low, high = (middle, high) if total < budget else (low, middle)
    return shares(high)


def _units(candidates: Candidates) -> list[tuple[list[int], list[list[int]]]]:
    """(token ids, columns of each unit) of each context. Columns count from a context's first token."""
    return list(zip(candidates.rows(), candidates.columns()))


def _padded(rows: Sequence[Sequence[float]], candidates: Candidates) -> Tensor:
    scores = torch.zeros(len(rows), candidates.count)
    for b, row in enumerate(rows):
        scores[b, : len(row)] = torch.tensor(row)
    return scores.to(candidates.ids.device)


def _left_packed(ids: Tensor, mask: Tensor) -> Tokens:
    """The tokens of `mask`, right-padded to the longest row."""
    rows = [row[valid] for row, valid in zip(ids, mask)]
    packed = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = mask.sum(1, keepdim=True)
    return Tokens(packed, torch.arange(packed.shape[1], device=ids.device) < lengths)


def _joined(past: Tokens | None, kept: Tokens) -> Tokens:
    """The text before the first segment."""
    return kept if past is None else past
