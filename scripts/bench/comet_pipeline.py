"""CoMeT's layer pipeline against one process: time, waiting, and when which rank computed what.

    python scripts/bench/comet_pipeline.py [--runs 5] [--chunks 8] [--layers 30] [--output results/comet/pipeline]

Two processes on the CPU, pinned to one core and one thread each, read one text forward and back: cyclic, contiguous, and handed
over naively (a rank's whole block, then all its messages), each beside rank 0 alone on the same text in the same run, in turn.
Random weights, float32, kv_prefix; layers heavy enough that computing dominates. A bound is what the schedule allows: all
multiplications by those on the longest way. Cores share memory and clock: both ranks also read the whole text at once, nothing
sent, and by as much as that is slower than one alone the bound is lower on these cores. Then cells as the unit, 2 and 4 ranks: a
cell sleeps for a fixed time, so more ranks than cores do not disturb one another. Writes OUTPUT.json, and OUTPUT.png: rank by
cell as recorded, the simulator's below.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from hydra import compose, initialize_config_dir
from rich.console import Console
from torch import Tensor

from breviary.config.build import build_backbone, build_reader
from breviary.evaluation.table import TABLE_WIDTH, print_block
from breviary.runs.environment import environment
from breviary.runtime.distributed import gather_rows, rank
from breviary.runtime.files import write_json
from breviary.training.pipeline import init_pipeline_group
from comet.model import Comet
from comet.pipeline.chunk_pipeline import Pipeline
from comet.pipeline.cost import Memory, Shape, parts_of
from comet.pipeline.monitor import BACKWARD, FORWARD, spans_of
from comet.pipeline.schedule import Cell, owners, simulate
from comet.pipeline.transfer import Passage, PipelineHandoff, PipelinePassage
from comet.text import Text, steps_of

VARIANTS = ("cyclic", "contiguous", "naive")
BACK = 2  # a cell's backward pass by its forward pass, without checkpointing
SLEEP = 0.02  # seconds of a cell that is only counted
PATIENCE = 1800.0  # seconds that a rank may wait for another


class NaiveHandoff(PipelineHandoff):
    """What crosses a border is sent when all layers of it are there: as the paper's baseline."""

    def open(self, *arguments: Any) -> Passage:
        """As PipelineHandoff's."""
        self.finish()
        self.step += 1
        return NaivePassage(self, *arguments)


class NaivePassage(PipelinePassage):
    """Contiguous blocks have one border to each neighbour: L messages each way."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._held: dict[int, list[tuple[Any, ...]]] = {}

    def send(self, cell: Cell, direction: int, carried: Tensor, queue: Tensor) -> None:
        """As PipelinePassage's, once the last layer's is there."""
        held = self._held.setdefault(direction, [])
        held.append((cell, direction, carried, queue))
        if len(held) == self.layers:
            for arguments in held:
                super().send(*arguments)
            held.clear()


def main() -> None:
    """Measures, prints two tables, writes JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=5, help="of each variant; the first, for warming up, is not counted"
    )
    for name, default in (("chunks", 8), ("layers", 30), ("chunk", 512), ("width", 320), ("slots", 64), ("queue", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", default=None, help="without ending")
    given = parser.parse_args()
    quiet_libraries()
    measured: dict[str, Any] = {"schema": 1, **vars(given), "environment": environment()}
    measured["timed"] = started(2, timed, given)
    show_times(measured["timed"])
    measured["cells"] = [row for count in (2, 4) for row in started(count, counted, given)]
    show_cells(measured["cells"])
    if given.output:
        write_json(f"{given.output}.json", measured)
        draw(measured["timed"], Path(f"{given.output}.png"))
        print(f"{given.output}.json, {given.output}.png")


# ------------------------------------------------------------------ processes


def started(count: int, function: Callable[[argparse.Namespace], Any], given: argparse.Namespace) -> Any:
    """What `function(given)` gives on rank 0 of `count` pinned processes."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        processes.spawn(_rank, (count, port, function, given, f"{folder}/result.pt"), count)
        return torch.load(f"{folder}/result.pt", weights_only=False)


def _rank(
    index: int,
    count: int,
    port: int,
    function: Callable[[argparse.Namespace], Any],
    given: argparse.Namespace,
    file: str,
) -> None:
    quiet_libraries()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index % len(cores)]})
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    dist.init_process_group("gloo")
    result = function(given)
    if index == 0:
        torch.save(result, file)
    dist.barrier()
    dist.destroy_process_group()


def reader_of(given: argparse.Namespace) -> Comet:
    """Random weights, in training; the same on every rank."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(
            "train",
            [
                "compressor=comet",
                "backbone=tiny",
                "decoder.train=full",
                f"backbone.layers={given.layers}",
                f"backbone.width={given.width}",
                f"compressor.chunk_size={given.chunk}",
                f"compressor.global_slots={given.slots}",
                f"compressor.queue_budget={given.queue}",
                "compressor.strategy=fixed",
            ],
        )
    backbone = build_backbone(cfg)
    return build_reader(cfg, backbone, backbone.tokenizer()).train()


def text_of(given: argparse.Namespace) -> Text:
    """Full chunks; an answer of eight tokens is supervised, at the end."""
    tokens = given.chunks * given.chunk
    ids = torch.randint(2, 500, (1, tokens), generator=torch.Generator().manual_seed(0))
    asked = torch.zeros_like(ids, dtype=torch.bool)
    asked[0, -9:-1] = True
    return Text(ids, asked, steps_of([[[given.chunk] * given.chunks]]), [8])


# ------------------------------------------------------------------ times


def timed(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one text, forward and back: each variant, and rank 0 alone; with the events of the last run of each."""
    reader, text, place = reader_of(given), text_of(given), init_pipeline_group(2, PATIENCE)
    pipelines = {
        name: Pipeline(
            (NaiveHandoff if name == "naive" else PipelineHandoff)(place), "contiguous" if name == "naive" else name
        )
        for name in VARIANTS
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("alone", "both", *VARIANTS)}
    events: dict[str, Any] = {}
    for run in range(given.runs + 1):
        for name in seconds:
            reader.pipeline = pipelines.get(name)
            if reader.pipeline:
                reader.pipeline.handoff.events = []
            took = read(reader, text, alone=name == "alone")  # both: each rank the whole text, as no pipeline is joined
            if run:
                seconds[name].append(took)
            if reader.pipeline:
                events[name] = gather_rows([reader.pipeline.handoff.events])
            if rank() == 0:
                print(f"run {run}, {name}: {took:.2f} s", flush=True)
    return {
        "rows": [variant_row(name, seconds, reader, given) for name in VARIANTS],
        "seconds": seconds,
        "events": events,
        "costs": costs_of(reader, given),
        "ranks": 2,
    }


def read(reader: Comet, text: Text, alone: bool) -> float:
    """Seconds from when all are there until all have their gradients; alone = the other ranks wait."""
    reader.zero_grad()
    dist.barrier()
    start = time.monotonic()
    if rank() == 0 or not alone:
        reader.nll(text).sum().backward()
    dist.barrier()
    return time.monotonic() - start


def costs_of(reader: Comet, given: argparse.Namespace) -> list[int]:
    """Multiplications of a layer over each chunk."""
    shape, memory = Shape.of(reader.decoder.config), Memory(given.chunk, 8, given.slots, given.queue)
    return [part.multiplications(shape) for part in parts_of(given.chunks * given.chunk, memory)]


def variant_row(name: str, seconds: dict[str, list[float]], reader: Comet, given: argparse.Namespace) -> dict[str, Any]:
    """One variant: median seconds, median, least and largest of the ratios run by run, what its schedule allows, and what it allows
    on cores that slow one another as they do here."""
    ratios = [one / other for one, other in zip(seconds["alone"], seconds[name])]
    costs = costs_of(reader, given)
    bound = 1.0
    if name != "naive":
        planned = simulate(given.chunks, given.layers, 2, name, lambda chunk, layer: costs[chunk])
        bound = given.layers * sum(costs) / planned.makespan
    naive = [one / other for one, other in zip(seconds["naive"], seconds[name])]
    shared = statistics.median(one / other for one, other in zip(seconds["alone"], seconds["both"]))
    return {
        "variant": name,
        "seconds": statistics.median(seconds[name]),
        "alone_s": statistics.median(seconds["alone"]),
        "speedup": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "bound": bound,
        "bound_here": bound * (1.0 if name == "naive" else shared),  # naively, no two cores compute at once
        "against_naive": statistics.median(naive),
    }


def show_times(measured: dict[str, Any]) -> None:
    """Prints the variants."""
    print_block(
        Console(width=TABLE_WIDTH),
        (
            "2 ranks",
            "s",
            "alone s",
            "faster than alone",
            "lowest",
            "highest",
            "bound",
            "on these cores",
            "faster than naive",
        ),
        [
            [
                row["variant"],
                *(
                    f"{row[key]:.2f}"
                    for key in (
                        "seconds",
                        "alone_s",
                        "speedup",
                        "lowest",
                        "highest",
                        "bound",
                        "bound_here",
                        "against_naive",
                    )
                ),
            ]
            for row in measured["rows"]
        ],
    )


# ------------------------------------------------------------------ cells


def counted(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows: forward makespan in cells, each of which sleeps, beside the simulator's; this many ranks."""
    small = argparse.Namespace(**{**vars(given), "chunk": 32, "width": 32, "slots": 4, "queue": 8})
    reader, text, ranks = reader_of(small), text_of(small), dist.get_world_size()
    place, cell, rows = init_pipeline_group(ranks, PATIENCE), reader.memory.cell, []

    def slow(*arguments: Any) -> Any:
        begun = time.monotonic()
        result = cell(*arguments)
        time.sleep(max(SLEEP - (time.monotonic() - begun), 0))
        return result

    for schedule in ("contiguous", "cyclic"):
        spans: dict[Cell, tuple[float, float]] = {}
        reader.memory.cell = slow
        reader.join_pipeline(place, schedule)
        reader.pipeline.handoff.events = []
        reader.nll(text).sum().backward()
        for own in gather_rows([reader.pipeline.handoff.events]):
            spans |= spans_of(own, FORWARD)
        took = max(end for _, end in spans.values()) - min(start for start, _ in spans.values())
        planned = simulate(given.chunks, given.layers, ranks, schedule)
        rows.append(
            {
                "ranks": ranks,
                "schedule": schedule,
                "cells": took / SLEEP,
                "planned": planned.makespan,
                "bubble": 1 - given.chunks * given.layers * SLEEP / (ranks * took),
                "planned_bubble": planned.bubble,
            }
        )
    return rows


def show_cells(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the counted makespans."""
    print_block(
        Console(width=TABLE_WIDTH),
        ("cells of equal length", "ranks", "makespan", "simulated", "bubble", "simulated"),
        [
            [
                row["schedule"],
                str(row["ranks"]),
                f"{row['cells']:.1f}",
                f"{row['planned']:.0f}",
                f"{row['bubble']:.1%}",
                f"{row['planned_bubble']:.1%}",
            ]
            for row in rows
        ],
    )


# ------------------------------------------------------------------ picture


def draw(measured: dict[str, Any], file: Path) -> None:
    """Rank by cell over time: what was recorded, and what the simulator says of cells as long as their multiplications."""
    names = [name for name in VARIANTS if name in measured["events"]]
    figure, axes = plt.subplots(
        2 * len(names), 1, figsize=(12, 1.5 * 2 * len(names)), layout="constrained", sharex=True
    )
    for number, name in enumerate(names):
        lanes = [
            {direction: spans_of(own, direction) for direction in (FORWARD, BACKWARD)}
            for own in measured["events"][name]
        ]
        begin = min(span[0] for lane in lanes for spans in lane.values() for span in spans.values())
        _lanes(axes[2 * number], lanes, begin, f"{name}: recorded")
        unit = sum(end - start for lane in lanes for spans in lane.values() for start, end in spans.values())
        _lanes(axes[2 * number + 1], simulated(name, measured, unit), 0.0, f"{name}: simulated")
    axes[-1].set(xlabel="seconds; dark = forward, light = backward, a colour for each chunk")
    figure.savefig(file, dpi=150)


def simulated(name: str, measured: dict[str, Any], seconds: float) -> list[dict[int, dict[Cell, tuple[float, float]]]]:
    """Lanes of the simulator; all cells together take so many seconds. A backward pass is the forward pass turned round."""
    costs, ranks = measured["costs"], measured["ranks"]
    cells = {cell for own in measured["events"][name] for cell in spans_of(own, FORWARD)}
    chunks, layers = 1 + max(chunk for chunk, _ in cells), 1 + max(layer for _, layer in cells)
    schedule = "contiguous" if name == "naive" else name
    unit = seconds / (layers * sum(costs) * (1 + BACK))
    owner = owners(chunks, ranks, schedule)
    forward = (
        naive_spans(owner, layers, costs)
        if name == "naive"
        else simulate(chunks, layers, ranks, schedule, lambda chunk, layer: costs[chunk]).spans
    )
    turn = max(end for _, end in forward.values())
    lanes: list[dict[int, dict[Cell, tuple[float, float]]]] = [{FORWARD: {}, BACKWARD: {}} for _ in range(ranks)]
    for cell, (start, end) in forward.items():
        lanes[owner[cell[0]]][FORWARD][cell] = start * unit, end * unit
        lanes[owner[cell[0]]][BACKWARD][cell] = (
            (turn + BACK * (turn - end)) * unit,
            (turn + BACK * (turn - start)) * unit,
        )
    return lanes


def naive_spans(owner: Sequence[int], layers: int, costs: Sequence[int]) -> dict[Cell, tuple[float, float]]:
    """A rank begins when the one before has ended: nothing overlaps."""
    spans, at = {}, 0.0
    for reader in sorted(set(owner)):
        for layer in range(layers):
            for chunk in (number for number, its in enumerate(owner) if its == reader):
                spans[chunk, layer] = at, at + costs[chunk]
                at += costs[chunk]
    return spans


def _lanes(axis: plt.Axes, lanes: list[dict[int, dict[Cell, tuple[float, float]]]], begin: float, title: str) -> None:
    colours = plt.get_cmap("tab10")
    for number, lane in enumerate(lanes):
        for direction, spans in lane.items():
            axis.broken_barh(
                [(start - begin, end - start) for start, end in spans.values()],
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


if __name__ == "__main__":
    main()
