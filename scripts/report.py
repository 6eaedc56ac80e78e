"""Runs as one table and one figure, score against compression.

    python scripts/report.py RUN [RUN ...] [--output DIR] [--metric f1] [--by compressor.fine] [--examples N]

RUN is a run folder, a folder of runs (outputs/comi_nq), or a glob in quotes. Finished runs that were not evaluated yet
are evaluated first, as eval.py would (the first N questions of the test split). Results that differ only in seeds
become one row: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

from hydra import compose, initialize_config_dir

from breviary.evaluation.results import RESULTS
from breviary.evaluation.table import METRICS, RESTORED
from breviary.report.sweep import make_report
from breviary.runs.folders import FINISHED
from breviary.runtime.checkout import ROOT
from eval import evaluate_all, settle


def evaluate_missing(runs: Sequence[str], examples: int | None) -> None:
    """Evaluates every finished run below `runs` that has no results; the plain backbone once, with the first."""
    folders = sorted(
        {file.parent for name in runs for match in glob.glob(name) for file in Path(match).rglob(FINISHED)}
    )
    missing = [folder for folder in folders if not any(folder.rglob(RESULTS))]
    for number, folder in enumerate(missing):
        print(f"evaluating {folder} ({number + 1}/{len(missing)})", flush=True)
        overrides = [f"run={folder}", f"examples={'null' if examples is None else examples}"]
        if number:
            overrides.append("baselines=[]")
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose("eval", overrides)
        evaluate_all(settle(cfg, overrides))


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; a wrong one ends with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, folder of runs, or glob")
    parser.add_argument("--output", metavar="DIR", help="where to write; default: 'report' beside the runs")
    parser.add_argument(
        "--metric", default="f1", help=f"what the figure shows: {', '.join(METRICS + RESTORED)} (default f1)"
    )
    parser.add_argument(
        "--by",
        metavar="KEY",
        help="configuration key whose values get a line each, "
        "e.g. compressor, backbone, compressor.fine (default: whatever runs of one ratio differ in)",
    )
    parser.add_argument("--examples", type=int, metavar="N", help="questions for runs not evaluated yet (default all)")
    given = parser.parse_args(arguments)
    try:
        evaluate_missing(given.runs, given.examples)
        folder = make_report(given.runs, given.output, given.metric, given.by)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"report {folder}")


if __name__ == "__main__":
    main()
