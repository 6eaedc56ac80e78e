"""Cost of key/value eviction: encoding, scoring and selecting against the bare prefill, in one process.

    python scripts/bench/scoring.py --output results/bench/scoring.json
    python scripts/bench/scoring.py --scorers snapkv knorm --lengths 8192 --runs 5
    python scripts/bench/scoring.py --backbone tiny --dtype float32 --lengths 2048 --keys backbone.width=512

The bare prefill reads the context and keeps all keys and values. A scorer does the same, scores every entry and copies
those that it keeps. Where it reads the question (known), the question is run behind the cache; this counts. Time:
median of the ratios within a run; all scorers of a length run in turn. Tokens are random.
"""

from __future__ import annotations

import argparse
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
from breviary.evaluation.scoring_bench import measure_scoring, scorer_forms
from breviary.runs.environment import environment
from breviary.runtime.files import write_json
from breviary.runtime.spelling import command, next_line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2_135m", help="a YAML of configs/backbone")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the weights")
    parser.add_argument("--scorers", nargs="+", help="YAMLs of configs/compressor (default: every one with a scorer)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192], help="context tokens")
    parser.add_argument("--ratio", type=int, default=4, help="context tokens per kept entry")
    parser.add_argument("--keys", nargs="*", default=[], help="overrides key=value of the backbone")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", metavar="FILE", help="JSON file")
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
    shared = [f"backbone={args.backbone}", f"backbone.dtype={args.dtype}", *args.keys]
    content: dict[str, Any] = {
        "schema": 1,
        "runs": args.runs,
        "backbone": args.backbone,
        "keys": args.keys,
        "dtype": args.dtype,
        "rows": [],
        "environment": environment(),
    }
    with cli_errors():
        for length in args.lengths:
            content["rows"] += measure_scoring(names, shared, length, args.ratio, args.runs)
            if args.output:
                write_json(args.output, content)  # after every length, so that an interruption loses none
    show(content["rows"])
    print(next_line(command("scripts/bench/end_to_end.py", "--backbone", args.backbone)))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the rows as one table."""
    table = Table(title="Eviction against the bare prefill", title_justify="left")
    for column in ("tokens", "scorer", "question", "bare s", "ours s", "time"):
        table.add_column(column, justify="left" if column in ("scorer", "question") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["tokens"]),
            row["scorer"],
            row["question"],
            f"{row['floor_s']:.3f}",
            f"{row['ours_s']:.3f}",
            f"{row['time_ratio']:.2f}x",
        )
    Console(width=max(Console().width, 100)).print(table)


if __name__ == "__main__":
    main()
