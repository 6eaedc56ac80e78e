"""Speed of a compressor against its floor, measured in one process.

    python scripts/bench/compress.py --output results/bench/compress.json
    python scripts/bench/compress.py --compressor ram --lengths 4096 16384 --ratios 4 8
    python scripts/bench/compress.py --backbone tiny --dtype float32 --lengths 512 --runs 3

The first table compares the whole compression (encode context and question, group, merge, align) with the bare forward
pass of the same truncated encoder on the same rows (the floor; for RAM segments and the question separately, with the
same key/value cache, if any). The second table compares a training step with one of the whole backbone on as many
tokens. Time: median of the ratios within a run; floor and compression alternate. Memory: increase of peak resident
memory during the call (Linux). --output is written after every row; the same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()

from breviary.config.errors import cli_errors
from breviary.evaluation.bench.command import benchmark_parser, open_rows, print_rows, shared_overrides
from breviary.evaluation.bench.compression import measure_compression, measure_training_step
from breviary.runtime.spelling import command, next_line

JOINS = ("input", "depth")
STEP_RATIO = 4  # of the training step
KEYS = ("join", "tokens", "ratio")  # of a row

COLUMNS = {
    "join": lambda row: row["join"],
    "tokens": lambda row: str(row["tokens"]),
    "ratio": lambda row: str(row["ratio"]),
    "floor s": lambda row: f"{row['floor_s']:.3f}",
    "ours s": lambda row: f"{row['ours_s']:.3f}",
    "time": lambda row: f"{row['time_ratio']:.2f}x",
    "floor MiB": lambda row: f"{row['floor_mib']:.0f}",
    "ours MiB": lambda row: f"{row['ours_mib']:.0f}",
    "memory": lambda row: f"{row['memory_ratio']:.2f}x",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(__doc__, lengths=[2048, 8192], of="context and question", runs=7, ratios=[4, 16, 32])
    parser.add_argument("--compressor", default="comi", help="a YAML of configs/compressor that merges states")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs both benchmarks, prints a table for each, writes one JSON file."""
    args = build_parser().parse_args(arguments)
    quiet_libraries()
    overrides = [f"compressor={args.compressor}", *shared_overrides(args)]
    with cli_errors():
        parts = {"compression": KEYS, "training_step": KEYS}
        measured = open_rows(args, 1, parts, compressor=args.compressor)
        for join, length, ratio in itertools.product(JOINS, args.lengths, args.ratios):
            if measured.find("compression", join=join, tokens=length, ratio=ratio) is None:
                row = measure_compression(overrides, join, length, ratio, args.runs)
                measured.put(row | {"runs": args.runs}, "compression")
        print_rows("Compression against the bare truncated encoder", COLUMNS, measured.of("compression"), ["join"])
        for join in JOINS:
            if measured.find("training_step", join=join, tokens=args.lengths[0], ratio=STEP_RATIO) is None:
                row = measure_training_step(overrides, join, args.lengths[0], STEP_RATIO, args.runs)
                measured.put(row | {"runs": args.runs}, "training_step")
    title = "Training step (forward and backward) against full context on as many tokens"
    print_rows(title, COLUMNS, measured.of("training_step"), ["join"])
    print(next_line(command("scripts/bench/end_to_end.py", "--backbone", args.backbone)))


if __name__ == "__main__":
    main()
