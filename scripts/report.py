"""Runs as one table and one figure, score against compression.

    python scripts/report.py RUN [RUN ...] [--output DIR] [--metric f1] [--by compressor.fine]

RUN is a run folder, a folder of runs (outputs/comi_nq), or a glob in quotes. Results that differ only in seeds
become one row: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime import require_checkout

require_checkout()

from breviary.report import make_report
from breviary.tables import METRICS


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; a wrong one ends with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, folder of runs, or glob")
    parser.add_argument("--output", metavar="DIR", help="where to write; default: 'report' beside the runs")
    parser.add_argument("--metric", default="f1", help=f"what the figure shows: {', '.join(METRICS)} (default f1)")
    parser.add_argument("--by", metavar="KEY", help="configuration key whose values get a line each, "
                        "e.g. compressor, backbone, compressor.fine (default: whatever runs of one ratio differ in)")
    given = parser.parse_args(arguments)
    try:
        folder = make_report(given.runs, given.output, given.metric, given.by)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"report {folder}")


if __name__ == "__main__":
    main()
