"""What a table takes before anything is started: its trainings and evaluations, hours and memory on a named device."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from breviary.report.tables.cells import (
    command_estimate,
    command_words,
    evaluation_estimate,
    finished_training,
    has_shape,
    is_script,
)
from breviary.report.tables.form import cell_commands, cell_name, cells_of
from breviary.report.tables.measured import Part, part_command, row_variant, training_command
from breviary.report.tables.run import evaluated_cells
from breviary.runtime.spelling import setting
from breviary.training.cost import devices
from breviary.training.cost.devices import DEVICES, Device
from breviary.training.cost.estimate import Estimate

DEFAULT_DEVICES = {"small": "cpu", "paper": "a100"}


def find_device(name: str | None, scale: str) -> Device:
    """The device of this name; None = the usual one of the scale. Raises: ValueError for an unknown name."""
    return devices.find_device(name or DEFAULT_DEVICES[scale])


def hours_on(device: Device, estimate: Estimate) -> float:
    """Hours on as many devices as the estimate has processes."""
    return (estimate.flops / estimate.processes / device.flops + estimate.moved / device.bandwidth) / 3600


@dataclass
class Step:
    """One command of a plan.

    cells      that need it, "ROW/DATASET"
    estimate   None for a script, whose `time` the table states
    finished   where its result is; None = to be done
    """

    command: str
    kind: str
    cells: list[str]
    estimate: Estimate | None
    time: str | None = None
    finished: str | None = None


Finished = Callable[[str, str | None], str | None]


def plan_steps(
    table: Mapping[str, Any], only: Sequence[str], trained: Finished, evaluated: Mapping[str, str]
) -> list[Step]:
    """Every command of the wanted cells once, in the order of the runs: trainings before what they serve.

    trained    (training command, run of the stage before or None) -> its finished run, or None
    evaluated  cell -> its results
    """
    steps: dict[tuple[str, ...], Step] = {}
    for row, dataset in cells_of(table, only):
        commands, facts, name = cell_commands(table, row, dataset), table["datasets"][dataset], cell_name(row, dataset)
        done, start = evaluated.get(name), None
        for i, command in enumerate(commands):
            is_last = i == len(commands) - 1
            key = tuple(commands[: i + 1]) if i else (command,)  # a second stage is another one after another first
            step = steps.get(key)
            if step is None:
                kind = "measure" if is_script(command) else "evaluate" if is_last else "train"
                estimate = _estimate(kind, commands[: i + 1], facts)
                step = steps[key] = Step(command, kind, [], estimate, row["time"] if kind == "measure" else None)
                is_known = kind == "train" and (i == 0 or start is not None)
                step.finished = trained(command, start) if is_known else None
            step.cells.append(name)
            start = step.finished
            if is_last:  # finished where all of its cells are
                step.finished = done if step.cells == [name] or step.finished else None
    return list(steps.values())


def _estimate(kind: str, commands: Sequence[str], dataset: Mapping[str, Any]) -> Estimate | None:
    """None where there is none: a script, or a backbone whose sizes are not known."""
    if kind == "measure" or not has_shape(commands):
        return None
    if kind == "train":
        return command_estimate(commands[-1], dataset["tokens"])
    return evaluation_estimate(commands, dataset["tokens"], dataset["n"] or dataset.get("size") or 1000)


# ------------------------------------------------------------------ text


def table_plan_lines(
    table: Mapping[str, Any], only: Sequence[str], device: Device, outputs: str = "outputs"
) -> list[str]:
    """The plan of a table at one scale; marks what is finished below `outputs` and in the table's folder."""

    def trained(command: str, start: str | None) -> str | None:
        first = [setting("init_from", start)] if start else []
        run = finished_training([*command_words(command), *first, setting("paths.outputs", outputs)])
        return str(run) if run else None

    finished, failed = evaluated_cells(table)
    given = {cell_name(row, key): row["runs"][key] for row, key in cells_of(table, only) if key in row["runs"]}
    steps = plan_steps(table, only, trained, finished | given)
    return plan_lines(table["title"], table["scale"], steps, device, failed)


def measured_plan_lines(table: Mapping[str, Any], outputs: str, device: Device) -> list[str]:
    """The plan of a table with parts: one evaluation each, its rows as variants."""
    lines = [f"# {table['title']}", f"# estimates for {device.title}; {ESTIMATES}"]
    for part in table["parts"]:
        lines += ["", f"# part {part.name}: {part.title}; {len(part.rows)} rows; finished rows are found again"]
        for words in part.train:
            lines.append(training_command(words))
        hours = _part_hours(table, part, device)
        lines.append("# not estimated" if hours is None else f"# about {format_hours(hours)}")
        lines.append(part_command(table, part, outputs))
    return lines


def _part_hours(table: Mapping[str, Any], part: Part, device: Device) -> float | None:
    """Hours of a part's rows, each of which is taken to encode every context; None for a backbone of unknown sizes."""
    hours, count = 0.0, next((int(n) for n in [part.value("examples")] if n and n.isdecimal()), 1000)
    for reader, ratio in part.rows:
        variant = row_variant(table, reader, ratio)
        own = part.overrides(["run", "examples", "compare", *variant])
        words = shlex.join(["python", "eval.py", *own, *(setting(key, value) for key, value in variant.items())])
        commands = [*map(training_command, part.train), words]
        if not has_shape(commands):
            return None
        hours += hours_on(device, evaluation_estimate(commands, part.tokens, count))
    return hours


def plan_lines(title: str, scale: str, steps: Sequence[Step], device: Device, failed: Collection[str]) -> list[str]:
    """The plan as lines of a shell script: comments and commands, each command once, and the total."""
    todo = [step for step in steps if not step.finished]
    lines = [f"# {title}", f"# scale={scale}: {_counts(steps)}", f"# estimates for {device.title}; {ESTIMATES}", ""]
    for step in steps:
        lines += [f"# {step.kind}: {_cells(step.cells)}", f"# {_state(step, device, failed)}", step.command, ""]
    if not todo:
        return [*lines, "# nothing to do" if steps else "# nothing here computes this table: published numbers only"]
    estimated = [hours_on(device, step.estimate) for step in todo if step.estimate]
    hours = f", about {format_hours(sum(estimated))} one after another" if estimated else ""
    lines.append(f"# to do: {len(todo)} of {len(steps)} commands{hours}")
    if stated := [step.time for step in todo if step.time]:
        lines.append(f"# time of scripts, as the table states it: {'; '.join(dict.fromkeys(stated))}")
    if tight := [step for step in todo if step.estimate and step.estimate.bytes > device.memory]:
        smaller = "a smaller eval_batch_size, or " if any(step.kind == "evaluate" for step in tight) else ""
        others = ", ".join(name for name, one in DEVICES.items() if one.memory > device.memory) or "none is larger"
        lines.append(f"# {len(tight)} of them need more memory than {device.title}: {smaller}device= ({others})")
    return lines


ESTIMATES = "memory by docs/scale.md, at mean lengths; hours within a factor of two (cpu: three)"


def _counts(steps: Sequence[Step]) -> str:
    parts = []
    for kind, one, many in (
        ("train", "training", "trainings"),
        ("evaluate", "evaluation", "evaluations"),
        ("measure", "script", "scripts"),
    ):
        found = [step for step in steps if step.kind == kind]
        if found:
            done = sum(step.finished is not None for step in found)
            parts.append(f"{len(found)} {one if len(found) == 1 else many} ({done} finished)")
    return ", ".join(parts) or "nothing to compute"


def _cells(cells: Sequence[str]) -> str:
    return ", ".join(cells[:4]) + (f" and {len(cells) - 4} more cells" if len(cells) > 4 else "")


def _state(step: Step, device: Device, failed: Collection[str]) -> str:
    state = f"finished: {step.finished}" if step.finished else "to do"
    if not step.finished and step.kind != "train" and any(cell in failed for cell in step.cells):
        state = "failed before, will be tried again"
    if step.estimate is None:
        why = "" if step.kind == "measure" else ": the sizes of the backbone are not known"
        return f"{state}; {step.time or f'not estimated{why}'}"
    size, count = step.estimate.bytes, step.estimate.processes
    where = f"on each of {count} {device.unit}s" if count > 1 else f"on one {device.unit}"
    fits = "" if size <= device.memory else f", MORE than its {device.memory / 1e9:.0f} GB"
    batch = f"; global batch {step.estimate.global_batch}" if step.kind == "train" else ""
    hours = format_hours(hours_on(device, step.estimate))
    return f"{state}; about {hours}, {size / 1e9:.1f} GB {where}{fits}{batch}"


def format_hours(hours: float) -> str:
    """0.02 as "1 minute", 0.4 as "24 minutes", 2.34 as "2.3 hours"."""
    if hours < 1:
        minutes = max(1, round(60 * hours))
        return f"{minutes} minute{'s' * (minutes > 1)}"
    return f"{hours:.0f} hours" if hours >= 10 else f"{hours:.1f} hours"
