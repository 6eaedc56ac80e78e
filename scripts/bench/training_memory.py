"""Estimated peak memory of a training step against the measured one, on small random models of four shapes.

    python scripts/bench/training_memory.py --output results/bench/training_memory.json
    python scripts/bench/training_memory.py --shapes llama qwen3 --dtypes float32
    python scripts/bench/training_memory.py --shapes qwen2 --context 128 --forms full_context

The measurement counts the bytes of live tensors in the second step on the CPU (breviary/training/cost/measured.py):
forward and backward pass, clipping and AdamW. It does not depend on the load of the machine. --output is written after
every row; the same command resumes an interrupted run.
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
from breviary.evaluation.bench.command import print_rows
from breviary.evaluation.bench.rows import MeasuredRows
from breviary.runtime.spelling import command, next_line
from breviary.training.cost.compared import SHAPES, compare_memory

SCHEMA = 1

CHECKPOINTING = "train.gradient_checkpointing=true"
SEGMENTS = ("compressor.encoder_layers=2",)
FORMS: dict[str, tuple[str, ...]] = {
    "full_context": ("compressor=full_context",),
    "full_context, full, checkpointing": ("compressor=full_context", "decoder.train=full", CHECKPOINTING),
    "comi, input": ("compressor=comi", *SEGMENTS, "decoder.train=attention"),
    "comi, depth, checkpointing": ("compressor=comi", "compressor.join=depth", *SEGMENTS, CHECKPOINTING),
    "mean_pool, input": ("compressor=mean_pool", *SEGMENTS),
    "ram, input": ("compressor=ram", "compressor.uniform_keep=false", *SEGMENTS, "decoder.train=qkv"),
    "icae": ("compressor=icae", "compressor.memory_tokens=32"),
    "comet": (
        "compressor=comet",
        "compressor.chunk_size=64",
        "compressor.global_slots=16",
        "compressor.queue_budget=64",
        "compressor.strategy=fixed",
        "decoder.train=full",
    ),
}

COLUMNS = {
    "shape": lambda row: row["shape"],
    "dtype": lambda row: row["dtype"],
    "reader": lambda row: row["form"],
    "tokens": lambda row: str(row["tokens"]),
    "measured MB": lambda row: f"{row['measured'] / 1e6:.1f}",
    "estimated MB": lambda row: f"{row['estimated'] / 1e6:.1f}",
    "difference": lambda row: f"{row['estimated'] / row['measured'] - 1:+.1%}",
    "moment": lambda row: row["moment"],
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="readers and what is trained")
    parser.add_argument("--context", type=int, default=256, help="context tokens of each of two examples")
    parser.add_argument("--output", metavar="FILE", help="JSON file; where it exists, finished rows are not repeated")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures row by row, prints one table, writes one JSON file."""
    args = build_parser().parse_args(arguments)
    quiet_libraries()
    with cli_errors():
        rows = MeasuredRows(args.output, {"schema": SCHEMA}, {"rows": ("shape", "dtype", "form", "tokens")})
        for shape in args.shapes:
            for dtype in args.dtypes:
                for form in args.forms:
                    where = {"shape": shape, "dtype": dtype, "form": form, "tokens": args.context}
                    if rows.find(**where) is None:
                        rows.put(where | compare_memory(shape, dtype, FORMS[form], args.context))
    print_rows("Peak of a training step: estimated, measured", COLUMNS, rows.of(), ["shape", "dtype", "reader"])
    print(next_line(command("scripts/plan_memory.py", "experiment=comi_nq", "backbone=qwen2_7b", "gpus=8x80GB")))


if __name__ == "__main__":
    main()
