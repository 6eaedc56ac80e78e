"""The figures of the page as geometry: plain numbers that the template draws as SVG, in the colours of the style sheet.

Coordinates are those of a drawing WIDTH wide and HEIGHT high, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from breviary.evaluation.table import format_bytes, format_number, format_ratio, format_score
from breviary.report.page.measured_rows import Group, Measured
from breviary.report.page.ranking import milliseconds_text

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 24, 64  # margins, wide enough for the larger letters of a phone

COLOURS = 7  # .c0 to .c6 of the style sheet; markers differ as well, and each line has a number

# Markers around the origin: circle, square, triangle, diamond, triangle downwards, plus, cross.
MARKERS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M-4.5 -4.5h9v9h-9z",
    "M0 -5.5L5.5 4.5H-5.5z",
    "M0 -6.2L6.2 0L0 6.2L-6.2 0z",
    "M0 5.5L5.5 -4.5H-5.5z",
    "M-2 -6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "M-6 -3L-3 -6L0 -3L3 -6L6 -3L3 0L6 3L3 6L0 3L-3 6L-6 3L-3 0z",
)

GAP = 13  # between points that would hide each other

MAX_TICKS = 6

MAX_CURVE_POINTS = 200  # of a training curve, evenly chosen


@dataclass(frozen=True)
class Axis:
    """A horizontal axis on a logarithmic scale.

    name   in the heading of the figure;  label  under the axis
    value  of a row; None or 0 = the row is a horizontal line
    text   of a value, on ticks and in notes
    ticks  (low, high) -> values
    """

    name: str
    label: str
    value: Callable[[Measured], float | None]
    text: Callable[[float], str]
    ticks: Callable[[float, float], list[float]]


def _powers(base: float) -> Callable[[float, float], list[float]]:
    def ticks(low: float, high: float) -> list[float]:
        first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
        step = max(1, math.ceil((last - first + 1) / MAX_TICKS))
        return [base**k for k in range(first, last + 1, step)]

    return ticks


def _times(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; powers alone where those are too many."""
    digits = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [factor * 10.0**k for k in digits for factor in factors if low <= factor * 10.0**k <= high]
        if len(found) <= MAX_TICKS:
            break
    return found


AXES = (
    Axis(
        "ratio",
        "achieved ratio (context tokens per memory slot)",
        lambda one: None if one.setting.is_level else one.row["effective_ratio"],
        format_ratio,
        _powers(2),
    ),
    Axis("memory", "memory of a context", lambda one: one.row["memory_bytes"], format_bytes, _powers(4)),
    Axis("time to first token", "median time to first token", lambda one: one.milliseconds, milliseconds_text, _times),
)


def scatter(group: Group, axis: Axis) -> dict[str, Any] | None:
    """The ranking metric against `axis`, a line for each reader over its budgets; None where no row has a place.

    Points that would hide each other are moved apart sideways. Rows without a place are horizontal lines.
    """
    rows = [one for one in group.rows if one.row.get(group.metric) is not None]
    placed = [one for one in rows if axis.value(one)]
    if not placed:
        return None
    levels = [one for one in rows if axis.name != "time to first token" and not axis.value(one)]
    spans = [interval_of(one.row, group.metric) for one in [*placed, *levels]]
    to_y, y_ticks = _linear([v for span in spans for v in span], HEIGHT - BOTTOM, TOP)
    values = [float(axis.value(one) or 0) for one in placed]
    low, high = min(values) / 1.25, max(values) * 1.25
    to_x = _scale(math.log(low), math.log(high), LEFT, WIDTH - RIGHT)
    ticks = [(to_x(math.log(value)), axis.text(value)) for value in axis.ticks(low, high)]
    places = spread([to_x(math.log(value)) for value in values], GAP, LEFT + 8, WIDTH - RIGHT - 8)
    points = [
        _point(group, one, x, to_y, f"{axis.label} {axis.text(value)}") for one, x, value in zip(placed, places, values)
    ]
    return {
        "name": axis.name,
        "label": axis.label,
        "title": f"{group.title} against {axis.name}",
        "description": _description(group, placed, levels, axis),
        "x_ticks": [(round(x, 1), text) for x, text in ticks],
        "y_ticks": [(round(to_y(value), 1), format_number(value)) for value in y_ticks],
        "points": points,
        "paths": _paths(points),
        "levels": [
            {"y": round(to_y(one.row[group.metric]), 1), **_mark(group, one), "note": _note(group, one)}
            for one in levels
        ],
    }


def interval_of(row: dict[str, Any], metric: str) -> tuple[float, float, float]:
    """(low, value, high): the 95% interval, or the mean minus and plus one standard deviation over the seeds."""
    value, deviation = row[metric], row.get(f"{metric}_std")
    if deviation is not None:
        return value - deviation, value, value + deviation
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    return (value if low is None else low), value, (value if high is None else high)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart, in their order and within low..high, as near to `places` as least squares allows."""
    order = np.argsort(places, kind="stable")
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    steps = gap * np.arange(len(places))
    fitted = isotonic_regression(np.asarray(places)[order] - steps).x
    moved = np.empty(len(places))
    moved[order] = np.clip(fitted, low, high - steps[-1]) + steps
    return [round(float(x), 1) for x in moved]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (end - start) * (value - low) / (high - low or 1)


def _linear(values: Sequence[float], start: float, end: float) -> tuple[Callable[[float], float], list[float]]:
    """(value -> coordinate, ticks) of an axis over the values, with a margin."""
    from matplotlib.ticker import MaxNLocator  # imported here: slow, and only pages need it

    margin = 0.06 * (max(values) - min(values)) or 0.05
    low, high = min(values) - margin, max(values) + margin
    ticks = [float(tick) for tick in MaxNLocator(nbins=5).tick_values(low, high) if low <= tick <= high]
    return _scale(low, high, start, end), ticks


def _mark(group: Group, one: Measured) -> dict[str, Any]:
    """Number, colour and marker of the row's line."""
    line = group.lines.index(one.line)
    return line_mark(line)


def line_mark(line: int) -> dict[str, Any]:
    """{"number", "colour", "marker"} of a line; the first COLOURS lines differ in both colour and marker."""
    return {
        "number": line + 1,
        "colour": f"c{line % COLOURS}",
        "marker": MARKERS[(line + line // COLOURS) % len(MARKERS)],
    }


def _point(group: Group, one: Measured, x: float, to_y: Callable[[float], float], place: str) -> dict[str, Any]:
    low, value, high = (round(to_y(v), 1) for v in interval_of(one.row, group.metric))
    return {"x": x, "y": value, "low": low, "high": high, **_mark(group, one), "note": f"{_note(group, one)}, {place}"}


def _note(group: Group, one: Measured) -> str:
    return f"{one.label}: {group.title} {format_score(one.row, group.metric)}"


def _paths(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A path through the points of each line that has several."""
    lines: dict[int, list[dict[str, Any]]] = {}
    for point in points:
        lines.setdefault(point["number"], []).append(point)
    return [
        {"d": path_of([(p["x"], p["y"]) for p in sorted(line, key=lambda p: p["x"])]), "colour": line[0]["colour"]}
        for line in lines.values()
        if len(line) > 1
    ]


def path_of(points: Sequence[tuple[float, float]]) -> str:
    """An SVG path through points."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _description(group: Group, placed: Sequence[Measured], levels: Sequence[Measured], axis: Axis) -> str:
    """What the figure shows, in words for those who do not see it."""
    best = placed[0]
    value = axis.value(best)
    text = f"{len(placed)} points with 95% intervals. Best: {_note(group, best)}"
    text += f" at {axis.text(value)}." if value else "."
    if levels:
        text += f" Horizontal lines without a place on the axis: {', '.join(one.label for one in levels)}."
    return text + " The numbers are in the ranking table."


def legend(group: Group) -> list[dict[str, Any]]:
    """The lines of the group's figures: number, colour, marker and name."""
    return [{**line_mark(i), "name": name} for i, name in enumerate(group.lines)]


def curve_chart(title: str, label: str, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> dict[str, Any]:
    """Lines over training examples. curves: (name, [(examples, value)]); without points it has no line."""
    xs, ys = ([point[i] for _, points in curves for point in points] for i in range(2))
    to_x, x_ticks = _linear([0, *xs], LEFT, WIDTH - RIGHT)
    to_y, y_ticks = _linear(ys, HEIGHT - BOTTOM, TOP)
    lines = []
    for i, (name, points) in enumerate(curves):
        if not points:
            continue
        step = max(1, math.ceil(len(points) / MAX_CURVE_POINTS))
        shown = [*points[:-1:step], points[-1]]
        places = [(round(to_x(x), 1), round(to_y(y), 1)) for x, y in shown]
        note = f"{name}: {label} {format_number(points[-1][1])} after {points[-1][0]:,.0f} examples"
        x, y = places[-1]
        lines.append({"d": path_of(places), "x": x, "y": y, "low": y, "high": y, **line_mark(i), "note": note})
    return {
        "title": title,
        "label": "training examples",
        "description": "; ".join(line["note"] for line in lines),
        "x_ticks": [(round(to_x(value), 1), f"{value:,.0f}") for value in x_ticks if value >= 0],
        "y_ticks": [(round(to_y(value), 1), format_number(value)) for value in y_ticks],
        "points": lines,
        "paths": [{"d": line["d"], "colour": line["colour"]} for line in lines],
        "levels": [],
    }
