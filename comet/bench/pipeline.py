"""Time of CoMeT's pipeline against one process, and makespans of its schedules, on pinned CPU processes."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from rich.console import Console
from torch import Tensor

from breviary.backbones.shape import BackboneShape
from breviary.evaluation.table import TABLE_WIDTH, print_block
from breviary.evaluation.timing import median_ratio, reader_from_overrides
from breviary.runtime.checkout import quiet_libraries
from breviary.runtime.distributed import gather_rows, rank
from breviary.training.pipeline import init_pipeline_group
from comet.chunked_text import ChunkedText, align_steps
from comet.model import Comet
from comet.pipeline.chunk_pipeline import ChunkPipeline
from comet.pipeline.cost import MemoryShape, chunk_shapes
from comet.pipeline.monitor import FORWARD, task_spans
from comet.pipeline.schedule import SCHEDULES, Task, simulate
from comet.pipeline.transfer import LocalTransfer, PipelineTransfer, PipelineTransport

VARIANTS = ("cyclic", "contiguous", "naive")
STRIDE, ANSWER = 8, 8  # tokens
TASK_SECONDS = 0.02  # of a sleeping task
TIMEOUT = 1800.0  # seconds that a rank waits for another


@dataclass(frozen=True)
class PipelineBenchmark:
    """Sizes of the benchmark: timed runs of each variant; chunks of the text, layers; tokens of a chunk, width of the
    backbone, global slots, queue budget."""

    runs: int = 5
    chunks: int = 8
    layers: int = 30
    chunk: int = 512
    width: int = 320
    slots: int = 64
    queue: int = 256

    def build_reader(self) -> Comet:
        """A reader in training mode with random weights, equal on every rank."""
        reader = reader_from_overrides(
            "compressor=comet",
            "backbone=tiny",
            "decoder.train=full",
            f"backbone.layers={self.layers}",
            f"backbone.width={self.width}",
            f"compressor.chunk_size={self.chunk}",
            f"compressor.global_slots={self.slots}",
            f"compressor.queue_budget={self.queue}",
            "compressor.strategy=fixed",
        )
        return reader.train()

    def build_text(self) -> ChunkedText:
        """One random text of full chunks, with the answer's tokens at its end supervised."""
        ids = torch.randint(2, 500, (1, self.chunks * self.chunk), generator=torch.Generator().manual_seed(0))
        supervised = torch.zeros_like(ids, dtype=torch.bool)
        supervised[0, -ANSWER - 1 : -1] = True
        return ChunkedText(ids, supervised, align_steps([[[self.chunk] * self.chunks]]), [STRIDE])

    def chunk_costs(self, reader: Comet) -> list[int]:
        """Multiplications of one layer over each chunk."""
        shape = BackboneShape.from_config(reader.decoder.config)
        memory = MemoryShape(self.chunk, STRIDE, self.slots, self.queue)
        return [chunk.multiplications(shape) for chunk in chunk_shapes(self.chunks * self.chunk, memory)]


class NaiveTransport(PipelineTransport):
    """Sends the memory of all layers at once, after the last layer, as the paper's baseline does."""

    def start_text(self, *arguments: Any) -> LocalTransfer:
        """As in PipelineTransport."""
        self.wait_for_sends()
        self.step += 1
        return NaiveTransfer(self, *arguments)


class NaiveTransfer(PipelineTransfer):
    """For contiguous blocks: they have one border to each neighbour, with L messages in each direction."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._delayed: dict[int, list[tuple[Any, ...]]] = {}

    def send_message(self, task: Task, direction: int, global_state: Tensor, queue: Tensor) -> None:
        """As in PipelineTransfer, delayed until the last layer's message."""
        delayed = self._delayed.setdefault(direction, [])
        delayed.append((task, direction, global_state, queue))
        if len(delayed) == self.layers:
            for arguments in delayed:
                super().send_message(*arguments)
            delayed.clear()


# ------------------------------------------------------------------ processes


def run_on_ranks(count: int, function: Callable[[PipelineBenchmark], Any], benchmark: PipelineBenchmark) -> Any:
    """Result of `function(benchmark)` on rank 0 of `count` processes, each with one thread on one core."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        processes.spawn(_run_rank, (count, port, function, benchmark, f"{folder}/result.pt"), count)
        return torch.load(f"{folder}/result.pt", weights_only=False)


def _run_rank(
    index: int,
    count: int,
    port: int,
    function: Callable[[PipelineBenchmark], Any],
    benchmark: PipelineBenchmark,
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
    result = function(benchmark)
    if index == 0:
        torch.save(result, file)
    dist.barrier()
    dist.destroy_process_group()


# ------------------------------------------------------------------ times


def measure_times(benchmark: PipelineBenchmark) -> dict[str, Any]:
    """Seconds of one text, forward and backward, on 2 ranks; with the events of the last run of each variant.

    alone  rank 0 alone; both = each rank the whole text, without messages, which shows how far the cores slow each
           other
    """
    reader, text, group = benchmark.build_reader(), benchmark.build_text(), init_pipeline_group(2, TIMEOUT)
    transports = {schedule: PipelineTransport(group) for schedule in SCHEDULES} | {"naive": NaiveTransport(group)}
    pipelines = {
        name: ChunkPipeline(transport, "contiguous" if name == "naive" else name)
        for name, transport in transports.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("alone", "both", *VARIANTS)}
    events: dict[str, Any] = {}
    for run in range(benchmark.runs + 1):
        for name in seconds:
            reader.pipeline = pipelines.get(name)
            if name in transports:
                transports[name].events = []
            elapsed = time_text(reader, text, alone=name == "alone")
            if run:  # the first run is a warm-up
                seconds[name].append(elapsed)
            if name in transports:
                events[name] = gather_rows([transports[name].events])
            if rank() == 0:
                print(f"run {run}, {name}: {elapsed:.2f} s", flush=True)
    costs = benchmark.chunk_costs(reader)
    return {
        "rows": [variant_row(name, seconds, costs, benchmark.layers) for name in VARIANTS],
        "seconds": seconds,
        "events": events,
        "costs": costs,
        "ranks": 2,
    }


def time_text(reader: Comet, text: ChunkedText, alone: bool) -> float:
    """Seconds between two barriers, forward and backward; alone = all ranks but rank 0 wait."""
    reader.zero_grad()
    dist.barrier()
    start = time.monotonic()
    if rank() == 0 or not alone:
        reader.nll(text).sum().backward()
    dist.barrier()
    return time.monotonic() - start


def variant_row(name: str, seconds: dict[str, list[float]], costs: Sequence[int], layers: int) -> dict[str, Any]:
    """One variant on 2 ranks.

    speedup     median of the ratios within a run, against one process; lowest, highest = extremes
    bound       speed-up that the schedule allows, by multiplications
    bound_here  the same on cores that slow each other as measured
    """
    ratios = [one / other for one, other in zip(seconds["alone"], seconds[name])]
    bound = 1.0
    if name != "naive":
        planned = simulate(len(costs), layers, 2, name, lambda chunk, layer: costs[chunk])
        bound = layers * sum(costs) / planned.makespan
    shared_cores = median_ratio(seconds["alone"], seconds["both"])
    return {
        "variant": name,
        "seconds": statistics.median(seconds[name]),
        "alone_s": statistics.median(seconds["alone"]),
        "speedup": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "bound": bound,
        "bound_here": bound * (1.0 if name == "naive" else shared_cores),  # naive: only one core computes at a time
        "against_naive": median_ratio(seconds["naive"], seconds[name]),
    }


def print_times(measured: dict[str, Any]) -> None:
    """Prints one table."""
    keys = ("seconds", "alone_s", "speedup", "lowest", "highest", "bound", "bound_here", "against_naive")
    print_block(
        Console(width=TABLE_WIDTH),
        ("2 ranks", "s", "1 rank s", "speed-up", "lowest", "highest", "bound", "bound here", "against naive"),
        [[row["variant"], *(f"{row[key]:.2f}" for key in keys)] for row in measured["rows"]],
    )


# ------------------------------------------------------------------ makespans


def measure_makespans(benchmark: PipelineBenchmark) -> list[dict[str, Any]]:
    """Rows: measured forward makespan with tasks of equal duration, in tasks, and the simulated one, on all ranks.

    A task sleeps for a fixed time, so that more ranks than cores do not slow each other.
    """
    small = replace(benchmark, chunk=32, width=32, slots=4, queue=8)
    reader, text, ranks = small.build_reader(), small.build_text(), dist.get_world_size()
    group, run_layer, rows = init_pipeline_group(ranks, TIMEOUT), reader.memory.run_layer, []

    def run_layer_slowly(*arguments: Any) -> Any:
        start = time.monotonic()
        result = run_layer(*arguments)
        time.sleep(max(TASK_SECONDS - (time.monotonic() - start), 0))
        return result

    reader.memory.run_layer = run_layer_slowly  # type: ignore[method-assign, assignment]  # on one instance
    for schedule in ("contiguous", "cyclic"):
        spans: dict[Task, tuple[float, float]] = {}
        transport = PipelineTransport(group)
        transport.events = []
        reader.pipeline = ChunkPipeline(transport, schedule)
        reader.nll(text).sum().backward()
        for events in gather_rows([transport.events]):
            spans |= task_spans(events, FORWARD)
        seconds = max(end for _, end in spans.values()) - min(start for start, _ in spans.values())
        planned = simulate(benchmark.chunks, benchmark.layers, ranks, schedule)
        rows.append(
            {
                "ranks": ranks,
                "schedule": schedule,
                "cells": seconds / TASK_SECONDS,
                "planned": planned.makespan,
                "bubble": 1 - benchmark.chunks * benchmark.layers * TASK_SECONDS / (ranks * seconds),
                "planned_bubble": planned.bubble,
            }
        )
    return rows


def print_makespans(rows: Sequence[dict[str, Any]]) -> None:
    """Prints one table."""
    print_block(
        Console(width=TABLE_WIDTH),
        ("tasks of equal duration", "ranks", "makespan", "simulated", "bubble", "simulated"),
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
