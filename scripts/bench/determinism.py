"""Trains and evaluates in ways that must not matter, on the tiny backbone, and measures by how much numbers differ.

    python scripts/bench/determinism.py
    python scripts/bench/determinism.py --output results/trust/determinism.json
    python scripts/bench/determinism.py --output outputs/determinism.json

The same command twice, resumed or not, data loader processes, micro-batches, two processes (DDP, ZeRO-2), batch sizes
of the evaluation. float32 on CPUs. Exit code 1 where an answer is another, where numbers that must be equal to the last
digit are not, or where a loss differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import require_checkout

require_checkout()

from breviary.config.errors import cli_errors
from breviary.evaluation.bench.determinism import STEPS, measure
from breviary.evaluation.bench.rows import MeasuredRows
from breviary.runtime.spelling import command, next_line

EQUAL = ("run twice", "resumed from the middle", "train.workers=2")  # to the last digit
MOST = 1e-5  # of a loss, or of the NLL of an answer


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", help="JSON file")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs comparison by comparison, prints a line each, writes one JSON file."""
    args = build_parser().parse_args(arguments)
    failed = False
    with cli_errors(), tempfile.TemporaryDirectory(prefix="determinism-") as folder:
        rows = MeasuredRows(args.output, {"schema": 1, "steps": STEPS}, {"rows": ("compared", "different")})
        for row in measure(Path(folder)):
            rows.put(row)
            print(describe(row), flush=True)
            failed |= differs(row)
    if failed:
        sys.exit(1)
    print(next_line(command("scripts/bench/crash.py")))


def differs(row: Mapping[str, Any]) -> bool:
    """Whether a comparison found a difference that must not be."""
    numbers = [row[key] for key in ("loss", "weights", "nll") if row[key] is not None]
    if row["different"] in EQUAL:
        return bool(row["other_answers"] or any(numbers))
    return bool(row["other_answers"]) or max(row["loss"] or 0, row["nll"]) > MOST


def describe(row: Mapping[str, Any]) -> str:
    """One line about a comparison."""
    losses = "" if row["loss"] is None else f"loss {row['loss']:.1e}, weights {row['weights']:.1e}, "
    answers = f"NLL {row['nll']:.1e}, {row['other_answers']} of {row['answers']} answers differ"
    return f"{row['compared']}, {row['different']}: {losses}{answers}"


if __name__ == "__main__":
    main()
