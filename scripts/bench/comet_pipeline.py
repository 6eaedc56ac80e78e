"""CoMeT's pipeline of two processes against one process: time, idle time, and a figure of all tasks.

    python scripts/bench/comet_pipeline.py
    python scripts/bench/comet_pipeline.py --runs 5 --chunks 8 --layers 30 --output results/comet/pipeline
    python scripts/bench/comet_pipeline.py --chunks 16 --width 256 --slots 32

Two processes with one thread on one CPU core each process one text, forward and backward. Variants, in alternating
runs: cyclic, contiguous, naive (a rank's whole block, then all its messages), and rank 0 alone on the same text.
Weights are random, in float32; layers are large enough that computation dominates. A bound is the speed-up that the
schedule allows: all multiplications divided by those on the critical path. Cores share memory and clock, so both ranks
also process the whole text at the same time without messages; the bound "here" is lower by that slowdown. Then
makespans of 2 and 4 ranks: every task sleeps for a fixed time, so that more ranks than cores do not slow each other.
Writes OUTPUT.json, and OUTPUT.png: the tasks of each rank, recorded and simulated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()

from breviary.runs.environment import environment
from breviary.runtime.files import write_json
from breviary.runtime.spelling import command, next_line
from comet.bench.pipeline import (
    PipelineBenchmark,
    measure_makespans,
    measure_times,
    print_makespans,
    print_times,
    run_on_ranks,
)
from comet.bench.pipeline_figure import draw_pipeline

HELP = {
    "runs": "timed runs of each variant, after a warm-up",
    "chunks": "chunks of the text",
    "layers": "layers of the backbone",
    "chunk": "tokens of a chunk",
    "width": "width of the backbone",
    "slots": "global slots",
    "queue": "queue budget",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in asdict(PipelineBenchmark()).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=HELP[name])
    parser.add_argument("--output", metavar="PATH", help="path of both files, without suffix")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints two tables, writes a JSON file and a figure."""
    args = build_parser().parse_args(arguments)
    quiet_libraries()
    benchmark = PipelineBenchmark(**{name: getattr(args, name) for name in HELP})
    measured: dict[str, Any] = {"schema": 1, **vars(args), "environment": environment()}
    measured["timed"] = run_on_ranks(2, measure_times, benchmark)
    print_times(measured["timed"])
    if args.output:
        write_json(f"{args.output}.json", measured)  # before the makespans, so that an interruption does not lose it
    measured["cells"] = [row for count in (2, 4) for row in run_on_ranks(count, measure_makespans, benchmark)]
    print_makespans(measured["cells"])
    if args.output:
        write_json(f"{args.output}.json", measured)
        draw_pipeline(measured["timed"], Path(f"{args.output}.png"))
        print(f"{args.output}.json, {args.output}.png")
    print(next_line(command("scripts/plan_pipeline.py", "--model", "qwen3_4b", "--cases", "131072:16")))


if __name__ == "__main__":
    main()
