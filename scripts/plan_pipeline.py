"""Plans a pipeline of CoMeT before a GPU is requested: tasks, idle time, bytes sent, memory of each rank.

    python scripts/plan_pipeline.py --model qwen3_4b --cases 131072:16 1048576:64
    python scripts/plan_pipeline.py --cases 131072:16 --ranks 4 8 --gb 40 --ddp
    python scripts/plan_pipeline.py --model config.json --cases 65536:8 --output results/comet/plan

MODEL is a YAML of configs/backbone, a folder or hub name in Hugging Face format, or a config.json. A case is
TOKENS:PROCESSES; its table has one row for each schedule and each number of ranks R that divides the processes. Chunks
and memory are those of configs/compressor/comet.yaml by default. Nothing is loaded or measured: schedules are simulated
(comet/pipeline/schedule.py) and bytes counted (comet/pipeline/cost.py), with activation checkpointing. Writes OUTPUT.md
and OUTPUT.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from breviary.config.cli.choices import group_choices
from breviary.config.errors import cli_errors
from breviary.runtime.files import write_json, write_text
from breviary.runtime.spelling import command, next_line
from comet.pipeline.planning import SIZES, PlanOptions, plan_row, plans_markdown, print_plans
from comet.pipeline.schedule import SCHEDULES


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3_4b")
    parser.add_argument("--cases", nargs="+", default=["131072:16", "1048576:64"], metavar="TOKENS:PROCESSES")
    parser.add_argument("--ranks", type=int, nargs="*", default=[], help="R; default: 1, 2, 4, ... up to the processes")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--gb", type=float, default=80, help="memory of a device in 10^9 bytes")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--ddp", action="store_true", help="full optimizer state on every process; default: ZeRO 1 or 2"
    )
    parser.add_argument("--supervised", type=int, default=0, help="supervised tokens of each chunk, beyond an answer's")
    for name, key in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=f"compressor.{key}")
    parser.add_argument("--output", metavar="PATH", help="path of both files, without suffix")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each case; user errors exit with code 2."""
    args = build_parser().parse_args(arguments)
    options = PlanOptions(
        args.model,
        tuple(args.ranks),
        tuple(args.schedules),
        args.gb,
        args.dtype,
        args.ddp,
        args.supervised,
        {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None},
    )
    with cli_errors():
        cases = [options.plans(case) for case in args.cases]
    print_plans(cases, options)
    if args.output:
        words = sys.argv[1:] if arguments is None else arguments
        line = shlex.join(["python", "scripts/plan_pipeline.py", *words])
        write_text(f"{args.output}.md", plans_markdown(cases, options, line))
        write_json(f"{args.output}.json", [plan_row(plan, options.gb) for plans in cases for plan in plans])
        print(f"{args.output}.md, {args.output}.json")
    backbone = [f"backbone={args.model}"] if args.model in group_choices("backbone") else []
    count = int(args.cases[0].partition(":")[2])  # checked by `plans`
    engine = ["engine=pipeline", f"engine.ranks={count}"]
    print(next_line(command("train.py", "experiment=comet_nq", *backbone, *engine, processes=count)))


if __name__ == "__main__":
    main()
