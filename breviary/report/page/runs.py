"""What the page shows of the runs behind its rows: training curves, and reading maps that were made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from breviary.report.curves import METRICS_FILE, read_curve, running_mean
from breviary.report.page.charts import curve_chart, line_mark
from breviary.report.page.measured_rows import Group, Measured
from breviary.report.reading_map_cards import CARDS, read_cards
from breviary.report.reading_map_marks import Card
from breviary.report.reading_map_page import card_view, marks_of
from breviary.runs.folders import CONFIG
from breviary.runtime.spelling import command


def run_folders(groups: Sequence[Group]) -> dict[Path, Measured]:
    """{run folder: its first row} of the trained readers, in the order of the page."""
    found: dict[Path, Measured] = {}
    for group in groups:
        for one in group.rows:
            for result in one.setting.results:
                folder = next((p for p in Path(result["file"]).resolve().parents if (p / CONFIG).is_file()), None)
                if result["config"] and folder is not None:
                    found.setdefault(folder, one)
    return found


def run_names(runs: dict[Path, Measured]) -> dict[Path, str]:
    """The reader of each run, with the run's name where several runs share it."""
    labels = [one.label for one in runs.values()]
    return {run: one.label if labels.count(one.label) == 1 else f"{one.label}, {run.name}" for run, one in runs.items()}


def training_curves(runs: dict[Path, Measured]) -> dict[str, Any] | None:
    """{"charts", "legend"} of the runs that logged their training; None where none did."""
    names, losses, scores = run_names(runs), [], []
    for run in runs:
        if not (run / METRICS_FILE).is_file():
            continue
        rows = read_curve(run)
        steps = [row for row in rows if row["kind"] == "training"]
        if steps:
            values = running_mean([row["answer"] for row in steps])
            losses.append((names[run], [(row["examples"], value) for row, value in zip(steps, values)]))
            scored = [(row["examples"], row["eval_nll"]) for row in rows if "eval_nll" in row]
            scores.append((names[run], scored))
    if not losses:
        return None
    charts = [curve_chart("Answer loss in training (running mean)", "nats per token", losses)]
    if any(points for _, points in scores):
        charts.append(curve_chart("Validation", "NLL per token", scores))
    return {"charts": charts, "legend": [{**line_mark(i), "name": name} for i, (name, _) in enumerate(losses)]}


# ---- reading maps ----


def reading_maps(runs: dict[Path, Measured], examples: int) -> dict[str, Any]:
    """{"maps": [{"reader", "facts", "cards"}], "kinds", "has_gold", "has_cut", "missing": commands that make a map}."""
    names, maps, missing = run_names(runs), [], []
    shown: list[Card] = []
    for run in runs:
        if not (run / CARDS).is_file():
            missing.append(command("scripts/reading_map.py", run, f"n={examples}"))
            continue
        facts, cards = read_cards(run / CARDS)
        shown += cards[:examples]
        maps.append({"reader": names[run], "facts": facts, "cards": [card_view(card) for card in cards[:examples]]})
    return {"maps": maps, **marks_of(shown), "missing": missing}
