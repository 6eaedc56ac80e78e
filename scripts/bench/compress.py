"""Speed of a compressor against its floor, measured in one process.

    python scripts/bench/compress.py --output results/bench/compress.json
    python scripts/bench/compress.py --compressor ram --lengths 4096 16384 --ratios 4 8
    python scripts/bench/compress.py --backbone tiny --dtype float32 --lengths 512 --runs 3

The first table compares the whole compression (encode context and question, group, merge, align) with the bare forward
pass of the same truncated encoder on the same tokens in the same rows. For RAM these are segments, with the question on
its own. The floor stores the same key/value cache, if any. The second table compares a training step with one of the
whole backbone on as many tokens. Time: median of the ratios within a run; floor and compression alternate. Memory: peak
resident memory above that before the call (Linux).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()

from rich.console import Console
from rich.table import Table

from breviary.config.errors import cli_errors
from breviary.evaluation.bench import measure_compression, measure_training_step
from breviary.runs.environment import environment
from breviary.runtime.files import write_json
from breviary.runtime.spelling import command, next_line

JOINS = ("input", "depth")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2_135m", help="a YAML of configs/backbone")
    parser.add_argument("--compressor", default="comi", help="a YAML of configs/compressor that merges states")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the weights")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192], help="tokens, question included")
    parser.add_argument("--ratios", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", metavar="FILE", help="JSON file")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs both benchmarks, prints a table for each, writes one JSON file."""
    args = build_parser().parse_args(arguments)
    quiet_libraries()
    overrides = [f"compressor={args.compressor}", f"backbone={args.backbone}", f"backbone.dtype={args.dtype}"]
    measured: dict[str, Any] = {
        "schema": 1,
        "runs": args.runs,
        "dtype": args.dtype,
        "backbone": args.backbone,
        "compressor": args.compressor,
        "compression": [],
        "training_step": [],
        "environment": environment(),
    }

    def add_row(part: str, row: dict[str, Any]) -> None:
        measured[part].append(row)
        if args.output:
            write_json(args.output, measured)  # after every row, so that an interruption loses none

    with cli_errors():
        for join, length, ratio in itertools.product(JOINS, args.lengths, args.ratios):
            add_row("compression", measure_compression(overrides, join, length, ratio, args.runs))
        show("Compression against the bare truncated encoder", measured["compression"])
        for join in JOINS:
            add_row("training_step", measure_training_step(overrides, join, args.lengths[0], args.runs))
    show("Training step (forward and backward) against full context on as many tokens", measured["training_step"])
    print(next_line(command("scripts/bench/end_to_end.py", "--backbone", args.backbone)))


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints the rows as one table."""
    table = Table(title=title)
    for column in ("join", "tokens", "ratio", "floor s", "ours s", "time", "floor MiB", "ours MiB", "memory"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["join"],
            str(row["tokens"]),
            str(row["ratio"]),
            f"{row['floor_s']:.3f}",
            f"{row['ours_s']:.3f}",
            f"{row['time_ratio']:.2f}x",
            f"{row['floor_mib']:.0f}",
            f"{row['ours_mib']:.0f}",
            f"{row['memory_ratio']:.2f}x",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
