"""The figure of a report: a metric against the achieved ratio, one line per reader."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from breviary.evaluation.table import metric_title

# The palette of Okabe and Ito, distinguishable with common colour vision deficiencies; markers differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

LINE_STYLES = ("-", "--", ":")

LEVEL_STYLES = ("--", ":", "-.", (0, (8, 2)), (0, (1, 3)))


def draw_figure(points: list[dict[str, Any]], metric: str, title: str, caption: str, path: Path) -> None:
    """Draws the points of `sweep.figure_points` as a PNG, with a logarithmic axis of ratios.

    The legend lists the readers in the order of their last points, from top to bottom.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here: a report without figure needs none
    from matplotlib.figure import Figure

    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for point in points:
        lines[point["line"]].append(point)
    curves = {name: line for name, line in lines.items() if line[0]["kind"] == "line"}
    levels = {name: line[0] for name, line in lines.items() if line[0]["kind"] == "level"}
    figure = Figure(figsize=(7.2, 4.4), dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    handles = [*_draw_levels(axes, levels), *_draw_curves(axes, curves)]
    _style_axes(axes, [point["effective_ratio"] for line in curves.values() for point in line], metric, title)
    figure.text(0.01, -0.01, caption, fontsize=7.5, color="0.35", va="top")
    ordered = [handle for _, handle in sorted(handles, key=lambda pair: -pair[0])]
    axes.legend(handles=ordered, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", facecolor="white")


def _draw_levels(axes: Any, levels: dict[str, dict[str, Any]]) -> list[tuple[float, Any]]:
    """Horizontal lines with their intervals as bands; returns (value, handle) of each."""
    handles = []
    for i, (name, level) in enumerate(levels.items()):
        style, grey = LEVEL_STYLES[i % len(LEVEL_STYLES)], "0.25" if i == 0 else "0.45"
        if level["low"] is not None:
            axes.axhspan(level["low"], level["high"], color=grey, alpha=0.09, linewidth=0)
        handles.append((level["value"], axes.axhline(level["value"], color=grey, linestyle=style, label=name)))
    return handles


def _draw_curves(axes: Any, curves: dict[str, list[dict[str, Any]]]) -> list[tuple[float, Any]]:
    """Curves with error bars; returns (last value, handle) of each.

    Curves are shifted against each other by up to 4% of the ratio, so that error bars at one ratio do not overlap.
    """
    handles = []
    for i, (name, line) in enumerate(curves.items()):
        line = sorted(line, key=lambda point: point["effective_ratio"])
        shift = 2 ** (min(0.03, 0.12 / len(curves)) * (i - (len(curves) - 1) / 2))
        values = [point["value"] for point in line]
        bars = [
            [point["value"] - point["low"] if point["low"] is not None else 0 for point in line],
            [point["high"] - point["value"] if point["low"] is not None else 0 for point in line],
        ]
        handle = axes.errorbar(
            [point["effective_ratio"] * shift for point in line],
            values,
            yerr=bars,
            label=name,
            color=COLOURS[i % 7],
            marker=MARKERS[i % 7],
            linestyle=LINE_STYLES[i // 7 % 3],
            markersize=5.5,
            linewidth=1.6,
            capsize=2.5,
            elinewidth=1.0,
        )
        handles.append((values[-1], handle))
    return handles


def _style_axes(axes: Any, ratios: list[float], metric: str, title: str) -> None:
    """Title, labels and grid; ticks of the ratio axis at powers of two."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_title(title, loc="left", fontsize=11, pad=10)
    axes.set_ylabel(metric_title(metric) + (" (nats, lower is better)" if metric == "nll" else ""), fontsize=10)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.margins(y=0.08)
    axes.set_xlabel("achieved ratio (context tokens per memory slot)", fontsize=10)
    if not ratios:
        axes.set_xticks([])
        return
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(ratios) / 1.5, max(ratios) * 1.5)
    axes.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(-4, 20)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
