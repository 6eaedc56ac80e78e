"""Peak memory of the chunked training losses over a large vocabulary, relative to one chunk.

    python scripts/bench/loss_memory.py --output results/bench/loss_memory.json
    python scripts/bench/loss_memory.py --tokens 8192 --width 3584 --dtypes bfloat16
    python scripts/bench/loss_memory.py --vocabulary 32000 --tokens 16384 --losses answer

Each row is one loss, forward and backward, in chunks of rows (breviary/backbones/head.py): the answer's cross-entropy
and the KL of distillation, with a frozen and a trained head (distillation: frozen). The table compares its peak
resident memory (Linux), without inputs and returned gradients, with the unchunked loss on one chunk and on all rows.
--output is written after every row; the same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()

from breviary.config.errors import cli_errors
from breviary.evaluation.bench.command import print_rows
from breviary.evaluation.bench.loss_memory import LOSSES, measure_loss_memory
from breviary.evaluation.bench.rows import MeasuredRows, Row
from breviary.runtime.spelling import command, next_line

KEYS = ("loss", "head", "dtype", "tokens")  # of a row


def cell(name: str) -> Callable[[Row], str]:
    """A column of the table with that field of the row."""
    return lambda row: str(row[name])


COLUMNS = {
    **{name: cell(name) for name in (*KEYS, "chunk_rows")},
    "logits MiB": lambda row: f"{row['logits_mib']:.0f}",
    "one chunk MiB": lambda row: f"{row['chunk_mib']:.0f}",
    "ours MiB": lambda row: f"{row['ours_mib']:.0f}",
    "ratio": lambda row: f"{row['ratio']:.2f}x",
    "plain MiB": lambda row: f"{row['plain_mib']:.0f}",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=152064, help="entries; default: Qwen2's")
    parser.add_argument("--width", type=int, default=896, help="hidden width; default: Qwen2.5-0.5B's")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048], help="supervised tokens")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--output", metavar="FILE", help="JSON file; where it exists, finished rows are not repeated")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures row by row, prints one table, writes one JSON file."""
    args = build_parser().parse_args(arguments)
    quiet_libraries()
    with cli_errors():
        settings = {"schema": 1, "vocabulary": args.vocabulary, "width": args.width}
        measured = MeasuredRows(args.output, settings, {"rows": KEYS})
        for tokens, loss, dtype, head in itertools.product(
            args.tokens, args.losses, args.dtypes, ("frozen", "trained")
        ):
            if head == "trained" and loss == "distill":  # the objective raises: the teacher shares the weights
                continue
            if measured.find(loss=loss, head=head, dtype=dtype, tokens=tokens) is None:
                row = measure_loss_memory(loss, head == "trained", dtype, tokens, args.vocabulary, args.width)
                measured.put(row)
    print_rows("Peak memory of a loss: in chunks against one chunk", COLUMNS, measured.of(), ["loss", "head", "dtype"])
    print(next_line(command("scripts/bench/training_step.py", "--backbone", "smollm2_135m")))


if __name__ == "__main__":
    main()
