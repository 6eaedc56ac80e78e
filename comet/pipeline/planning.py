"""Plans of pipelines on other machines: the numbers and tables of scripts/plan_pipeline.py.

Nothing is loaded or measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from transformers import AutoConfig, PretrainedConfig

from breviary.backbones.pretrained import DTYPES, check_architecture
from breviary.backbones.shape import KNOWN_SHAPES, BackboneShape
from breviary.config.errors import raise_problems
from breviary.config.keys import CONFIGS
from breviary.evaluation.table import TABLE_WIDTH, print_block
from comet.pipeline.cost import MemoryShape, PipelinePlan
from comet.pipeline.schedule import SCHEDULES

SIZES = {"chunk": "chunk_size", "stride": "stride", "slots": "global_slots", "queue": "queue_budget"}  # of compressor.*
LOWEST = {"chunk": 1, "stride": 1, "slots": 0, "queue": 0}
HEADER = (
    "R",
    "dp",
    "schedule",
    "chunks",
    "tasks",
    "makespan",
    "bubble",
    "weighted bubble",
    "speed-up",
    "message MB",
    "border GB",
    "sent GB",
    "gradients GB",
    "activations GB",
    "state MB",
    "total GB",
    "fits",
)
EXPLANATION = (
    "A task is one layer over one chunk. makespan: duration of a forward pass in tasks, all tasks equal; bubble: "
    "idle share of the ranks' time; weighted: with each task's multiplications, as in the speed-up over one process "
    "on one text. message: the longest; border: the messages of all layers where a chunk's memory is sent to "
    "another rank, forward and backward; sent: by the busiest rank for one text; gradients: by each process for one "
    "step. activations: saved for the backward pass by the rank that holds most; state: the memory of one text; "
    "total: with weights, gradients, optimizer state, unanswered messages and the layer that is recomputed."
)


@dataclass(frozen=True)
class PlanOptions:
    """What all cases share.

    model       a YAML of configs/backbone, a folder, a hub name or a config.json
    ranks       numbers of ranks R; () = 1, 2, 4, ... up to the number of processes
    gb          memory of a device, 10^9 bytes
    ddp         optimizer state on every process; False: ZeRO 1 or 2
    supervised  supervised tokens of each chunk, beyond the few of an answer
    sizes       {key of SIZES: value}; others as in configs/compressor/comet.yaml
    """

    model: str
    ranks: tuple[int, ...] = ()
    schedules: tuple[str, ...] = SCHEDULES
    gb: float = 80
    dtype: str = "bfloat16"
    ddp: bool = False
    supervised: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def memory(self) -> MemoryShape:
        """Sizes of chunks and memory."""
        defaults = OmegaConf.load(CONFIGS / "compressor" / "comet.yaml")
        sizes = {name: defaults[key] for name, key in SIZES.items()} | self.sizes
        return MemoryShape(**sizes, rank=defaults.adapter_rank)

    def plans(self, case: str) -> list[PipelinePlan]:
        """The plans of a case TOKENS:PROCESSES, one for each number of ranks and schedule.

        Raises: ConfigError with all problems.
        """
        tokens, _, world = case.partition(":")
        if not (tokens.isdecimal() and world.isdecimal() and int(tokens) and int(world)):
            raise ValueError(f"--cases {case}: expected TOKENS:PROCESSES, e.g. 131072:16")
        processes = int(world)
        ranks = self.ranks or [2**power for power in range(processes.bit_length()) if processes % 2**power == 0]
        problems = [
            f"--ranks {count}: must divide the {processes} processes of --cases {case}"
            for count in ranks
            if count < 1 or processes % count
        ]
        memory = self.memory
        problems += [
            f"--{name} {getattr(memory, name)}: must be at least {lowest}"
            for name, lowest in LOWEST.items()
            if getattr(memory, name) < lowest
        ]
        if self.supervised < 0:
            problems.append(f"--supervised {self.supervised}: must be at least 0")
        if self.gb <= 0:
            problems.append(f"--gb {self.gb}: must be above 0, e.g. 80")
        raise_problems(problems)
        shape, dtype = load_shape(self.model), DTYPES[self.dtype]
        return [
            PipelinePlan(
                shape, memory, int(tokens), count, processes // count, schedule, dtype, not self.ddp, self.supervised
            )
            for count in ranks
            for schedule in (self.schedules if count > 1 else self.schedules[-1:])
        ]

    def title(self, plan: PipelinePlan) -> str:
        """Title of the table of a case, from one of its plans."""
        m, optimizer = plan.memory, "DDP" if self.ddp else "ZeRO"
        return (
            f"{Path(self.model).stem}: {plan.tokens:,} tokens on {plan.ranks * plan.dp} x {self.gb:g} GB, "
            f"{self.dtype}, {optimizer}, checkpointing; c = {m.chunk}, s = {m.stride}, G = {m.slots}, B = {m.queue}"
        )


def load_shape(model: str) -> BackboneShape:
    """The model's sizes; those of the papers' backbones need no network. Raises: as `load_config`."""
    yaml = CONFIGS / "backbone" / f"{model}.yaml"
    name = OmegaConf.load(yaml).get("path", "") if yaml.is_file() else model
    return KNOWN_SHAPES.get(name) or BackboneShape.from_config(load_config(model))


def load_config(model: str) -> PretrainedConfig:
    """The model's configuration.

    Raises: ValueError where it cannot be loaded; ConfigError for an unsupported architecture.
    """
    yaml = CONFIGS / "backbone" / f"{model}.yaml"
    path = OmegaConf.load(yaml).get("path", "") if yaml.is_file() else model
    if not path:
        raise ValueError(f"--model {model}: this YAML has no path; expected a folder, a hub name or a config.json")
    try:
        config = AutoConfig.from_pretrained(str(Path(path).expanduser()) if path.startswith("~") else path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model {model}: the configuration cannot be loaded ({str(error).splitlines()[0]}); expected a folder, a "
            "reachable hub name, or a config.json, e.g. results/comet/qwen3_4b.json"
        ) from error
    raise_problems(check_architecture(config))
    return config


def plan_row(plan: PipelinePlan, gb: float) -> dict[str, Any]:
    """All numbers of a plan, for JSON; byte counts unless a key states otherwise."""
    held = plan.memory_bytes()
    return {
        "tokens": plan.tokens,
        "ranks": plan.ranks,
        "dp": plan.dp,
        "schedule": plan.schedule if plan.ranks > 1 else "-",
        **plan.timing(),
        **{f"sent_{name}": value for name, value in plan.traffic().items()},
        **{f"kept_{name}": value for name, value in held.items()},
        "fits": held["total"] <= gb * 1e9,
    }


def table_cells(row: dict[str, Any]) -> list[str]:
    """Cells of a result of `plan_row`, under HEADER."""

    def giga(name: str) -> str:
        return f"{row[name] / 1e9:.1f}"

    return [
        str(row["ranks"]),
        str(row["dp"]),
        row["schedule"],
        str(row["chunks"]),
        f"{row['cells']:,}",
        f"{row['makespan']:,.0f}",
        f"{row['bubble']:.1%}",
        f"{row['weighed_bubble']:.1%}",
        f"{row['speedup']:.2f}x",
        f"{row['sent_message'] / 1e6:.1f}",
        giga("sent_border"),
        giga("sent_rank"),
        giga("sent_gradients"),
        giga("kept_activations"),
        f"{row['kept_state'] / 1e6:.0f}",
        giga("kept_total"),
        "yes" if row["fits"] else "no",
    ]


def print_plans(cases: Sequence[Sequence[PipelinePlan]], options: PlanOptions) -> None:
    """Prints one table per case."""
    for plans in cases:
        print(options.title(plans[0]))
        rows = [table_cells(plan_row(plan, options.gb)) for plan in plans]
        print_block(Console(width=TABLE_WIDTH), HEADER, rows)


def plans_markdown(cases: Sequence[Sequence[PipelinePlan]], options: PlanOptions, command: str) -> str:
    """A page with the command, an explanation of the columns, and one table per case."""
    lines = ["# Pipelines planned, not run", "", f"`{command}`", "", EXPLANATION, ""]
    for plans in cases:
        lines += [f"## {options.title(plans[0])}", "", "| " + " | ".join(HEADER) + " |", "|" + " --: |" * len(HEADER)]
        lines += ["| " + " | ".join(table_cells(plan_row(plan, options.gb))) + " |" for plan in plans] + [""]
    return "\n".join(lines)
