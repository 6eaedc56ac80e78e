"""`Memory.trace` of one context as plain values: which context tokens went into which slot.

The reading map and `QuestionMemory.token_spans` are built from it. Nothing is computed from a trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

CACHE_SPAN = 16  # tokens of a span of kind cache


@dataclass(frozen=True)
class TokenSpan:
    """Consecutive context tokens that were compressed in the same way.

    kind        kept: each token is a slot | skimmed: a segment merged into one or a few slots | dropped: in no slot |
                group: merged into one slot | cache: kept by some layers and heads |
                whole: the trace does not describe single tokens
    tokens      number of tokens
    number      of the segment, group or cache span, from 1
    size        of a group: all tokens of its slot, those outside this span included
    relevance   of the segment to the question; None where the reader computes none
    weights     of each token in its group's slot; empty = equal weights. Of a cache span: the share of layers and heads
                that keep each token
    slot_sizes  of a skimmed segment with several slots: number of tokens in each
    """

    kind: str
    tokens: int
    number: int = 0
    size: int = 0
    relevance: float | None = None
    weights: tuple[float, ...] = ()
    slot_sizes: tuple[int, ...] = ()


def trace_row(trace: Mapping[str, Any], row: int, contexts: int) -> dict[str, Any]:
    """The trace of context number `row` out of a batch of `contexts` contexts, with lists in place of tensors.

    `groups` and `weights` hold a row for each segment of each context; the result holds all segments of the context.
    """
    plain = {}
    for name, value in trace.items():
        if isinstance(value, Tensor):
            own = value.unflatten(0, (contexts, -1))[row] if name in ("groups", "weights") else value[row]
            value = own.tolist()
        plain[name] = value
    return plain


def spans_from_trace(tokens: int, trace: Mapping[str, Any], segment_size: int | None = None) -> tuple[TokenSpan, ...]:
    """The first `tokens` tokens of a context as spans, in order, from the result of `trace_row`.

    trace  relevance, kept: one value for each segment of `segment_size` tokens
           groups: rows of the slot of each token within its row, -1 = none; weights: rows likewise, or None
           kept without relevance: one value for each token
           kept_share: the share of layers and heads that keep each token; with relevance 0 or 1, of single tokens
           other names are ignored
    """
    if not tokens:
        return ()
    rows = trace.get("groups")
    slots = None if rows is None else [(r, g) if g >= 0 else None for r, row in enumerate(rows) for g in row][:tokens]
    if "relevance" in trace and "kept_share" in trace:
        assert segment_size, segment_size
        return _cut_segments(trace["relevance"], trace["kept_share"][:tokens], segment_size)
    if "relevance" in trace:
        assert segment_size and slots, (segment_size, slots)
        return tuple(
            _segment_span(i, trace, slots[start : start + segment_size])
            for i, start in enumerate(range(0, tokens, segment_size))
        )
    if slots is not None:
        weights = [w for row in trace["weights"] for w in row][:tokens] if trace.get("weights") else None
        return _group_spans(slots, weights)
    if "kept_share" in trace:
        shares = trace["kept_share"][:tokens]
        starts = range(0, tokens, CACHE_SPAN)
        return tuple(
            TokenSpan("cache", len(own), i + 1, weights=tuple(own))
            for i, own in enumerate(shares[start : start + CACHE_SPAN] for start in starts)
        )
    if "kept" in trace:
        return tuple(
            TokenSpan("kept" if kept else "dropped", len(list(run))) for kept, run in groupby(trace["kept"][:tokens])
        )
    return (TokenSpan("whole", tokens),)


def _segment_span(index: int, trace: Mapping[str, Any], slots: list[tuple[int, int] | None]) -> TokenSpan:
    kind = "kept" if trace["kept"][index] else "dropped" if slots[0] is None else "skimmed"
    sizes = tuple(len(list(run)) for _, run in groupby(slots)) if kind == "skimmed" and len(set(slots)) > 1 else ()
    return TokenSpan(kind, len(slots), index + 1, relevance=trace["relevance"][index], slot_sizes=sizes)


def _cut_segments(relevance: list[float], shares: list[float], size: int) -> tuple[TokenSpan, ...]:
    """Segments of which single tokens are kept or dropped: a span for each run of either."""
    return tuple(
        TokenSpan("kept" if kept else "dropped", len(list(run)), start // size + 1, relevance=relevance[start // size])
        for start in range(0, len(shares), size)
        for kept, run in groupby(shares[start : start + size])
    )


def _group_spans(slots: list[tuple[int, int] | None], weights: list[float] | None) -> tuple[TokenSpan, ...]:
    sizes = Counter(slots)
    numbers = {slot: i + 1 for i, slot in enumerate(dict.fromkeys(slot for slot in slots if slot is not None))}
    spans, start = [], 0
    for slot, run in groupby(slots):
        end = start + len(list(run))
        if slot is None:
            spans.append(TokenSpan("dropped", end - start))
        else:
            own = tuple(weights[start:end]) if weights else ()
            spans.append(TokenSpan("group", end - start, numbers[slot], sizes[slot], weights=own))
        start = end
    return tuple(spans)
