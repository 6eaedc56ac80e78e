"""Run folders of a sweep as one table and one figure: score against the compression reached.

Results that differ in nothing but seeds are one point: mean and standard deviation over the seeds.
Everything else that differs is kept apart and named.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from breviary.evaluation.results import find_results, read_results
from breviary.evaluation.table import METRICS, PHASES, RESTORED, TITLES, markdown_table, print_table, row
from breviary.runtime.files import write_json, write_text

# Keys of a configuration that tell runs apart without changing what is measured.
UNMEASURED = ("run", "variants", "compare", "baselines", "paths", "hydra", "resume", "name", "reader")

RUN_ID = re.compile(r"\d{8}T\d{6}_[0-9a-f]{6}")

LEVELS = ("full_context", "no_context")  # drawn as horizontal lines, with every reader that keeps no slot

AVERAGED = ("requested_ratio", "effective_ratio", "memory_slots", "memory_bytes", *PHASES)

MAX_NAMED_KEYS = 3


@dataclass
class Setting:
    """Results that differ in nothing but seeds, and what the report calls them."""

    reader: str
    keys: dict[str, Any]  # the configuration, flat, without seeds and UNMEASURED; and "n"
    results: list[dict[str, Any]] = field(default_factory=list)
    label: str = ""

    @property
    def is_level(self) -> bool:
        """Whether the figure shows it as a horizontal line: its compression is none, or has no meaning."""
        return self.reader.split(" ")[0] in LEVELS or self.results[0]["effective_ratio"] is None

    @property
    def budget(self) -> tuple[Any, ...]:
        """What was asked of the memory: a ratio, or a number of slots."""
        ratio = self.results[0]["requested_ratio"]
        return (ratio, self.keys.get("compressor.slots") if ratio is None else None)


def load_results(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Results with the key "identity": the flat configuration that the measured numbers depend on, seeds apart.

    An untouched baseline has no configuration of its own: its backbone and its data are its identity.
    """
    results = [read_results(file) | {"changed": file.stat().st_mtime} for file in files]
    datasets = {r["data_hash"]: r["config"].get("dataset") for r in results if r["config"]}
    for r in results:
        dataset = datasets.get(r["data_hash"], r["data_hash"][:8])
        config = r["config"] or {"backbone": r.get("backbone"), "dataset": dataset}
        r["named"] = config
        r["identity"] = {
            key: value
            for key, value in flatten(config).items()
            if key.split(".")[0] not in UNMEASURED and key.split(".")[-1] != "seed"
        } | {"n": r["n"]}
        r["seeds"] = tuple(value for key, value in flatten(r["config"] or {}).items() if key.split(".")[-1] == "seed")
    return results


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; lists as JSON; ids of runs inside a text are hidden, as no two are equal."""
    if isinstance(config, dict):
        flat: dict[str, Any] = {}
        for key, value in config.items():
            flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return flat
    if isinstance(config, (list, tuple)):
        config = json.dumps(config)
    return {prefix: RUN_ID.sub("RUN", config) if isinstance(config, str) else config}


# ------------------------------------------------------------------ grouping and naming


def group(results: list[dict[str, Any]], by: str | None = None) -> tuple[list[Setting], list[str]]:
    """Settings with their labels, and what the reader of the report must know about them.

    by  configuration key that gives each of its values a label of its own; None = only what must be told apart
    Of several results of one setting, seed and data the newest run counts. Raises ValueError where no
    result has the key `by`.
    """
    settings: dict[str, Setting] = {}
    for r in sorted(results, key=lambda r: (Path(r["run"]).name, r["changed"])):
        key = json.dumps([r["reader"], r["requested_ratio"], sorted(r["identity"].items())])
        settings.setdefault(key, Setting(r["reader"], r["identity"])).results.append(r)
    notes, older = [], 0
    for setting in settings.values():
        newest = {(r["seeds"], r["data_hash"]): r for r in setting.results}
        older += sum(r["metrics"] != newest[r["seeds"], r["data_hash"]]["metrics"] for r in setting.results)
        setting.results = list(newest.values())
    if older:
        notes.append(f"{older} older results of the same setting and seed were left out")
    hashes = {r["data_hash"] for r in results}
    if len(hashes) > 1:
        notes.append(f"the rows were measured on {len(hashes)} different sets of examples")
    name_settings(list(settings.values()), by)
    return sorted(settings.values(), key=_place), notes


def _place(setting: Setting) -> tuple[Any, ...]:
    ratio = setting.results[0]["effective_ratio"]
    return (not setting.is_level, setting.label, ratio or 0)


def name_settings(settings: list[Setting], by: str | None) -> None:
    """Give each setting its label: the reader, with the values of the keys that tell it from its namesakes."""
    if by and not any(_lookup(s, by) is not None for s in settings):
        known = sorted({key for s in settings for key in s.keys if s.results[0]["config"]})
        raise ValueError(f"--by {by}: no run has this configuration key; some that they have: {', '.join(known[:12])}")
    trained = {s.reader for s in settings if s.results[0]["config"]}
    families: dict[str, list[Setting]] = defaultdict(list)
    for s in settings:
        s.label = s.reader
        if s.reader in trained and not s.results[0]["config"]:
            s.label += " (untrained)"
        if by and (value := _lookup(s, by)) is not None:
            s.label = _name(value) if by == "compressor" else f"{s.label}, {by.split('.')[-1]}={_name(value)}"
        families[s.label].append(s)
    for family in families.values():
        keys = distinguishing_keys(family)[:MAX_NAMED_KEYS]
        for s in family:
            s.label += "".join(f", {key.split('.')[-1]}={_name(_lookup(s, key))}" for key in keys)


def distinguishing_keys(family: list[Setting]) -> list[str]:
    """Keys in which settings of one label and one budget differ; a group of keys is named by the group.

    `dataset` rather than its three files, `backbone` rather than its path; but single keys where the
    groups bear the same name.
    """
    rivals: dict[tuple[Any, ...], list[Setting]] = defaultdict(list)
    for s in family:
        rivals[s.budget].append(s)
    keys: dict[str, None] = {}
    for same in rivals.values():
        for key in dict.fromkeys(key for s in same for key in s.keys):
            if len({json.dumps(s.keys.get(key)) for s in same}) > 1:
                top = key.split(".")[0]
                names = {json.dumps(_name(_lookup(s, top))) for s in same}
                keys[top if len(names) > 1 else key] = None
    return list(keys)


def _lookup(setting: Setting, key: str) -> Any:
    if key == "n":
        return setting.keys["n"]
    value: Any = setting.results[0]["named"]
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _name(value: Any) -> str:
    """A scalar as it is written; a configuration group by its name, model, data folder or class."""
    if not isinstance(value, dict):
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
    if isinstance(value.get("test"), str):
        return Path(value["test"]).parent.name
    for key in ("name", "path"):
        if isinstance(value.get(key), str):
            return Path(value[key]).name
    return str(value.get("_target_", "")).rsplit(".", 1)[-1]


# ------------------------------------------------------------------ rows and points


def setting_row(setting: Setting) -> dict[str, Any]:
    """The setting as a row of `breviary.tables`, with seeds, runs and, over several seeds, NAME_std of each metric.

    Over several seeds a metric is the mean, NAME_std the sample standard deviation, and NAME_low and
    NAME_high are None: an interval over examples says nothing about seeds.
    """
    rows = [row(r) for r in setting.results]
    merged = rows[0] | {"reader": setting.label, "seeds": len(rows), "runs": sorted({r["run"] for r in rows})}
    for name in (*METRICS, *(name for name in RESTORED if name in merged)):
        values = [r.get(name) for r in rows]
        several = len(rows) > 1 and None not in values
        merged[f"{name}_std"] = statistics.stdev(values) if several else None
        if several:
            merged |= {name: statistics.fmean(values), f"{name}_low": None, f"{name}_high": None}
    for name in AVERAGED:
        values = [r[name] for r in rows]
        merged[name] = None if None in values else statistics.fmean(values)
    merged["truncated"] = max(r["truncated"] for r in rows)
    return merged


def figure_points(settings: list[Setting], metric: str) -> list[dict[str, Any]]:
    """What the figure shows, a dict a point: line, kind ("line" or "level"), effective_ratio, value, low, high, seeds.

    low and high: the 95% interval over examples of one seed, mean minus and plus one standard deviation
    over several. A level is a horizontal line: a reader in LEVELS, or one that keeps no slot.
    """
    points = []
    for setting in settings:
        flat = setting_row(setting)
        if flat.get(metric) is None:
            continue
        low, high, spread = flat[f"{metric}_low"], flat[f"{metric}_high"], flat[f"{metric}_std"]
        if spread is not None:
            low, high = flat[metric] - spread, flat[metric] + spread
        points.append(
            {
                "line": setting.label,
                "kind": "level" if setting.is_level else "line",
                "effective_ratio": flat["effective_ratio"],
                "value": flat[metric],
                "low": low,
                "high": high,
                "seeds": flat["seeds"],
            }
        )
    return points


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV; a list in a cell is joined by spaces."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: " ".join(map(str, v)) if isinstance(v, list) else v for key, v in r.items()} for r in rows)
    return out.getvalue()


# ------------------------------------------------------------------ the figure

# Okabe and Ito's palette, told apart with every common colour blindness; markers say it once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

LINE_STYLES = ("-", "--", ":")

LEVEL_STYLES = ("--", ":", "-.", (0, (8, 2)), (0, (1, 3)))


def draw(points: list[dict[str, Any]], metric: str, title: str, caption: str, path: Path) -> None:
    """Draw `figure_points` as a PNG: metric against effective ratio (log scale), one line a reader.

    Curves are set apart by up to 4% so that bars at one ratio can be read; figure.csv has the ratios
    themselves. The legend follows the order of the curves' ends from top to bottom.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: reading results needs no matplotlib
    from matplotlib.figure import Figure

    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for point in points:
        lines[point["line"]].append(point)
    figure = Figure(figsize=(7.2, 4.4), dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    handles = []
    curves = [name for name, of_line in lines.items() if of_line[0]["kind"] == "line"]
    levels = [name for name in lines if name not in curves]
    for i, name in enumerate(levels):
        level, style, grey = lines[name][0], LEVEL_STYLES[i % len(LEVEL_STYLES)], "0.25" if i == 0 else "0.45"
        if level["low"] is not None:
            axes.axhspan(level["low"], level["high"], color=grey, alpha=0.09, linewidth=0)
        handles.append((level["value"], axes.axhline(level["value"], color=grey, linestyle=style, label=name)))
    for i, name in enumerate(curves):
        of_line = sorted(lines[name], key=lambda point: point["effective_ratio"])
        shift = 2 ** (min(0.03, 0.12 / len(curves)) * (i - (len(curves) - 1) / 2))
        y = [point["value"] for point in of_line]
        bars = [
            [point["value"] - point["low"] if point["low"] is not None else 0 for point in of_line],
            [point["high"] - point["value"] if point["low"] is not None else 0 for point in of_line],
        ]
        handles.append(
            (
                y[-1],
                axes.errorbar(
                    [point["effective_ratio"] * shift for point in of_line],
                    y,
                    yerr=bars,
                    label=name,
                    color=COLOURS[i % 7],
                    marker=MARKERS[i % 7],
                    linestyle=LINE_STYLES[i // 7 % 3],
                    markersize=5.5,
                    linewidth=1.6,
                    capsize=2.5,
                    elinewidth=1.0,
                ),
            )
        )
    _dress(axes, [p["effective_ratio"] for name in curves for p in lines[name]], metric, title)
    figure.text(0.01, -0.01, caption, fontsize=7.5, color="0.35", va="top")
    ordered = [handle for _, handle in sorted(handles, key=lambda pair: -pair[0])]
    axes.legend(handles=ordered, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", facecolor="white")


def _dress(axes: Any, ratios: list[float], metric: str, title: str) -> None:
    """Axes, ticks at powers of two, title."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_title(title, loc="left", fontsize=11, pad=10)
    axes.set_ylabel(TITLES[metric] + (" (nats, lower is better)" if metric == "nll" else ""), fontsize=10)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.margins(y=0.08)
    axes.set_xlabel("effective ratio (context tokens per memory slot)", fontsize=10)
    if not ratios:
        axes.set_xticks([])
        return
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(ratios) / 1.5, max(ratios) * 1.5)
    axes.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(-4, 20)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))


# ------------------------------------------------------------------ the whole report


def caption_of(settings: list[Setting]) -> str:
    """How many examples there are and what the intervals of table and figure mean."""

    def span(numbers: list[int]) -> str:
        return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"

    seeds = [len(s.results) for s in settings]
    parts = [f"{span([s.keys['n'] for s in settings])} examples"]
    if min(seeds) == 1:
        parts.append("intervals of one seed: 95% bootstrap over examples")
    if max(seeds) > 1:
        parts.append(f"of {span([n for n in seeds if n > 1])} seeds: mean ± standard deviation")
    return "; ".join(parts) + "."


def title_of(settings: list[Setting]) -> str:
    """Data and backbone, where all settings share them."""
    datasets = {_name(_lookup(s, "dataset")) for s in settings if s.results[0]["config"]}
    backbones = {r["backbone"] for s in settings for r in s.results if r.get("backbone")}
    parts = [next(iter(names)) for names in (datasets, backbones) if len(names) == 1]
    return ", ".join(parts) or "Report"


def make_report(
    runs: Sequence[str], output: str | Path | None = None, metric: str = "f1", by: str | None = None
) -> Path:
    """Turn run folders into a table and a figure; prints the table and returns the folder written.

    runs    as `find_results` takes them
    output  folder; None = `report` in the folder that holds all the runs
    metric  what the figure shows, one of METRICS, or of RESTORED for texts that were written down again
    by      as `group` takes it
    Writes report.json and report.csv (all numbers), report.md, figure.png and figure.csv (its points).
    Raises ValueError on unknown names and folders without results.
    """
    if metric not in METRICS + RESTORED:
        raise ValueError(f"--metric {metric}: allowed are {', '.join(METRICS + RESTORED)}")
    files = find_results(runs)
    settings, remarks = group(load_results(files), by)
    points = figure_points(settings, metric)
    if not points:
        raise ValueError(f"--metric {metric}: none of the {len(files)} results has it")
    rows = [setting_row(s) for s in settings]
    title, caption = title_of(settings), "\n".join([caption_of(settings), *remarks])
    folder = Path(output) if output else _common_folder(files) / "report"

    write_json(folder / "report.json", {"title": title, "caption": caption, "metric": metric, "rows": rows})
    write_text(folder / "report.csv", csv_text(rows))
    write_text(folder / "figure.csv", csv_text(points))
    draw(points, metric, title, caption.splitlines()[0], folder / "figure.png")
    text = f"# {title}\n\n![{TITLES[metric]} against compression](figure.png)\n\n{markdown_table(rows)}\n"
    write_text(folder / "report.md", text + "\n".join(f"{line}  " for line in caption.splitlines()) + "\n")
    print_table(rows, title, caption)
    return folder


def _common_folder(files: list[Path]) -> Path:
    """The folder that holds all runs; of a single run, its own."""

    def run_folder(file: Path) -> Path:
        parts = [p for p in file.resolve().parents if RUN_ID.fullmatch(p.name)]
        return parts[0] if parts else file.resolve().parent

    return Path(os.path.commonpath([run_folder(file) for file in files]))
