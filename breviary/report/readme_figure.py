"""The figure of README.md: time to the first token against context length, and answer quality against memory size.

It is drawn from committed results alone. The caller chooses readers, labels and styles; this module checks that the
results are comparable, draws them, and writes every drawn number as CSV.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from breviary.evaluation.results import read_results
from breviary.report.sweep import csv_text
from breviary.runs.environment import commit_time
from breviary.runtime.checkout import ROOT
from breviary.runtime.files import write_text

Row = dict[str, Any]

MIB = 2**20

TICKS_S = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)  # seconds

LINE = 0.06  # distance between names beside the axes, a part of their height


class Mark(NamedTuple):
    """One reader of the panel of answer quality."""

    file: str  # name of its results, without .json
    color: str
    marker: str
    offset: tuple[int, int] = (8, 8)  # of the label, in points from the mark
    shift: float = 1.0  # factor on the drawn memory size, so that intervals at equal sizes do not overlap


class Curve(NamedTuple):
    """One reader of the panel of speed."""

    reader: str  # its name in the files of scripts/bench/end_to_end.py
    color: str
    marker: str
    ratio: int | None = 8  # as measured; None = the reader has none


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


def speed_rows(folder: Path, curves: Mapping[str, Curve], backbone: str) -> list[Row]:
    """Time to the first token of each reader and context length, on one machine with one dtype.

    folder  holds end_to_end*.json of scripts/bench/end_to_end.py. Drawn is the setting (dtype, machine) that was
            measured last, by commit, among those with every reader; within it the newest measurement of each length
    A speedup is the median over turns of full context's time over the reader's in the same turn.
    Raises ValueError where no setting holds every reader, or the history lacks a commit.
    """
    settings: dict[tuple[str, str], dict[tuple[str, int], Row]] = {}
    for file, measured in newest_first(sorted(folder.glob("end_to_end*.json"))):
        if (measured["backbone"], measured["keys"]) != (backbone, []):
            continue
        rows = settings.setdefault((measured["dtype"], machine_name(measured["environment"]["hardware"])), {})
        for row in measured_rows(file, measured, curves):
            rows.setdefault((row["reader"], row["context_tokens"]), row)
    for rows in settings.values():
        if curves.keys() == {reader for reader, _ in rows}:
            order = list(curves)
            return sorted(rows.values(), key=lambda row: (order.index(row["reader"]), row["context_tokens"]))
    raise ValueError(f"{folder}: no dtype and machine with measurements of {backbone} for all of {', '.join(curves)}")


def measured_rows(file: Path, measured: Mapping[str, Any], curves: Mapping[str, Curve]) -> Iterator[Row]:
    """The rows of one file that belong to a curve."""
    labels = {(curve.reader, curve.ratio): label for label, curve in curves.items()}
    for row in measured["rows"]:
        if (row["reader"], row["ratio"]) in labels:
            yield {
                "panel": "speed",
                "reader": labels[row["reader"], row["ratio"]],
                "context_tokens": row["tokens"],
                "speedup": row["speedup_1"],
                "first_token_s": row["ours_1_s"],
                "full_context_first_token_s": row["full_1_s"],
                "runs": row.get("runs", measured.get("runs")),
                "dtype": measured["dtype"],
                "machine": machine_name(measured["environment"]["hardware"]),
                "commit": measured["environment"]["commit"],
                "source": file.name,
            }


def newest_first(files: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """(file, content) by the time of the commit that measured, the newest first.

    Raises ValueError where this checkout's history lacks the commit.
    """
    contents = [(file, json.loads(file.read_bytes())) for file in files]
    times = [commit_time(ROOT, content["environment"]["commit"]) for _, content in contents]
    if None in times:
        file = files[times.index(None)]
        raise ValueError(f"{file}: its commit is not in the history of this checkout; the figure needs a full clone")
    order = sorted(range(len(files)), key=lambda i: -(times[i] or 0))
    return [contents[i] for i in order]


def machine_name(hardware: Mapping[str, Any]) -> str:
    """The hardware as recorded, e.g. "2 threads, AMD EPYC", or the GPUs."""
    if hardware["gpus"]:
        return ", ".join(hardware["gpus"])
    cpu = re.sub(r"\((?:R|TM)\)|\bProcessor\b|\bCPU\b", "", hardware["cpu"])
    return f"{hardware['threads']} threads, {' '.join(cpu.split())}"


def write_figure(
    speed: Sequence[Row], quality: Sequence[Row], curves: Mapping[str, Curve], marks: Mapping[str, Mark], path: Path
) -> None:
    """Writes both panels to `path` and the drawn rows to a CSV file beside it."""
    import matplotlib

    matplotlib.use("Agg")  # no display
    from matplotlib import pyplot

    settings = {"font.size": 11.5, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    with pyplot.rc_context(settings):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12.5, 4.8), layout="constrained")
        draw_speed(left, speed, curves)
        draw_quality(right, quality, marks)
        for axes in (left, right):
            axes.grid(axis="y", color="0.9", linewidth=0.8)
            axes.set_axisbelow(True)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, facecolor="white")
        pyplot.close(figure)
    rows = [*speed, *quality]
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
    """Time to the first token against context tokens (log scales), one line a reader, named with its last speedup."""
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        lines[row["reader"]].append(row)
    full = {row["context_tokens"]: row["full_context_first_token_s"] for row in rows}
    lengths = sorted(full)
    axes.plot(lengths, [full[n] for n in lengths], color="black", linestyle="--", linewidth=1.6)
    ends = {"full context": full[lengths[-1]]}
    for label, points in lines.items():
        tokens, seconds = ([point[key] for point in points] for key in ("context_tokens", "first_token_s"))
        style = {"color": curves[label].color, "marker": curves[label].marker}
        axes.plot(tokens, seconds, linewidth=2, markersize=7, **style)
        once = [(point["context_tokens"], point["first_token_s"]) for point in points if point["runs"] == 1]
        axes.plot(*zip(*once), linestyle="", markersize=7, markerfacecolor="white", **style)
        last = points[-1]
        at = "" if last["context_tokens"] == lengths[-1] else f" at {last['context_tokens']:,}"
        ends[f"{label}, {last['speedup']:.1f}×{at}"] = last["first_token_s"]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xlim(lengths[0] * 0.9, lengths[-1] * 1.06)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    seconds = [*full.values(), *(row["first_token_s"] for row in rows)]
    axes.set_ylim(low := min(seconds) * 0.8, high := max(seconds) * 1.25)
    ticks = [tick for tick in TICKS_S if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g} s" for tick in ticks])
    name_lines(axes, ends)
    axes.set_xlabel(f"tokens of context and question ({rows[0]['dtype']}; {rows[0]['machine']})")
    axes.set_title("From question to first token; n× as fast as full context")
    if any(row["runs"] == 1 for row in rows):
        axes.text(0.02, 0.95, "hollow marks: one run", transform=axes.transAxes, fontsize=10, color="0.35")


def name_lines(axes: Any, ends: Mapping[str, float]) -> None:
    """Writes the name of each line to the right of the axes, beside its last value; names keep a distance of LINE."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    ordered = sorted(ends.items(), key=lambda item: item[1])
    heights = [(math.log(value) - low) / (high - low) for _, value in ordered]
    names = list(heights)
    for _ in range(100):  # neighbours that are too close move apart by halves; a few rounds suffice
        for i in range(1, len(names)):
            gap = max(LINE - (names[i] - names[i - 1]), 0) / 2
            names[i - 1], names[i] = names[i - 1] - gap, names[i] + gap
    connection = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0}
    for (name, _), height, end in zip(ordered, names, heights):
        text = {"va": "center", "fontsize": 10.5, "color": "0.15", "annotation_clip": False}
        places = {
            "xy": (1.0, end),
            "xycoords": "axes fraction",
            "xytext": (1.045, height),
            "textcoords": "axes fraction",
        }
        axes.annotate(name, arrowprops=connection, **places, **text)
