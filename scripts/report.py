"""Makes one table and one figure from run folders: score against achieved ratio.

    python scripts/report.py RUN [RUN ...] [--output DIR] [--metric f1] [--by compressor.fine] [--examples N]

RUN is a run folder, a folder of runs (outputs/comi_nq), or a glob in quotes. Finished runs without an evaluation are
evaluated first, as by eval.py, on the first N questions of the test split. Results that differ only in seeds become one
row: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from breviary.config.errors import cli_errors
from breviary.evaluation.resolve import compose_evaluation
from breviary.evaluation.results import RESULTS
from breviary.evaluation.session import EvaluationSession
from breviary.evaluation.table import METRICS, RECONSTRUCTION_METRICS
from breviary.report.sweep import make_report
from breviary.runs.folders import FINISHED
from data.text_pipeline import TEXT


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, folder of runs, or glob")
    parser.add_argument("--output", metavar="DIR", help="folder of the report; default: 'report' beside the runs")
    parser.add_argument(
        "--metric",
        default="f1",
        help=f"metric of the figure: {', '.join(METRICS + RECONSTRUCTION_METRICS)} (default f1)",
    )
    parser.add_argument(
        "--by",
        metavar="KEY",
        help="configuration key that distinguishes the lines, e.g. compressor, backbone, compressor.fine "
        "(default: the keys in which runs of one ratio differ)",
    )
    parser.add_argument("--examples", type=int, metavar="N", help="questions for runs without evaluation (default all)")
    args = parser.parse_args(arguments)
    with cli_errors():
        evaluate_missing(args.runs, args.examples)
        folder = make_report(args.runs, args.output, args.metric, args.by)
    print(f"report {folder}")


def evaluate_missing(runs: Sequence[str], examples: int | None) -> None:
    """Evaluates every finished run below `runs` that has no results; the untouched baselines only with the first."""
    folders = sorted(
        {file.parent for name in runs for match in glob.glob(name) for file in Path(match).rglob(FINISHED)}
    )
    missing = [folder for folder in folders if not any(folder.rglob(RESULTS))]
    for number, folder in enumerate(missing):
        print(f"evaluating {folder} ({number + 1}/{len(missing)})", flush=True)
        overrides = [f"run={folder}", f"examples={'null' if examples is None else examples}"]
        if number:
            overrides.append("baselines=[]")
        EvaluationSession(TEXT).evaluate(compose_evaluation(overrides))


if __name__ == "__main__":
    main()
