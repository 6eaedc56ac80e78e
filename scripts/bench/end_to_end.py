"""Time from question to answer: first token and 32 tokens of every reader against full context, in one process.

    python scripts/bench/end_to_end.py --lengths 2048 4096 8192 16384 --ratios 4 8 --output end_to_end.json
    python scripts/bench/end_to_end.py --readers ram-depth comi-depth --ratios 8
    python scripts/bench/end_to_end.py --backbone tiny --lengths 9000 --keys backbone.layers=12 backbone.positions=9999

Nothing is cached: each question encodes and compresses its context, then answers. Weights are the untouched backbone's
and tokens are random, because only speed is measured. Lengths may therefore exceed the backbone's positions. All
readers of a length answer in turns, full context first, RUNS times after a warm-up on a short context. The table shows
medians of the times, and of the ratios within a turn. The readers share the decoder's weights. gold and external need
real data and have no row. --output is written after every answer; the same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()

from breviary.config.build import compressor_forms
from breviary.config.errors import cli_errors
from breviary.evaluation.bench.answers import KEYS, measure_answers
from breviary.evaluation.bench.command import benchmark_parser, open_rows, print_rows, shared_overrides
from breviary.runtime.spelling import command, next_line

SCHEMA = 3  # 3: times of every turn are stored, for resuming

# The reference of every row, and readers that need real data: gold marks, or text compressed by another tool.
NO_ROWS = ("full_context", "gold", "external")

COLUMNS = {
    "tokens": lambda row: str(row["tokens"]),
    "reader": lambda row: row["reader"],
    "ratio": lambda row: str(row["ratio"] or "-"),
    "slots": lambda row: str(row["slots"]),
    "first token s": lambda row: f"{row['ours_1_s']:.2f}",
    "full s": lambda row: f"{row['full_1_s']:.2f}",
    "speedup": lambda row: f"{row['speedup_1']:.2f}x",
    "32 tokens s": lambda row: f"{row['ours_32_s']:.2f}",
    "full 32 s": lambda row: f"{row['full_32_s']:.2f}",
    "speedup 32": lambda row: f"{row['speedup_32']:.2f}x",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(
        __doc__, lengths=[2048, 4096, 8192, 16384], of="context and question", runs=3, ratios=[4, 8]
    )
    parser.add_argument("--readers", nargs="+", help="such as ram-input, comi-depth (default: every compressor YAML)")
    return parser


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
    with cli_errors():
        rows = open_rows(args, SCHEMA, {"rows": KEYS})
        for length in args.lengths:
            for row in measure_answers(forms, shared_overrides(args), length, args.ratios, args.runs, rows):
                rows.put(row)
    print_rows("Against full context: above 1x is faster", COLUMNS, rows.of(), texts=["reader"])
    print(next_line(command("train.py", "experiment=comi_facts", f"backbone={args.backbone}")))


if __name__ == "__main__":
    main()
