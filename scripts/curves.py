"""Draws the training curves of runs: one figure and one CSV.

    python scripts/curves.py latest
    python scripts/curves.py outputs/comi_facts outputs/mean_pool_facts --output results/facts/curves.png
    python scripts/curves.py outputs/comi_facts --level "decoder alone=3.4"

The figure shows the answer loss (nats per token) against training examples, as a running mean over 20% of the logged
steps, and validation scores as points. The CSV beside the figure holds every logged number.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

from breviary.config.cli.run_names import FORMS, find_run
from breviary.config.errors import cli_errors
from breviary.report.curves import draw_curves, read_curve, write_curves
from breviary.runs.folders import load_config
from breviary.runtime.spelling import command, next_line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help=FORMS)
    parser.add_argument(
        "--output", default="outputs/curves.png", metavar="FILE", help="figure; the CSV is written beside it"
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
        runs = [find_run(word) for word in args.runs]
        curves = {name: read_curve(run) for name, run in named(runs).items()}
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_curves(output.with_suffix(".csv"), curves)
    draw_curves(output, curves, levels)
    print(f"{output} and {output.with_suffix('.csv')}")
    print(next_line(command("scripts/report.py", *runs)))


def named(runs: Sequence[Path]) -> dict[str, Path]:
    """{label: run}: the run's name; with its folder where several runs, such as those of a sweep, share the name."""
    names = [str(load_config(run).name) for run in runs]
    return {name if names.count(name) == 1 else f"{name}/{run.name}": run for name, run in zip(names, runs)}


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
