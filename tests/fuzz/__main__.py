"""The long form of the tests of random input; `make fuzz`.

    python -m tests.fuzz --configurations 2000 --data 5000 --folders 500
    python -m tests.fuzz --data 100 --seed 3
    python -m tests.fuzz --configurations 1 --first 17 --seed 0      # repeats one case

Every case ends in one of: ran; refused, with a message that names the key, the file or the value, and exit code 2;
failed, with a message about the run, such as a loss that is not finite, and exit code 1. Anything else is a fault, is
printed with the command that repeats it, and ends this command with exit code 1.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from breviary.runs.environment import environment
from breviary.runtime.checkout import quiet_libraries
from breviary.runtime.files import write_json
from tests.fuzz.configurations import run_configuration
from tests.fuzz.data_files import run_data
from tests.fuzz.folders import run_folder
from tests.fuzz.outcomes import Outcome, Report

KINDS: dict[str, Callable[[random.Random, Path], tuple[str, Outcome]]] = {
    "configurations": run_configuration,
    "data": run_data,
    "folders": run_folder,
}


def run_cases(name: str, count: int, seed: int, first: int = 0) -> Report:
    """Runs `count` cases of a kind, numbers `first` on. A case depends on seed and number alone."""
    report = Report(name, seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as home:
        for number in range(first, first + count):
            rng = random.Random(f"{seed} {name} {number}")
            report.add(number, *KINDS[name](rng, Path(home)))
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the kinds one after another; prints faults and counts, writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in KINDS:
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--output", metavar="FILE", help="JSON file with the counts")
    args = parser.parse_args(arguments)
    quiet_libraries()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    content: dict = {"schema": 1, "seed": args.seed, "environment": environment(), "kinds": {}}
    faults = 0
    for name in KINDS:
        if not (count := getattr(args, name)):
            continue
        start = time.process_time()
        report = run_cases(name, count, args.seed, args.first)
        faults += len(report.faults)
        seconds = time.process_time() - start
        print(f"{name}: {dict(report.counts)} of {count}, {seconds:.0f} CPU seconds", flush=True)
        content["kinds"][name] = {"cases": count, **report.counts, "cpu_seconds": round(seconds)}
        if args.output:
            write_json(args.output, content)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
