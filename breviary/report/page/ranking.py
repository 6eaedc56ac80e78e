"""The ranking tables of the page: one for each group of questions, and readers by data sets where there are several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from breviary.evaluation.facts import FACTS, mixed_facts
from breviary.evaluation.table import (
    MISSING,
    format_bytes,
    format_number,
    format_ratio,
    format_significant,
    metric_title,
)
from breviary.report.page.measured_rows import Group, Measured, is_lower_better

TEXTS = tuple(title for key, title in FACTS.items() if key != "n")  # titles of columns that hold texts

Column = tuple[str, Callable[[Measured], dict[str, Any]]]  # title, row -> cell


def cell(text: str, value: float | str | None, spread: str = "") -> dict[str, Any]:
    """A cell: its text, the value that sorts it, and the interval behind the text. None is sorted last."""
    return {"text": text, "sort": value, "spread": spread}


def ranking(group: Group) -> dict[str, Any]:
    """{"columns": [{"title", "is_number", "first"}], "rows": [{"number", "reader", "cells"}]}."""
    columns = _columns(group)
    return {
        "columns": [
            {
                "title": title,
                "is_number": title == "n" or title not in FACTS.values(),
                "first": _first_order(group, title),
            }
            for title, _ in columns
        ],
        "ascending": is_lower_better(group.metric),
        "rows": [
            {
                "rank": 1 + sum(_is_better(group, other, one) for other in group.rows),
                "number": one.number,
                "reader": one.label,
                "cells": [make(one) for _, make in columns],
            }
            for one in group.rows
        ],
    }


def _columns(group: Group) -> list[Column]:
    """The columns after the reader's column."""
    rows = group.rows
    columns = [_score_column(name) for name in group.metrics]
    columns += [
        ("ratio", lambda one: cell(format_ratio(one.row["effective_ratio"]), one.row["effective_ratio"])),
        ("memory", lambda one: cell(format_bytes(one.row["memory_bytes"]), one.row["memory_bytes"])),
        ("first token", lambda one: cell(milliseconds_text(one.milliseconds), one.milliseconds)),
        ("decode", lambda one: cell(milliseconds_text(one.row["decode_ms"]), one.row["decode_ms"])),
        ("n", lambda one: cell(format_significant(one.row["n"]), one.row["n"])),
    ]
    if any(one.row["seeds"] > 1 for one in rows):
        columns.append(("seeds", lambda one: cell(str(one.row["seeds"]), one.row["seeds"])))
    if any(one.row["truncated"] for one in rows):
        columns.append(("truncated", lambda one: cell(f"{one.row['truncated']}", one.row["truncated"])))
    return columns + [_fact_column(key) for key in mixed_facts([one.row for one in rows]) if key != "n"]


def _score_column(name: str) -> Column:
    return metric_title(name), lambda one: score_cell(one.row, name)


def _fact_column(key: str) -> Column:
    return FACTS[key], lambda one: cell(one.row[key] or MISSING, one.row[key])


def _first_order(group: Group, title: str) -> str:
    """The order in which a column is sorted first: the best scores, the least costs."""
    scores = [metric_title(name) for name in group.metrics if not is_lower_better(name)]
    return "descending" if title in scores else "ascending"


def score_cell(row: dict[str, Any], name: str) -> dict[str, Any]:
    """A metric with its 95% interval, or its standard deviation over the seeds."""
    value, spread = row.get(name), ""
    if row.get(f"{name}_std") is not None:
        spread = f"± {format_number(row[f'{name}_std'], 3)}"
    elif row.get(f"{name}_low") is not None:
        spread = f"[{format_number(row[f'{name}_low'])}, {format_number(row[f'{name}_high'])}]"
    return cell(format_number(value, 3 if "±" in spread else 2), value, spread)


def milliseconds_text(value: float | None) -> str:
    """614 as "614 ms", 6143 as "6.14 s"."""
    if value is None:
        return MISSING
    return f"{format_significant(value)} ms" if value < 1000 else f"{format_significant(value / 1000)} s"


def _is_better(group: Group, one: Measured, other: Measured) -> bool:
    ours, theirs = one.row.get(group.metric), other.row.get(group.metric)
    if ours is None or theirs is None:
        return ours is not None
    return ours < theirs if is_lower_better(group.metric) else ours > theirs


def overview(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Readers by data sets, each cell the metric that ranks the data set; None for a single data set.

    The mean of a reader is over all data sets, where it has them all. There is one where a single metric ranks them, or
    shares of 1 do, as in RULER, whose tasks count matches of all references or of any.
    """
    if len(groups) < 2:
        return None
    readers: dict[str, dict[int, Measured]] = {}
    for group in groups:
        for one in group.rows:
            readers.setdefault(one.label, {})[group.number] = one
    scores = [one.row.get(group.metric) for group in groups for one in group.rows]
    are_shares = all(score is None or 0 <= score <= 1 for score in scores)
    is_mean = len({group.metric for group in groups}) == 1 or (
        are_shares and not any(is_lower_better(group.metric) for group in groups)
    )
    rows = []
    for name, own in readers.items():
        cells = [
            score_cell(own[group.number].row, group.metric) if group.number in own else cell(MISSING, None)
            for group in groups
        ]
        values = [one["sort"] for one in cells]
        mean = None if None in values else sum(values) / len(values)
        rows.append({"reader": name, "cells": [*([cell(format_number(mean), mean)] if is_mean else []), *cells]})
    columns = [f"{group.name}: {group.title}" for group in groups]
    return {"columns": [*([f"mean of {len(groups)}"] if is_mean else []), *columns], "rows": rows}
