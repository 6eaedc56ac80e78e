"""Cost of key/value eviction: encoding, scoring and selecting against the bare prefill, in one process.

    python scripts/bench/scoring.py --output results/bench/scoring.json
    python scripts/bench/scoring.py --scorers snapkv knorm --lengths 8192 --runs 5
    python scripts/bench/scoring.py --backbone tiny --dtype float32 --lengths 2048 --keys backbone.width=512

The bare prefill encodes the context and stores all keys and values. A scorer also scores every entry and copies the
selected ones. With a known question, the time includes its forward pass over the cache. Time: median of the ratios
within a run; all scorers of a length run in turns. Tokens are random. --output is written after every call; the same
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
from breviary.evaluation.bench.scoring import KEYS, measure_scoring, scorer_forms
from breviary.runtime.spelling import command, next_line

SCHEMA = 2  # 2: times of every turn are stored, for resuming

COLUMNS = {
    "tokens": lambda row: str(row["tokens"]),
    "scorer": lambda row: row["scorer"],
    "question": lambda row: row["question"],
    "bare s": lambda row: f"{row['floor_s']:.3f}",
    "ours s": lambda row: f"{row['ours_s']:.3f}",
    "time": lambda row: f"{row['time_ratio']:.2f}x",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(__doc__, lengths=[2048, 8192], of="context", runs=5)
    parser.add_argument("--scorers", nargs="+", help="YAMLs of configs/compressor (default: every one with a scorer)")
    parser.add_argument("--ratio", type=int, default=4, help="context tokens per kept entry")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures length by length, prints one table, writes one JSON file."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    quiet_libraries()
    names = args.scorers or list(scorer_forms())
    unknown = sorted(set(names) - scorer_forms().keys())
    if unknown:
        parser.error(f"--scorers: unknown {', '.join(unknown)}; allowed are {', '.join(scorer_forms())}")
    with cli_errors():
        rows = open_rows(args, SCHEMA, {"rows": KEYS})
        for length in args.lengths:
            for row in measure_scoring(names, shared_overrides(args), length, args.ratio, args.runs, rows):
                rows.put(row)
    print_rows("Eviction against the bare prefill", COLUMNS, rows.of(), texts=["scorer", "question"])
    print(next_line(command("scripts/bench/end_to_end.py", "--backbone", args.backbone)))


if __name__ == "__main__":
    main()
