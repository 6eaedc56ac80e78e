"""Training curves of runs: one figure and one CSV.

    python scripts/curves.py RUN [RUN ...] [--output results/NAME/curves.png] [--level "decoder alone=3.4"]

The answer's loss (nats a token) against training examples seen, a running mean over the last 20% of the logged steps;
validation scores as points. The CSV beside the figure holds every logged number.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

import matplotlib

matplotlib.use("Agg")  # no display
from matplotlib import pyplot

from breviary.runs.folders import load_config


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; a wrong one ends with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--output", default="outputs/curves.png", metavar="FILE", help="figure; the CSV lies beside it")
    parser.add_argument(
        "--level", action="append", default=[], metavar="NAME=NATS", help="a line to compare losses with"
    )
    given = parser.parse_args(arguments)
    try:
        levels = dict(level_of(word) for word in given.level)
        curves = {label(run): read(run) for run in given.runs}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    output = Path(given.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_csv(output.with_suffix(".csv"), curves)
    draw(output, curves, levels)
    print(f"{output} and {output.with_suffix('.csv')}")


def level_of(word: str) -> tuple[str, float]:
    """(name, nats) of NAME=NATS; raises ValueError where it is none."""
    name, _, value = word.rpartition("=")
    try:
        nats = float(value)
    except ValueError:
        nats = math.nan
    if not name or not math.isfinite(nats):
        raise ValueError(f"--level {word!r}: must be NAME=NATS with a number of nats a token, e.g. 'decoder alone=3.4'")
    return name, nats


def label(run: str) -> str:
    """What the run calls itself."""
    return str(load_config(run).name)


def read(run: str) -> list[dict[str, Any]]:
    """The run's logged steps, each with `examples` seen and `answer`, the answer's loss alone.

    Raises ValueError where the folder has no metrics.
    """
    file = Path(run) / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"{run}: no metrics.jsonl; give a run folder that train.py printed")
    train = load_config(run).train
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row.setdefault("examples", row["step"] * train.batch_size * train.accumulation)  # runs of before: one process's
        if "loss" in row:
            row.setdefault("answer", row["loss"])  # logged by itself where the loss has further terms
    return rows


def write_csv(file: Path, curves: dict[str, list[dict[str, Any]]]) -> None:
    """Every logged number, a line for each step of each run."""
    columns = ["run", "step", "examples"]
    columns += sorted({key for rows in curves.values() for row in rows for key in row} - set(columns))
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for name, rows in curves.items():
            writer.writerows({"run": name, **row} for row in rows)


def draw(file: Path, curves: dict[str, list[dict[str, Any]]], levels: dict[str, float]) -> None:
    """Loss on the left, with `levels` as lines; validation on the right, where any run has some."""
    validated = any("eval_nll" in row for rows in curves.values() for row in rows)
    figure, axes = pyplot.subplots(
        1, 1 + validated, figsize=(5.5 * (1 + validated), 4), layout="constrained", squeeze=False
    )
    left, *right = axes[0]
    for name, rows in curves.items():
        steps = [row for row in rows if "answer" in row]
        window = max(len(steps) // 5, 1)
        losses = [row["answer"] for row in steps]
        means = [
            sum(losses[max(i - window + 1, 0) : i + 1]) / len(losses[max(i - window + 1, 0) : i + 1])
            for i in range(len(losses))
        ]
        left.plot([row["examples"] for row in steps], means, label=name)
        scored = [row for row in rows if "eval_nll" in row]
        for axis in right:
            axis.plot([row["examples"] for row in scored], [row["eval_nll"] for row in scored], marker="o", label=name)
    for name, nats in levels.items():
        left.axhline(nats, color="grey", ls="--", lw=1, label=name)
    left.set(xlabel="training examples", ylabel="answer loss, nats a token", title="training (running mean)")
    for axis in right:
        axis.set(xlabel="training examples", ylabel="answer NLL, nats a token", title="validation")
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    axes[0, 0 if levels else -1].legend(fontsize=8)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
