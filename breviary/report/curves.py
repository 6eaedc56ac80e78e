"""Training curves of runs: the logged steps as CSV and as one figure."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from breviary.evaluation.facts import with_training
from breviary.runs.folders import load_config

METRICS_FILE = "metrics.jsonl"

# Keys of a validation row beside its scores, eval_*.
VALIDATION_KEYS = ("step", "examples", "kind", "seconds", "peak_memory_bytes")

SMOOTHING = 0.2  # share of the logged steps in the running mean


def read_curve(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, each with `kind` (training or validation) and `examples` (seen so far).

    Training rows also have `answer` (the answer loss alone). Runs of earlier versions repeated training values in
    validation rows, which are left out here, and logged the parts of the last step only.
    Raises ValueError where the folder has no metrics.
    """
    file = Path(run) / METRICS_FILE
    if not file.is_file():
        raise ValueError(f"{run}: no {METRICS_FILE}; give a run folder that train.py printed")
    train = load_config(run).train
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        # Runs of early versions logged no `examples`; they had one process.
        row.setdefault("examples", row["step"] * train.batch_size * train.accumulation)
        row["kind"] = "training" if "loss" in row else "validation"
        if row["kind"] == "training":
            row.setdefault("answer", row["loss"])  # logged separately only where the loss has further terms
    return [row if row["kind"] == "training" else _scores_only(row) for row in rows]


def _scores_only(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in VALIDATION_KEYS or key.startswith("eval_")}


def write_curves(file: Path, curves: dict[str, list[dict[str, Any]]]) -> None:
    """Writes every logged number of `curves` ({run name: steps}) as CSV, one line per run, kind and step."""
    columns = ["run", "kind", "step", "examples"]
    columns += sorted({key for rows in curves.values() for row in rows for key in row} - set(columns))
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for name, rows in curves.items():
            writer.writerows({"run": name, **row} for row in rows)


def draw_curves(file: Path, curves: dict[str, list[dict[str, Any]]], levels: dict[str, float]) -> None:
    """Draws the answer loss against training examples, and beside it the validation NLL where a run has any.

    curves  {run name: steps of `read_curve`}
    levels  {name: nats per token}: horizontal lines in the panel of the loss
    The loss is a running mean over a SMOOTHING share of the run's logged steps.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    validated = any("eval_nll" in row for rows in curves.values() for row in rows)
    figure, axes = pyplot.subplots(
        1, 1 + validated, figsize=(5.5 * (1 + validated), 4), layout="constrained", squeeze=False
    )
    left, *right = axes[0]
    for name, rows in curves.items():
        steps = [row for row in rows if row["kind"] == "training"]
        label = with_training(name, f"{rows[-1]['step']:,} steps, {rows[-1]['examples']:,} examples" if rows else None)
        left.plot([row["examples"] for row in steps], running_mean([row["answer"] for row in steps]), label=label)
        scored = [row for row in rows if row["kind"] == "validation" and "eval_nll" in row]
        for axis in right:
            axis.plot([row["examples"] for row in scored], [row["eval_nll"] for row in scored], marker="o", label=label)
    for name, nats in levels.items():
        left.axhline(nats, color="grey", ls="--", lw=1, label=name)
    left.set(xlabel="training examples", ylabel="answer loss (nats/token)", title="training (running mean)")
    for axis in right:
        axis.set(xlabel="training examples", ylabel="answer NLL (nats/token)", title="validation")
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    # Below the panels: within one it would hide points.
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=1 + validated, fontsize=8)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def running_mean(values: list[float]) -> list[float]:
    """Mean of each value and those before it, over a window of a SMOOTHING share of all values."""
    window = max(int(len(values) * SMOOTHING), 1)
    return [
        sum(recent) / len(recent) for recent in (values[max(i - window + 1, 0) : i + 1] for i in range(len(values)))
    ]
