"""Draws the training curves of runs: one figure and one CSV.

    python scripts/curves.py latest
    python scripts/curves.py outputs/comi_facts outputs/mean_pool_facts --output results/facts/curves.png
    python scripts/curves.py outputs/sweeps/ratios
    python scripts/curves.py outputs/comi_facts --level "decoder alone=3.4"

Of a sweep all runs are drawn, each with its own settings as the label; of another folder the newest finished run. The
figure shows the answer loss (nats per token) against training examples, as a running mean over 20% of the logged steps,
and validation scores as points. The CSV beside the figure holds every logged number.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

from breviary.config.cli.run_names import FORMS, OUTPUTS, find_run
from breviary.config.errors import cli_errors
from breviary.report.curves import draw_curves, read_curve, write_curves
from breviary.runs.folders import load_config
from breviary.runs.sweeps import sweep_labels
from breviary.runtime.spelling import command, next_line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help=FORMS)
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="figure; the CSV is written beside it; default: curves.png in the run or sweep, of several in outputs",
    )
    parser.add_argument(
        "--level", action="append", default=[], metavar="NAME=NATS", help="horizontal line to compare losses with"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    args = build_parser().parse_args(arguments)
    with cli_errors():
        levels = dict(parse_level(word) for word in args.level)
        labels: dict[Path, str] = {}
        for word in args.runs:
            labels |= sweep_labels(Path(word)) or {find_run(word): ""}
        curves = {name: read_curve(run) for name, run in named(labels).items()}
    place = next(iter(labels)) if len(labels) == 1 else args.runs[0] if len(args.runs) == 1 else OUTPUTS
    output = Path(args.output or Path(place) / "curves.png")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_curves(output.with_suffix(".csv"), curves)
    draw_curves(output, curves, levels)
    print(f"{output} and {output.with_suffix('.csv')}")
    print(next_line(command("scripts/report.py", *(args.runs if len(args.runs) == 1 else labels))))


def named(labels: Mapping[Path, str]) -> dict[str, Path]:
    """{label: run}: the settings of a sweep's run, else the run's name; with its folder where several share that.

    labels  {run: settings, or ""}
    """
    names = [label or str(load_config(run).name) for run, label in labels.items()]
    return {name if names.count(name) == 1 else f"{name}/{run.name}": run for name, run in zip(names, labels)}


def parse_level(word: str) -> tuple[str, float]:
    """(name, nats) of NAME=NATS. Raises ValueError for any other form."""
    name, _, value = word.rpartition("=")
    try:
        nats = float(value)
    except ValueError:
        nats = math.nan
    if not name or not math.isfinite(nats):
        raise ValueError(f"--level {word!r}: must be NAME=NATS with a number of nats per token, e.g. 'no context=3.4'")
    return name, nats


if __name__ == "__main__":
    main()
