"""Time of every reader's training step, relative to a plain forward and backward pass of as many token-layers.

    python scripts/bench/training_step.py --output results/bench/training_step.json
    python scripts/bench/training_step.py --readers comi-depth ram-depth --lengths 4096 8192 --rows 1 2 4 8
    python scripts/bench/training_step.py --backbone tiny --lengths 256 --runs 1

Reader and floor (the plain pass) alternate; the ratio is the median over turns, in CPU seconds, which other processes
disturb less than wall time. Token-layers are defined in breviary/evaluation/bench/training_step.py. All readers train
their default weights (LoRA on the decoder). CoMeT has chunks of 512 tokens, to use its memory at these lengths;
reconstruct is ICAE with the whole context supervised. --output is written after every turn; the same command resumes an
interrupted run.
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
from breviary.evaluation.bench.command import benchmark_parser, open_rows, print_rows, shared_overrides
from breviary.evaluation.bench.rows import Row
from breviary.evaluation.bench.training_step import measure_step
from breviary.runtime.spelling import command, next_line

COMET = ["chunk_size=512", "global_slots=64", "queue_budget=256", "strategy=fixed"]

READERS = {
    "full_context": ["compressor=full_context"],
    **{
        f"{name}-{join}": [f"compressor={name}", f"compressor.join={join}", "compressor.ratio=4"]
        for name, join in itertools.product(("comi", "ram", "mean_pool"), ("input", "depth"))
    },
    "icae": ["compressor=icae", "compressor.ratio=4"],
    "reconstruct": ["compressor=icae", "compressor.ratio=4", "objective=reconstruct"],
    "comet": ["compressor=comet", *(f"compressor.{key}" for key in COMET)],
    "comet-text": ["compressor=comet", *(f"compressor.{key}" for key in COMET), "compressor.supervise=text"],
    "attention": ["compressor=attention", "compressor.ratio=4"],
}

KEYS = ("reader", "batch", "tokens")  # of a row


def cell(name: str) -> Callable[[Row], str]:
    """A column of the table with that field of the row."""
    return lambda row: str(row[name])


COLUMNS = {
    **{name: cell(name) for name in KEYS},
    "token-layers": lambda row: f"{row['token_layers']:,}",
    "floor s": lambda row: f"{row['floor_cpu_s']:.2f}",
    "ours s": lambda row: f"{row['ours_cpu_s']:.2f}",
    "ratio": lambda row: f"{row['ratio']:.2f}x",
    "turns": lambda row: str(row["turns"]),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(__doc__, lengths=[1024, 2048, 4096, 8192], of="context, question and answer", runs=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8], help="examples of a batch")
    parser.add_argument(
        "--readers", nargs="+", default=list(READERS), choices=READERS, metavar="NAME", help="default: all"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures row by row, prints one table, writes one JSON file."""
    args = build_parser().parse_args(arguments)
    quiet_libraries()
    shared = shared_overrides(args)
    with cli_errors():
        measured = open_rows(args, 1, {"rows": KEYS})
        for length, batch, name in itertools.product(args.lengths, args.rows, args.readers):
            cell = {"reader": name, "batch": batch, "tokens": length}
            found = measured.find(**cell)
            if found is None or found["turns"] < args.runs:
                for row in measure_step([*READERS[name], *shared], length, batch, args.runs):
                    measured.put(cell | row)
    print_rows("Training step / plain step of as many token-layers", COLUMNS, measured.of(), ["reader"])
    print(next_line(command("scripts/bench/loss_memory.py")))


if __name__ == "__main__":
    main()
