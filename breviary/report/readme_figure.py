"""The figure of README.md: answer quality against memory size, and speed against context length.

It is drawn from committed results alone. The caller chooses readers, labels and styles; this module checks that the
results are comparable, draws them, and writes every drawn number as CSV.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from breviary.evaluation.results import read_results
from breviary.report.sweep import csv_text
from breviary.runtime.files import write_text

Row = dict[str, Any]

MIB = 2**20


class Mark(NamedTuple):
    """One reader of the left panel."""

    file: str  # name of its results, without .json
    color: str
    marker: str
    offset: tuple[int, int] = (8, 8)  # of the label, in points from the mark
    shift: float = 1.0  # factor on the drawn memory size, so that intervals at equal sizes do not overlap


class Curve(NamedTuple):
    """One reader of the right panel."""

    reader: str  # its name in the files of scripts/bench/end_to_end.py
    color: str
    marker: str


def quality_rows(folder: Path, marks: Mapping[str, Mark]) -> list[Row]:
    """F1 with its 95% interval and the memory size of each reader, from `folder`.

    Raises ValueError where a file is missing or two files hold results of different questions.
    """
    results = {label: read_results(folder / f"{mark.file}.json") for label, mark in marks.items()}
    questions = {(one["data_hash"], one["n"]) for one in results.values()}
    if len(questions) > 1:
        raise ValueError(f"{folder}: the readers were evaluated on different questions (hash, n): {sorted(questions)}")
    return [
        {
            "panel": "quality",
            "reader": label,
            "memory_bytes": one["memory_bytes"],
            "f1": one["metrics"]["f1"]["value"],
            "f1_low": one["metrics"]["f1"]["low"],
            "f1_high": one["metrics"]["f1"]["high"],
            "n": one["n"],
            "commit": one["commit"],
            "source": f"{marks[label].file}.json",
        }
        for label, one in results.items()
    ]


def speed_rows(files: Sequence[Path], curves: Mapping[str, Curve]) -> list[Row]:
    """Speedup of the first token over full context, for each reader and context length.

    files  written by scripts/bench/end_to_end.py; a speedup is the median over turns of full context's time over the
           reader's in the same turn
    Raises ValueError where the files differ in backbone or dtype, or hold no measurement of a reader.
    """
    rows, settings = [], set()
    labels = {curve.reader: label for label, curve in curves.items()}
    for file in files:
        measured = json.loads(file.read_bytes())
        settings.add((measured["backbone"], measured["dtype"]))
        rows += [
            {
                "panel": "speed",
                "reader": labels[row["reader"]],
                "context_tokens": row["tokens"],
                "speedup": row["speedup_1"],
                "first_token_s": row["ours_1_s"],
                "full_context_first_token_s": row["full_1_s"],
                "runs": row.get("runs", measured.get("runs")),
                "commit": measured["environment"]["commit"],
                "source": file.name,
            }
            for row in measured["rows"]
            if row["reader"] in labels
        ]
    names = ", ".join(map(str, files))
    if len(settings) > 1:
        raise ValueError(f"{names}: different backbones or dtypes: {sorted(settings)}")
    if missing := curves.keys() - {row["reader"] for row in rows}:
        raise ValueError(f"{names}: no measurement of {', '.join(sorted(missing))}")
    order = list(curves)
    return sorted(rows, key=lambda row: (order.index(row["reader"]), row["context_tokens"]))


def write_figure(
    quality: Sequence[Row], speed: Sequence[Row], marks: Mapping[str, Mark], curves: Mapping[str, Curve], path: Path
) -> None:
    """Writes both panels to `path` and the drawn rows to a CSV file beside it."""
    import matplotlib

    matplotlib.use("Agg")  # no display
    from matplotlib import pyplot

    settings = {"font.size": 11.5, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    with pyplot.rc_context(settings):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
        draw_quality(left, quality, marks)
        draw_speed(right, speed, curves)
        for axes in (left, right):
            axes.grid(axis="y", color="0.9", linewidth=0.8)
            axes.set_axisbelow(True)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, facecolor="white")
        pyplot.close(figure)
    rows = [*quality, *speed]
    columns = dict.fromkeys(key for row in rows for key in row)
    write_text(
        path.with_suffix(".csv"), csv_text([{column: row.get(column, "") for column in columns} for row in rows])
    )


def draw_quality(axes: Any, rows: Sequence[Row], marks: Mapping[str, Mark]) -> None:
    """F1 against memory size (log scale), one mark a reader; a reader without memory is a line with a band."""
    for row in rows:
        mark, low, high = marks[row["reader"]], row["f1_low"], row["f1_high"]
        text = {"text": row["reader"], "color": "0.15", "fontsize": 10.5, "va": "center"}
        if not row["memory_bytes"]:
            axes.axhspan(low, high, color=mark.color, alpha=0.1, linewidth=0)
            axes.axhline(row["f1"], color=mark.color, linestyle="--", linewidth=1.4)
            axes.annotate(xy=(0.99, row["f1"] - 0.013), xycoords=("axes fraction", "data"), ha="right", **text)
            continue
        size = row["memory_bytes"] / MIB * mark.shift
        bars = [[row["f1"] - low], [high - row["f1"]]]
        axes.errorbar(
            size, row["f1"], bars, color=mark.color, marker=mark.marker, markersize=8, capsize=3, elinewidth=1.3
        )
        side = "left" if mark.offset[0] >= 0 else "right"
        axes.annotate(xy=(size, row["f1"]), xytext=mark.offset, textcoords="offset points", ha=side, **text)
    sizes = [row["memory_bytes"] / MIB for row in rows if row["memory_bytes"]]
    axes.set(xscale="log", xlim=(min(sizes) / 2, max(sizes) * 2), ylim=(0, 0.48))
    axes.set_xticks(ticks := [1, 3, 10, 30, 100], [str(tick) for tick in ticks])
    axes.set(xlabel="memory of one context, MiB", ylabel="F1 of the answers, 95% interval")
    axes.set_title(f"HotpotQA after equal training, {rows[0]['n']} questions")


def draw_speed(axes: Any, rows: Sequence[Row], curves: Mapping[str, Curve]) -> None:
    """Speedup of the first token over full context against context tokens (log scales), one line a reader."""
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        lines[row["reader"]].append(row)
    for label, points in lines.items():
        tokens, speedups = ([point[key] for point in points] for key in ("context_tokens", "speedup"))
        style = {"color": curves[label].color, "marker": curves[label].marker}
        axes.plot(tokens, speedups, label=label, linewidth=2, markersize=7, **style)
        once = [(point["context_tokens"], point["speedup"]) for point in points if point["runs"] == 1]
        axes.plot(*zip(*once), linestyle="", markersize=7, markerfacecolor="white", **style)
    axes.axhline(1, color="black", linestyle="--", linewidth=1.4, label="full context")
    seconds = {row["context_tokens"]: row["full_context_first_token_s"] for row in rows}
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(
        sorted(seconds), [f"{n:,}\n{seconds[n]:{'.1f' if seconds[n] < 10 else '.0f'}} s" for n in sorted(seconds)]
    )
    axes.set_yticks(ticks := [0.5, 1, 2, 4, 8, 16], [f"{tick:g}×" for tick in ticks])
    axes.set(ylim=(0.5, 16), xlabel="context tokens, and full context's time to the first token")
    axes.set_ylabel("speedup over full context")
    axes.set_title("From question to first token, two CPU cores")
    axes.legend(frameon=False, loc="upper left")
    axes.text(0.99, 0.03, "hollow marks: one run", transform=axes.transAxes, ha="right", fontsize=10, color="0.35")
