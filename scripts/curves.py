"""Draws the training curves of runs: one figure and one CSV.

    python scripts/curves.py RUN [RUN ...] [--output results/NAME/curves.png] [--level "decoder alone=3.4"]

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

from breviary.config.errors import cli_errors
from breviary.report.curves import draw_curves, read_curve, write_curves
from breviary.runs.folders import load_config


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--output", default="outputs/curves.png", metavar="FILE", help="figure; the CSV is written beside it"
    )
    parser.add_argument(
        "--level", action="append", default=[], metavar="NAME=NATS", help="horizontal line to compare losses with"
    )
    args = parser.parse_args(arguments)
    with cli_errors():
        levels = dict(parse_level(word) for word in args.level)
        curves = {str(load_config(run).name): read_curve(run) for run in args.runs}
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_curves(output.with_suffix(".csv"), curves)
    draw_curves(output, curves, levels)
    print(f"{output} and {output.with_suffix('.csv')}")


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
