"""Makes one table, one figure and one HTML page from run folders.

    python scripts/report.py outputs/comi_facts
    python scripts/report.py outputs/comi_nq outputs/ram_nq --metric em --by compressor --output results/nq
    python scripts/report.py latest --examples 100 --maps 3

RUN is a run folder, a folder of runs (outputs/comi_nq), a sweep (outputs/sweeps/NAME), a glob in quotes, or latest.
Finished runs without an evaluation are evaluated first, as by eval.py, on the first N questions of the test split. A
run that cannot be used costs one line, never the report. Results that differ only in seeds become one row: mean and
standard deviation over the seeds. The page needs no other file: ranking, figures, training curves, scores by length and
by gold position, paired differences, reading maps, and how each number was made.
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

from breviary.config.cli.run_names import LATEST, find_run
from breviary.config.errors import cli_errors, raise_problems
from breviary.evaluation.resolve import compose_evaluation
from breviary.evaluation.results import RESULTS
from breviary.evaluation.session import EvaluationSession
from breviary.report.page.build import PAGE
from breviary.report.reading_map import make_reading_map
from breviary.report.reading_map_cards import CARDS
from breviary.report.report_files import make_report
from breviary.runs.folders import CONFIG, FINISHED
from breviary.runs.sweeps import with_listed_runs
from breviary.runtime.spelling import command, next_line, setting
from data.text_pipeline import TEXT


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, folder of runs, sweep, or glob")
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the report; default: 'report' in the sweep or beside the runs"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="metric of figures and ranking, e.g. em, nll (default: the first that the data set names, else f1)",
    )
    parser.add_argument(
        "--by",
        metavar="KEY",
        help="configuration key that distinguishes the lines, e.g. compressor, backbone, compressor.fine "
        "(default: the keys in which runs of one ratio differ)",
    )
    parser.add_argument("--examples", type=int, metavar="N", help="questions for runs without evaluation (default all)")
    parser.add_argument(
        "--against",
        metavar="READER",
        help="the reader that the page compares the others with, as the table names it (default full_context, else the "
        "best)",
    )
    parser.add_argument(
        "--maps", type=int, default=0, metavar="N", help="make a reading map of N questions for runs that have none"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    args = build_parser().parse_args(arguments)
    with cli_errors():
        raise_problems(
            f"{word}: no RUN, and this command takes no settings; its options are written --examples 100, --metric em"
            for word in args.runs
            if "=" in word and not glob.glob(word)
        )
        args.runs = [str(find_run(word)) if word == LATEST else word for word in args.runs]
        if args.maps < 0:
            raise ValueError(f"--maps {args.maps}: must be at least 0, e.g. --maps 3")
        skipped = evaluate_missing(args.runs, args.examples)
        if args.maps:
            skipped += make_missing_maps(args.runs, args.maps)
        folder = make_report(args.runs, args.output, args.metric, args.by, skipped, args.against)
    print(f"page {Path(folder) / PAGE}")
    print(f"report {folder}")
    print(next_line(command("scripts/curves.py", *args.runs)))


def evaluate_missing(runs: Sequence[str], examples: int | None) -> list[str]:
    """Evaluates every finished run of `runs` that has no results. Returns one line for each run that cannot be used."""
    missing = [folder for folder in run_folders(runs) if not any(folder.rglob(RESULTS))]
    skipped = [f"{folder}: not finished; resume={folder} continues it" for folder in missing if not is_done(folder)]
    finished = [folder for folder in missing if is_done(folder)]
    for number, folder in enumerate(finished):
        print(f"evaluating {folder} ({number + 1}/{len(finished)})", flush=True)
        overrides = [setting("run", str(folder)), f"examples={'null' if examples is None else examples}"]
        try:
            EvaluationSession(TEXT).evaluate(compose_evaluation(overrides))
        except Exception as error:  # whatever it is: the other runs are still reported, and eval.py shows all of it
            skipped.append(f"{folder}: {reason(error)} (all of it: {command('eval.py', setting('run', str(folder)))})")
    return skipped


def make_missing_maps(runs: Sequence[str], n: int) -> list[str]:
    """Makes a reading map of n questions for every finished run that has none. Returns a line for each without one."""
    skipped = []
    for folder in run_folders(runs):
        words = [setting("run", str(folder)), "baselines=[]"]
        if is_done(folder) and not (folder / CARDS).is_file():
            try:
                make_reading_map(EvaluationSession(TEXT), compose_evaluation(words), n, None)
            except Exception as error:  # as above; readers without slots have no map
                skipped.append(f"reading map of {folder}: {reason(error)}")
    return skipped


def run_folders(runs: Sequence[str]) -> list[Path]:
    """Every run folder below the places that `runs` name, finished or not."""
    places = {place for name in runs for match in glob.glob(name) for place in with_listed_runs(Path(match))}
    return sorted({file.parent.resolve(): file.parent for place in places for file in place.rglob(CONFIG)}.values())


def reason(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_done(run: Path) -> bool:
    """Whether the run's training is complete."""
    return (run / FINISHED).is_file()


if __name__ == "__main__":
    main()
