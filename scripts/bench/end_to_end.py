"""Time from question to answer: first token and 32 tokens of every reader against full context, in one process.

    python scripts/bench/end_to_end.py --lengths 2048 4096 8192 16384 --ratios 4 8 --output end_to_end.json
    python scripts/bench/end_to_end.py --readers ram-depth comi-depth --ratios 8
    python scripts/bench/end_to_end.py --backbone tiny --lengths 9000 --keys backbone.layers=12 backbone.positions=9999

Nothing is cached: each question encodes and compresses its context, then answers. Weights are the untouched backbone's
and tokens are random, because only speed is measured. Lengths may therefore exceed the backbone's positions. All
readers of a length answer in turn, full context first, RUNS times after a warm-up on a short context. The table shows
medians of the times, and of the ratios within a turn. The readers share the decoder's weights. Selections of text cost
what they cost on words, though random ones have one passage. gold and external read real data and have no row.
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

from breviary.config.build import compressor_forms
from breviary.config.errors import cli_errors
from breviary.evaluation.bench import measure_answers
from breviary.runs.environment import environment
from breviary.runtime.files import write_json
from breviary.runtime.spelling import command, next_line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2_135m", help="a YAML of configs/backbone")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the weights")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384], help="context and question, tokens"
    )
    parser.add_argument("--ratios", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--readers", nargs="+", help="such as ram-input, comi-depth (default: every compressor YAML)")
    parser.add_argument("--keys", nargs="*", default=[], help="overrides key=value for every reader")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", metavar="FILE", help="JSON file")
    return parser


# The reference of every row, and those that read what only data holds: gold marks, a text that another tool compressed.
NO_ROWS = ("full_context", "gold", "external")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures length by length, prints one table, writes one JSON file."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    quiet_libraries()
    forms = {name: overrides for name, overrides in compressor_forms().items() if name not in NO_ROWS}
    unknown = sorted(set(args.readers or []) - forms.keys())
    if unknown:
        parser.error(f"--readers: unknown {', '.join(unknown)}; allowed are {', '.join(forms)}")
    forms = {name: forms[name] for name in args.readers or forms}
    shared = [f"backbone={args.backbone}", f"backbone.dtype={args.dtype}", *args.keys]
    content = {
        "schema": 2,
        "runs": args.runs,
        "backbone": args.backbone,
        "keys": args.keys,
        "dtype": args.dtype,
        "rows": [],
        "environment": environment(),
    }
    with cli_errors():
        for length in args.lengths:
            content["rows"] += measure_answers(forms, shared, length, args.ratios, args.runs)
            if args.output:
                write_json(args.output, content)  # after every length, so that an interruption loses none
    show(content["rows"])
    print(next_line(command("train.py", "experiment=comi_facts", f"backbone={args.backbone}")))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the rows as one table."""
    table = Table(title="Against full context: above 1x is faster", title_justify="left")
    times = ("full s", "speedup")
    for column in ("tokens", "reader", "ratio", "slots", "first token s", *times, "32 tokens s", *times):
        table.add_column(column, justify="left" if column == "reader" else "right", no_wrap=column == "reader")
    for row in rows:
        table.add_row(
            str(row["tokens"]),
            row["reader"],
            str(row["ratio"] or "-"),
            str(row["slots"]),
            f"{row['ours_1_s']:.2f}",
            f"{row['full_1_s']:.2f}",
            f"{row['speedup_1']:.2f}x",
            f"{row['ours_32_s']:.2f}",
            f"{row['full_32_s']:.2f}",
            f"{row['speedup_32']:.2f}x",
        )
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main()
