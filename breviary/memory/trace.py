"""TODO DOC"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor


def trace_row(trace: Mapping[str, Any], row: int, contexts: int) -> dict[str, Any]:
    """What the trace of a batch of so many contexts says of one of them, as lists.

    Groups and weights have a row for each segment of each context: all of this one's.
    """
    plain = {}
    for name, value in trace.items():
        if isinstance(value, Tensor):
            own = value.unflatten(0, (contexts, -1))[row] if name in ("groups", "weights") else value[row]
            value = own.tolist()
        plain[name] = value
    return plain


@dataclass(frozen=True)
class Part:
    """Neighbouring context tokens that were treated alike.

    kind       kept: each token is a slot | skimmed: a segment merged into a slot or a few | dropped: in no slot |
               group: merged into one slot, of `size` tokens in all | whole: nothing is known of single tokens
    tokens     how many neighbours
    runs       of a skimmed segment with several slots: how many neighbours go to each
    number     of the segment or group, from 1
    relevance  of the segment to the question; None where the reader has none
    weights    of each token in its group's slot; empty = equal ones
    """

    kind: str
    tokens: int
    number: int = 0
    size: int = 0
    relevance: float | None = None
    weights: tuple[float, ...] = ()
    runs: tuple[int, ...] = ()


# ------------------------------------------------------------------ from a trace to parts


def parts_of(tokens: int, trace: Mapping[str, Any], segment_size: int | None = None) -> tuple[Part, ...]:
    """What `Memory.trace` says of one context of `tokens` tokens, as plain lists, beginning with its first token.

    trace  relevance, kept: one value a segment of `segment_size` tokens; groups: rows of each token's slot in the
           row, -1 = none; weights: rows likewise, or None; kept alone: one value a token; other names are ignored
    """
    if not tokens:
        return ()
    rows = trace.get("groups")
    slots = None if rows is None else [(r, g) if g >= 0 else None for r, row in enumerate(rows) for g in row][:tokens]
    if "relevance" in trace:
        assert segment_size and slots, (segment_size, slots)
        return tuple(
            _segment(i, trace, slots[start : start + segment_size])
            for i, start in enumerate(range(0, tokens, segment_size))
        )
    if slots is not None:
        weights = [w for row in trace["weights"] for w in row][:tokens] if trace.get("weights") else None
        return _groups(slots, weights)
    if "kept" in trace:
        return tuple(
            Part("kept" if kept else "dropped", len(list(run))) for kept, run in groupby(trace["kept"][:tokens])
        )
    return (Part("whole", tokens),)


def _segment(number: int, trace: Mapping[str, Any], slots: list[tuple[int, int] | None]) -> Part:
    kind = "kept" if trace["kept"][number] else "dropped" if slots[0] is None else "skimmed"
    runs = tuple(len(list(run)) for _, run in groupby(slots)) if kind == "skimmed" and len(set(slots)) > 1 else ()
    return Part(kind, len(slots), number + 1, relevance=trace["relevance"][number], runs=runs)


def _groups(slots: list[tuple[int, int] | None], weights: list[float] | None) -> tuple[Part, ...]:
    sizes = Counter(slots)
    numbers = {slot: i + 1 for i, slot in enumerate(dict.fromkeys(slot for slot in slots if slot is not None))}
    parts, start = [], 0
    for slot, run in groupby(slots):
        end = start + len(list(run))
        if slot is None:
            parts.append(Part("dropped", end - start))
        else:
            own = tuple(weights[start:end]) if weights else ()
            parts.append(Part("group", end - start, numbers[slot], sizes[slot], weights=own))
        start = end
    return tuple(parts)
