"""Scores by length of the context and by position of the gold passage: heat maps of readers by bins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from breviary.evaluation.table import format_number
from breviary.report.page.measured_rows import Group, Measured, Pair, is_lower_better
from breviary.report.reading_map_marks import LEVELS

POSITIONS = 5  # bins of the gold passage's position

QUANTILES = 4  # bins of lengths that differ by less than FACTOR

FACTOR = 4

Bin = tuple[str, frozenset[str]]  # name, ids of its questions


def length_bins(group: Group) -> list[Bin]:
    """Bins of the contexts' tokens: powers of two where lengths differ by FACTOR and more, else quarters; else none."""
    lengths: dict[str, int] = {}
    for one in group.rows:
        for rows in one.predictions:
            for key, row in rows.items():
                lengths[key] = max(lengths.get(key, 0), row["context_tokens"])
    ordered = sorted(lengths.values())
    if not ordered or ordered[0] == ordered[-1]:
        return []
    if ordered[-1] >= FACTOR * max(ordered[0], 1):
        edges = sorted({2 ** math.ceil(math.log2(max(length, 1))) for length in ordered})
    else:
        edges = sorted({ordered[math.ceil(len(ordered) * k / QUANTILES) - 1] for k in range(1, QUANTILES + 1)})
    bins = []
    for low, high in zip([ordered[0] - 1, *edges], edges):
        ids = frozenset(key for key, length in lengths.items() if low < length <= high)
        if ids:
            inside = sorted(lengths[key] for key in ids)
            name = f"{inside[0]:,}" if inside[0] == inside[-1] else f"{inside[0]:,} to {inside[-1]:,}"
            bins.append((name, ids))
    return bins


def position_bins(group: Group) -> list[Bin]:
    """Bins of the share of the context before the gold passage; none where no prediction states it."""
    return sort_by_position(positions_of(rows.values() for one in group.rows for rows in one.predictions))


def positions_of(readers: Iterable[Iterable[Mapping[str, Any]]]) -> dict[str, float]:
    """{id: share of the context before the gold passage} of the predictions of several readers that state it."""
    return {row["id"]: row["gold_position"] for rows in readers for row in rows if row.get("gold_position") is not None}


def sort_by_position(positions: Mapping[str, float]) -> list[Bin]:
    """The questions in POSITIONS equal bins of their gold passage's position; empty bins are left out."""
    bins = []
    for k in range(POSITIONS):
        ids = frozenset(key for key, value in positions.items() if k == min(int(value * POSITIONS), POSITIONS - 1))
        bins.append((f"{100 * k // POSITIONS} to {100 * (k + 1) // POSITIONS}%", ids))
    return [one for one in bins if one[1]]


def heat_map(group: Group, bins: Sequence[Bin]) -> dict[str, Any] | None:
    """Readers by bins: {"bins": [{"name", "n"}], "rows": [{"reader", "number", "cells"}], "worst", "best"}.

    A cell is {"text", "value", "level"}: level 0..LEVELS-1 of the map's own range, higher is better. None without bins
    or predictions.
    """
    rows = [(one, one.pairs(group.metric)) for one in group.rows]
    values = [[_mean(pairs, ids) for _, ids in bins] for _, pairs in rows]
    measured = [value for line in values for value in line if value is not None]
    if not measured:
        return None
    low, high = min(measured), max(measured)
    return {
        "bins": [{"name": name, "n": len(ids)} for name, ids in bins],
        "rows": [
            _heat_row(one, line, low, high, is_lower_better(group.metric))
            for (one, _), line in zip(rows, values)
            if any(value is not None for value in line)
        ],
        "worst": format_number(high if is_lower_better(group.metric) else low),
        "best": format_number(low if is_lower_better(group.metric) else high),
    }


def _heat_row(
    one: Measured, line: Sequence[float | None], low: float, high: float, is_reversed: bool
) -> dict[str, Any]:
    cells = []
    for value in line:
        part = 0.5 if value is None or high == low else (value - low) / (high - low)
        level = round((1 - part if is_reversed else part) * (LEVELS - 1))
        cells.append({"text": format_number(value), "value": value, "level": None if value is None else level})
    return {"reader": one.label, "number": one.number, "cells": cells}


def _mean(pairs: Mapping[str, Pair], ids: frozenset[str]) -> float | None:
    own = [pair for key, pair in pairs.items() if key in ids]
    return sum(top for top, _ in own) / sum(low for _, low in own) if own else None


def joint_maps(group: Group, positions: Sequence[Bin], lengths: Sequence[Bin]) -> list[dict[str, Any]]:
    """Position by length of each reader: [{"reader", "lengths", "rows": [{"position", "cells"}]}]; a range each."""
    if not positions or not lengths:
        return []
    maps = []
    for one in group.rows:
        pairs = one.pairs(group.metric)
        grid = [[_mean(pairs, own & other) for _, other in lengths] for _, own in positions]
        known = [value for line in grid for value in line if value is not None]
        if not known:
            continue
        low, high = min(known), max(known)
        rows = []
        for (name, own), line in zip(positions, grid):
            cells = _heat_row(one, line, low, high, is_lower_better(group.metric))["cells"]
            counts = [len(own & other & pairs.keys()) for _, other in lengths]
            rows.append({"position": name, "cells": [c | {"n": n} for c, n in zip(cells, counts)]})
        maps.append({"reader": one.label, "lengths": [name for name, _ in lengths], "rows": rows})
    return maps


def breakdown_rows(group: Group, by: str, found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of breakdown.csv."""
    return [
        {
            "data": group.name,
            "metric": group.metric,
            "reader": row["reader"],
            "by": by,
            "bin": place["name"],
            "n": place["n"],
            "value": cell["value"],
        }
        for row in (found or {"rows": []})["rows"]
        for place, cell in zip(found["bins"] if found else [], row["cells"])
    ]
