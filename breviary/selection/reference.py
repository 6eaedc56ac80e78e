"""Selections as slow, readable code: one context, one token at a time. Tests compare the fast paths with this file.

`nll(past, text)` is the model: nats of each token of `text` given `past` and the text's earlier tokens, in one pass
over [past ; text] without a cache; infinite for a first token without any past.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Nll = Callable[[list[int], list[int]], list[float]]


def fill_budget(scores: Sequence[float], units: Sequence[int], slots: int) -> list[int]:
    """Columns that are kept, in document order. units: unit of each token."""
    kept: list[int] = []
    for unit in sorted(range(len(scores)), key=lambda u: (-scores[u], u)):
        columns = [column for column, own in enumerate(units) if own == unit]
        kept += columns[: max(slots - len(kept), 0)]
    return sorted(kept)


def bm25(units: Sequence[Sequence[str]], question: Sequence[str], k1: float, b: float) -> list[float]:
    """Score of each unit, given as words."""
    N, mean = len(units), sum(map(len, units)) / len(units)
    scores = []
    for unit in units:
        score = 0.0
        for word in question:
            n = sum(word in other for other in units)
            f = unit.count(word)
            idf = math.log(1 + (N - n + 0.5) / (n + 0.5))
            if f:
                score += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(unit) / mean))
        scores.append(score)
    return scores


def keep_tokens(
    ids: Sequence[int], pieces: Sequence[tuple[list[int], int]], nll: Nll, question: list[int] | None = None
) -> list[int]:
    """Columns that are kept, in reading order.

    pieces    (columns of a segment, how many are kept)
    question  LongLLMLingua: surprise is the difference of nats without and with it before the compressed text
    """
    kept: list[int] = []
    for columns, count in pieces:
        past, text = [ids[column] for column in kept], [ids[column] for column in columns]
        surprise = nll(past, text)
        if question is not None:
            conditional = nll([*question, *past], text)
            surprise = [math.inf if math.isinf(a) else a - b for a, b in zip(surprise, conditional)]
        best = sorted(range(len(text)), key=lambda i: (-surprise[i], i))[:count]
        kept += [columns[i] for i in sorted(best)]
    return kept
