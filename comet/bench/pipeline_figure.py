"""Figure of the pipeline benchmark: tasks of each rank over time, recorded and simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comet.bench.pipeline import VARIANTS
from comet.pipeline.monitor import BACKWARD, FORWARD, task_spans
from comet.pipeline.schedule import Task, chunk_owners, simulate

BACKWARD_COST = 2  # of a task's backward pass relative to its forward pass, without checkpointing
Spans = dict[Task, tuple[float, float]]
Lane = dict[int, Spans]  # spans of one rank by direction


def draw_pipeline(measured: dict[str, Any], file: Path) -> None:
    """Draws for each variant the recorded tasks, and below them simulated ones that take time by their multiplications.

    measured  result of `comet.bench.pipeline.measure_times`
    """
    names = [name for name in VARIANTS if name in measured["events"]]
    figure = Figure(figsize=(12, 1.5 * 2 * len(names)), layout="constrained")
    axes = figure.subplots(2 * len(names), 1, sharex=True)
    for number, name in enumerate(names):
        lanes = [
            {direction: task_spans(events, direction) for direction in (FORWARD, BACKWARD)}
            for events in measured["events"][name]
        ]
        spans = [span for lane in lanes for by_task in lane.values() for span in by_task.values()]
        _draw_lanes(axes[2 * number], lanes, min(start for start, _ in spans), f"{name}: recorded")
        busy = sum(end - start for start, end in spans)
        _draw_lanes(axes[2 * number + 1], simulated_lanes(name, measured, busy), 0.0, f"{name}: simulated")
    axes[-1].set(xlabel="seconds; dark = forward, light = backward, one colour per chunk")
    figure.savefig(file, dpi=150)


def simulated_lanes(name: str, measured: dict[str, Any], busy: float) -> list[Lane]:
    """Simulated lanes in which all tasks together take `busy` seconds.

    The backward pass is the reversed forward pass.
    """
    costs, ranks = measured["costs"], measured["ranks"]
    tasks = {task for events in measured["events"][name] for task in task_spans(events, FORWARD)}
    chunks, layers = 1 + max(chunk for chunk, _ in tasks), 1 + max(layer for _, layer in tasks)
    schedule = "contiguous" if name == "naive" else name
    unit = busy / (layers * sum(costs) * (1 + BACKWARD_COST))
    owners = chunk_owners(chunks, ranks, schedule)
    if name == "naive":
        forward = naive_spans(owners, layers, costs)
    else:
        forward = simulate(chunks, layers, ranks, schedule, lambda chunk, layer: costs[chunk]).spans
    turn = max(end for _, end in forward.values())
    lanes: list[Lane] = [{FORWARD: {}, BACKWARD: {}} for _ in range(ranks)]
    for task, (start, end) in forward.items():
        lane = lanes[owners[task[0]]]
        lane[FORWARD][task] = start * unit, end * unit
        lane[BACKWARD][task] = (
            (turn + BACKWARD_COST * (turn - end)) * unit,
            (turn + BACKWARD_COST * (turn - start)) * unit,
        )
    return lanes


def naive_spans(owners: Sequence[int], layers: int, costs: Sequence[int]) -> Spans:
    """A rank starts when the previous one has ended: nothing overlaps."""
    spans, time = {}, 0.0
    for rank in sorted(set(owners)):
        for layer in range(layers):
            for chunk in (number for number, owner in enumerate(owners) if owner == rank):
                spans[chunk, layer] = time, time + costs[chunk]
                time += costs[chunk]
    return spans


def _draw_lanes(axis: Axes, lanes: Sequence[Lane], origin: float, title: str) -> None:
    colours = colormaps["tab10"]
    for number, lane in enumerate(lanes):
        for direction, spans in lane.items():
            axis.broken_barh(
                [(start - origin, end - start) for start, end in spans.values()],
                (number - 0.4, 0.8),
                linewidth=0.2,
                edgecolor="white",
                facecolors=[colours(chunk % 10) for chunk, _ in spans],
                alpha=1.0 if direction == FORWARD else 0.5,
            )
    axis.set(
        yticks=range(len(lanes)),
        yticklabels=[f"rank {number}" for number in range(len(lanes))],
        ylim=(len(lanes) - 0.5, -0.5),
    )
    axis.set_title(title, loc="left", fontsize=9)
