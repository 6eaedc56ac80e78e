"""Kills trainings and evaluations with SIGKILL at random moments, restarts them, and checks that nothing is lost.

    python scripts/bench/crash.py --output results/trust/crash.json
    python scripts/bench/crash.py --modes one zero2 --kills 5 --seed 7
    python scripts/bench/crash.py --modes evaluation --kills 50
    python scripts/bench/crash.py --modes starts signals

Training, on the tiny backbone: one process, and two (DDP, ZeRO-2, a pipeline). All processes are killed, every second
time while a checkpoint is being written. resume=auto must go on from the newest complete checkpoint, and the losses of
all steps must be those of an uninterrupted run: exactly on one process. Evaluation: no prediction that was finished is
lost, none is there twice, all equal the uninterrupted evaluation's. Starts: of 8 processes that start at once on one
run, or on one evaluation, one goes on and seven are refused by name with exit code 2. Signals: SIGTERM and Ctrl-C to
one rank save once, with exit code 0 or 130 on every rank. Exit code 1 where something was lost or wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import require_checkout

require_checkout()

from breviary.config.errors import cli_errors
from breviary.evaluation.bench.crash import MODES, Kills, crash_evaluation, crash_training
from breviary.evaluation.bench.rows import MeasuredRows
from breviary.evaluation.bench.starts import signals_to_ranks, starts_at_once
from breviary.runtime.spelling import command, next_line

EVALUATION = "evaluation"
WHOLE = {"starts": starts_at_once, "signals": signals_to_ranks}  # without random moments


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = [*MODES, EVALUATION, *WHOLE]
    parser.add_argument("--modes", nargs="+", default=modes, choices=modes, metavar="NAME", help=", ".join(modes))
    parser.add_argument("--kills", type=int, default=20, help="of each mode")
    parser.add_argument("--steps", type=int, default=80, help="of a training")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", metavar="FILE", help="JSON file, written after each mode")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs mode by mode, prints a line each, writes one JSON file."""
    args = build_parser().parse_args(arguments)
    failed = []
    with cli_errors():
        rows = MeasuredRows(args.output, {"schema": 1, "seed": args.seed, "steps": args.steps}, {"rows": ("mode",)})
        for mode in args.modes:
            if (rows.find(mode=mode) or {}).get("kills", 0) >= (1 if mode in WHOLE else args.kills):
                continue
            rng = random.Random(f"{args.seed} {mode}")
            with tempfile.TemporaryDirectory(prefix="crash-") as folder:
                found = measure(mode, Path(folder), args.kills, args.steps, rng)
            rows.put({"mode": mode, **dataclasses.asdict(found)})
            print(describe(mode, found), flush=True)
            failed += found.problems
    if failed:
        sys.exit(1)
    print(next_line(command("scripts/bench/data_loading.py")))


def measure(mode: str, home: Path, kills: int, steps: int, rng: random.Random) -> Kills:
    """One mode, in the empty folder `home`."""
    if mode in WHOLE:
        return WHOLE[mode](home)
    if mode == EVALUATION:
        return crash_evaluation(home, kills, rng)
    return crash_training(mode, home, kills, steps, rng)


def describe(mode: str, found: Kills) -> str:
    """One line about a mode, and one for each problem."""
    line = (
        f"{mode}: {found.kills} kills ({found.in_checkpoint} while a checkpoint was written), {found.resumed} starts "
        f"resumed, {found.finished} finished, largest difference of a loss {found.largest_difference:g}"
    )
    return "\n".join([line, *(f"  {problem}" for problem in found.problems)])


if __name__ == "__main__":
    main()
