"""What a pipeline of CoMeT would take, before any GPU is asked for: cells, waiting, bytes sent, memory of each rank.

    python scripts/plan_pipeline.py --model qwen3_4b --cases 131072:16 1048576:64 [--gb 80] [--output results/comet/plan]

MODEL is a YAML of configs/backbone, a folder or hub name in Hugging Face format, or a config.json. A case is TOKENS:PROCESSES; for
each number of ranks R that divides the processes there is a row for each schedule. Chunks and memory are those of
configs/compressor/comet.yaml unless given. Nothing is loaded or measured: schedules are simulated (comet/schedule.py), bytes
counted (comet/cost.py); checkpointing is on. Writes OUTPUT.md and OUTPUT.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from omegaconf import OmegaConf
from rich.console import Console
from transformers import AutoConfig, PretrainedConfig

from breviary.backbones.pretrained import DTYPES, check_architecture
from breviary.evaluation.table import TABLE_WIDTH, print_block
from breviary.runtime.files import write_json, write_text
from comet.pipeline.cost import Memory, Plan, Shape
from comet.pipeline.schedule import SCHEDULES

HEADER = (
    "R",
    "dp",
    "schedule",
    "chunks",
    "cells",
    "makespan",
    "bubble",
    "bubble, weighed",
    "faster than one",
    "message MB",
    "border GB",
    "sent GB",
    "gradients GB",
    "activations GB",
    "state MB",
    "all GB",
    "fits",
)
KEYS = {"chunk": "chunk_size", "stride": "stride", "slots": "global_slots", "queue": "queue_budget"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, prints a table for each case; what cannot be is told, with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3_4b")
    parser.add_argument("--cases", nargs="+", default=["131072:16", "1048576:64"], metavar="TOKENS:PROCESSES")
    parser.add_argument("--ranks", type=int, nargs="*", default=[], help="R; default: 1, 2, 4, ... up to the processes")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--gb", type=float, default=80, help="memory of a device, 10^9 bytes")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--ddp", action="store_true", help="optimizer state whole on every process; default: ZeRO 1 or 2"
    )
    parser.add_argument(
        "--supervised", type=int, default=0, help="supervised tokens of each chunk, beyond an answer's few"
    )
    for name, key in KEYS.items():
        parser.add_argument(f"--{name}", type=int, default=None, help=f"compressor.{key}")
    parser.add_argument("--output", default=None, help="without ending")
    given = parser.parse_args(arguments)
    try:
        cases = [plans_of(given, text) for text in given.cases]
    except ValueError as error:
        for sentence in str(error).splitlines():
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    console = Console(width=TABLE_WIDTH)
    for plans in cases:
        print(title_of(plans[0], given))
        print_block(console, HEADER, [cells_of(row(plan, given.gb)) for plan in plans])
    if given.output:
        words = arguments if arguments is not None else sys.argv[1:]
        write_text(f"{given.output}.md", markdown(cases, given, words))
        write_json(f"{given.output}.json", [row(plan, given.gb) for plans in cases for plan in plans])
        print(f"{given.output}.md, {given.output}.json")


def plans_of(given: argparse.Namespace, case: str) -> list[Plan]:
    """A case's plans. Raises: ValueError, all problems at once."""
    found: list[str] = []
    tokens, _, world = case.partition(":")
    if not (tokens.isdecimal() and world.isdecimal() and int(tokens) and int(world)):
        raise ValueError(f"--cases {case}: give TOKENS:PROCESSES, e.g. 131072:16")
    processes = int(world)
    ranks = given.ranks or [2**power for power in range(processes.bit_length()) if processes % 2**power == 0]
    found += [
        f"--ranks {count}: must divide the {processes} processes of --cases {case}"
        for count in ranks
        if count < 1 or processes % count
    ]
    memory = memory_of(given)
    found += [
        f"--{name} {getattr(memory, name)}: must be at least {lowest}"
        for name, lowest in (("chunk", 1), ("stride", 1), ("slots", 0), ("queue", 0))
        if getattr(memory, name) < lowest
    ]
    if given.supervised < 0 or given.gb <= 0:
        found.append(f"--supervised {given.supervised} must be 0 or more, --gb {given.gb} above 0")
    if found:
        raise ValueError("\n".join(found))
    shape = Shape.of(config_of(given.model))
    return [
        Plan(
            shape,
            memory,
            int(tokens),
            count,
            processes // count,
            schedule,
            DTYPES[given.dtype],
            not given.ddp,
            given.supervised,
        )
        for count in ranks
        for schedule in (given.schedules if count > 1 else given.schedules[-1:])
    ]


def memory_of(given: argparse.Namespace) -> Memory:
    """Chunks and memory of configs/compressor/comet.yaml, or as given."""
    defaults = OmegaConf.load(ROOT / "configs" / "compressor" / "comet.yaml")
    sizes = {
        name: defaults[key] if getattr(given, name) is None else getattr(given, name) for name, key in KEYS.items()
    }
    return Memory(**sizes, rank=defaults.adapter_rank)


def config_of(model: str) -> PretrainedConfig:
    """The model's configuration. Raises: ValueError where there is none, or it is of another architecture."""
    yaml = ROOT / "configs" / "backbone" / f"{model}.yaml"
    path = OmegaConf.load(yaml).get("path", "") if yaml.is_file() else model
    if not path:
        raise ValueError(f"--model {model}: that YAML names no path; give a folder, a hub name or a config.json")
    try:
        config = AutoConfig.from_pretrained(str(Path(path).expanduser()) if path.startswith("~") else path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model {model}: no configuration can be read ({str(error).splitlines()[0]}); give a folder, a hub "
            "name that can be reached, or a config.json, e.g. results/comet/qwen3_4b.json"
        ) from error
    problems = check_architecture(config)
    if problems:
        raise ValueError("\n".join(problems))
    return config


def row(plan: Plan, gb: float) -> dict[str, Any]:
    """Everything about one plan, plain numbers: seconds nowhere, bytes where a key says nothing else."""
    kept = plan.kept()
    return {
        "tokens": plan.tokens,
        "ranks": plan.ranks,
        "dp": plan.dp,
        "schedule": plan.schedule if plan.ranks > 1 else "-",
        **plan.computed(),
        **{f"sent_{name}": value for name, value in plan.sent().items()},
        **{f"kept_{name}": value for name, value in kept.items()},
        "fits": kept["total"] <= gb * 1e9,
    }


def cells_of(flat: dict[str, Any]) -> list[str]:
    """A row of the table."""

    def giga(name: str) -> str:
        return f"{flat[name] / 1e9:.1f}"

    return [
        str(flat["ranks"]),
        str(flat["dp"]),
        flat["schedule"],
        str(flat["chunks"]),
        f"{flat['cells']:,}",
        f"{flat['makespan']:,.0f}",
        f"{flat['bubble']:.1%}",
        f"{flat['weighed_bubble']:.1%}",
        f"{flat['speedup']:.2f}x",
        f"{flat['sent_message'] / 1e6:.1f}",
        giga("sent_border"),
        giga("sent_rank"),
        giga("sent_gradients"),
        giga("kept_activations"),
        f"{flat['kept_state'] / 1e6:.0f}",
        giga("kept_total"),
        "yes" if flat["fits"] else "no",
    ]


def title_of(plan: Plan, given: argparse.Namespace) -> str:
    """What a table is about."""
    m = plan.memory
    return (
        f"{Path(given.model).stem}: {plan.tokens:,} tokens on {plan.ranks * plan.dp} x {given.gb:g} GB, {given.dtype}, "
        f"{'DDP' if given.ddp else 'ZeRO'}, checkpointing; c = {m.chunk}, s = {m.stride}, G = {m.slots}, B = {m.queue}"
    )


def markdown(cases: list[list[Plan]], given: argparse.Namespace, words: Sequence[str]) -> str:
    """The file: command, what the columns mean, a table for each case."""
    lines = [
        "# Pipelines planned, not run",
        "",
        f"`python scripts/plan_pipeline.py {' '.join(words)}`",
        "",
        "A cell is one layer over one chunk. makespan: cells in time, forward, all cells equal; bubble: share of the ranks' "
        "time spent waiting; weighed: with each cell's multiplications, as faster than one (process, on one text) is. "
        "message: the longest; border: the messages of all layers where a chunk's memory goes to another rank, forth "
        "and back; sent: by the busiest rank for one text; gradients: by each process for one step. activations: kept for "
        "the backward pass by the rank that has most; state: the memory of one text; all: with weights, gradients, "
        "optimizer, messages under way and one layer computed again.",
        "",
    ]
    for plans in cases:
        lines += [f"## {title_of(plans[0], given)}", "", "| " + " | ".join(HEADER) + " |", "|" + " --: |" * len(HEADER)]
        lines += ["| " + " | ".join(cells_of(row(plan, given.gb))) + " |" for plan in plans] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
