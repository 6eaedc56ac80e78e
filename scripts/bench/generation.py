"""Greedy decoding with full context against `generate` of transformers on the same batch, in one process.

    python scripts/bench/generation.py --output results/bench/generation.json
    python scripts/bench/generation.py --lengths 2048 8192 --batch 8 --dtype float32
    python scripts/bench/generation.py --backbone tiny --lengths 256 --new-tokens 8 --runs 1

Cases: contexts of equal length (equal), of different lengths (ragged), four questions per context (shared), ragged with
answers that end early (ending). Both implementations have the same weights and prompts and run in turns, RUNS times
after a warm-up. Times are wall time and this process's CPU time, which other processes disturb less. Ratios are ours /
transformers, medians over turns: below 1x is faster. Tokens are random. --output is written after every row; the same
command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()

from breviary.config.errors import cli_errors
from breviary.evaluation.bench.command import benchmark_parser, open_rows, print_rows, shared_overrides
from breviary.evaluation.bench.generation import KEYS, measure_generation
from breviary.runtime.spelling import command, next_line

SCHEMA = 1

COLUMNS = {
    "tokens": lambda row: str(row["tokens"]),
    "case": lambda row: row["case"],
    "batch": lambda row: str(row["batch"]),
    "equal answers": lambda row: str(row["equal_answers"]),
    "cpu": lambda row: f"{row['cpu_ratio']:.2f}x",
    "wall": lambda row: f"{row['wall_ratio']:.2f}x",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(__doc__, lengths=[1024], of="the longest context", runs=3)
    parser.add_argument("--batch", type=int, default=4, help="questions, a multiple of 4")
    parser.add_argument("--new-tokens", type=int, default=32, help="of each answer, at most")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures length by length, prints one table, writes one JSON file."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    quiet_libraries()
    if args.batch < 4 or args.batch % 4:
        parser.error(f"--batch {args.batch}: must be a multiple of 4, for example 8")
    with cli_errors():
        rows = open_rows(args, SCHEMA, {"rows": KEYS}, batch=args.batch, new_tokens=args.new_tokens)
        for length in args.lengths:
            shared = shared_overrides(args)
            for row in measure_generation(shared, length, args.batch, args.new_tokens, args.runs, rows):
                rows.put(row)
    print_rows("Ours / transformers' generate: below 1x is faster", COLUMNS, rows.of(), texts=["case"])
    print(next_line(command("scripts/bench/end_to_end.py", "--backbone", args.backbone)))


if __name__ == "__main__":
    main()
