"""Texts that pipelines and a single process compute; rank 0 writes the differences between the two."""

from __future__ import annotations

import functools
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from comet_helpers import C, chunked_text, random_ids, tiny_comet

from breviary.contract import Batch, Example
from breviary.runtime.distributed import end_process_group, gather_rows, rank, start_process_group, sum_over_ranks
from breviary.training.pipeline import PipelineGroup, init_pipeline_group
from comet.bench.pipeline import PipelineBenchmark, measure_makespans, measure_times
from comet.chunked_text import ChunkedText, align_steps
from comet.model import Comet
from data.collate import Collator

LAYERS = 3
SLEEP = 0.03  # seconds of a timed task
NINE, FOUR = [C] * 8 + [5], [C, 7, C, C]
RAGGED = [[C, C, 3, C, C, C, 9], [C, C, 2, 1], [11]]
PACKED = [[[C, 4], [6], [C, C, 5]], [[9], [8], [C]]]


def all_supervised(plans: list[list[int]]) -> ChunkedText:
    """A text in which every token is supervised."""
    return chunked_text(random_ids(len(plans), max(map(sum, plans))), plans)


def supervised_chunks(plans: list[list[int]], *chunks: int) -> ChunkedText:
    """A text supervised in the given chunks only, counted from the end of each row (-1 is the last)."""
    text = all_supervised(plans)
    mask = torch.zeros_like(text.supervised)
    for row, sizes in enumerate(plans):
        for chunk in chunks:
            if -chunk <= len(sizes):
                start = sum(sizes[: len(sizes) + chunk])
                mask[row, start : start + sizes[chunk] - 1] = True
    return replace(text, supervised=text.supervised & mask)


def packed() -> ChunkedText:
    """Several texts per row: in the last step and in an earlier one, a text ends without updating the memory."""
    ids = random_ids(2, max(sum(map(sum, row)) for row in PACKED))
    supervised = torch.arange(ids.shape[1]) < torch.tensor([sum(map(sum, row)) - 1 for row in PACKED])[:, None]
    return ChunkedText(ids, supervised, align_steps(PACKED), [4, 8])


@dataclass
class Case:
    """Texts that are computed one after the other.

    joint_backward  one backward pass for all texts, instead of one per text
    """

    texts: Callable[[], list[ChunkedText]]
    overrides: tuple[str, ...] = ()
    joint_backward: bool = False
    checkpointing: bool = False
    dtype: str = "float64"


CASES = {
    "nine": Case(lambda: [all_supervised([NINE])]),
    "nine_recomputed": Case(lambda: [all_supervised([NINE])], checkpointing=True),
    "scatter": Case(lambda: [all_supervised([FOUR])], ("compressor.backend=scatter",)),
    "single_precision": Case(lambda: [all_supervised([FOUR])], dtype="float32"),
    "bfloat16": Case(lambda: [all_supervised([FOUR])], dtype="bfloat16"),
    "four": Case(lambda: [all_supervised([FOUR])]),
    "supervised_last_chunk": Case(lambda: [supervised_chunks([NINE], -1)]),
    "supervised_in_the_middle": Case(lambda: [supervised_chunks([NINE], -6, -4)]),
    "ragged_rows": Case(lambda: [all_supervised(RAGGED)]),
    "ragged_rows_recomputed": Case(lambda: [supervised_chunks(RAGGED, -1, -2)], checkpointing=True),
    "two_chunks": Case(lambda: [all_supervised([[C, 3]])]),
    "one_chunk": Case(lambda: [all_supervised([[7]])]),
    "nothing_supervised": Case(lambda: [supervised_chunks([FOUR])]),
    "two_batches": Case(lambda: [all_supervised([NINE]), supervised_chunks(RAGGED, -1)]),
    "two_losses": Case(lambda: [supervised_chunks([NINE], -1), all_supervised([FOUR])], joint_backward=True),
    "packed": Case(lambda: [packed()]),
    "truncated": Case(lambda: [all_supervised(RAGGED)], ("compressor.truncate_every=2",)),
    "queue_only": Case(lambda: [all_supervised([FOUR])], ("compressor.global_slots=0",)),
    "slots_only": Case(lambda: [all_supervised([FOUR])], ("compressor.queue_budget=0",)),
    "no_memory": Case(lambda: [all_supervised([FOUR])], ("compressor.global_slots=0", "compressor.queue_budget=0")),
    "frozen_decoder": Case(lambda: [supervised_chunks([NINE], -1)], ("decoder.train=frozen",)),
}


# What does not depend on the number of ranks beyond two: dtypes, kinds of memory, what is trained and recomputed.
AT_MOST_TWO = (
    "nine_recomputed",
    "scatter",
    "single_precision",
    "bfloat16",
    "ragged_rows_recomputed",
    "queue_only",
    "slots_only",
    "frozen_decoder",
)


def combinations(ranks: int) -> list[tuple[str, str]]:
    """(case, schedule) of a pipeline of `ranks`. On one rank the schedules are one."""
    schedules = ("contiguous", "cyclic") if ranks > 1 else ("cyclic",)
    return [(name, s) for name in CASES if ranks <= 2 or name not in AT_MOST_TWO for s in schedules]


def run_cases(ranks: int, folder: Path) -> None:
    """The cases on a pipeline of `ranks`; writes {(case, schedule): difference to one process without a pipeline}."""
    start_process_group(torch.device("cpu"))
    if ranks == 1:
        run_alone(folder)
    group = init_pipeline_group(ranks) if ranks > 1 else PipelineGroup()
    alone, rows = torch.load(folder / "alone.pt") if rank() == 0 else {}, {}
    for name, case in CASES.items():
        reader = case_reader(case)
        for schedule in [schedule for other, schedule in combinations(ranks) if other == name]:
            reader.join_pipeline(group, schedule)
            together = sum_dict(compute(reader, case))
            sent = sum_over_ranks(
                torch.tensor(reader.pipeline.transport.messages_sent if ranks > 1 else [0, 0])
            ).tolist()
            if rank() == 0:
                rows[name, schedule] = compare(together, alone[name]) | {"sent": sent}
    if rank() == 0:
        torch.save(rows, folder / f"pipeline{ranks}.pt")
    end_process_group()


def run_alone(folder: Path) -> None:
    """Every case in one process without a pipeline; writes {case: loss and gradients}."""
    torch.save({name: compute(case_reader(case), case) for name, case in CASES.items()}, folder / "alone.pt")


def case_reader(case: Case) -> Comet:
    """A reader in training mode with equal weights in every process, shared by cases with equal settings."""
    return _build_reader(case.overrides, case.checkpointing, case.dtype)


@functools.cache
def _build_reader(overrides: tuple[str, ...], checkpointing: bool, dtype: str) -> Comet:
    reader = tiny_comet(*overrides, dtype=dtype, layers=LAYERS).train()
    reader.decoder.checkpointing = checkpointing
    return reader


def compute(reader: Comet, case: Case) -> dict[str, torch.Tensor]:
    """Loss and gradients of a case, {name: value}."""
    reader.zero_grad()
    texts, losses = case.texts(), []
    for text in texts:
        with reader.decoder.mixed_precision():
            losses.append(reader.nll(text).sum() / 7)
        if not case.joint_backward:
            losses[-1].backward()
            losses[-1] = losses[-1].detach()
    if case.joint_backward:
        sum(losses).backward()
    # A rank without a chunk has a zero loss in float32.
    return {"loss": sum(losses).detach().double()} | gradients(reader)


def gradients(reader: Comet) -> dict[str, torch.Tensor]:
    """{name: gradient}, zeros for weights without one."""
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in reader.named_parameters()
        if weight.requires_grad
    }


def sum_dict(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sums over the ranks: one message for each dtype."""
    sums = {}
    for dtype in dict.fromkeys(value.dtype for value in values.values()):
        own = {name: value for name, value in values.items() if value.dtype == dtype}
        total = sum_over_ranks(torch.cat([value.reshape(-1) for value in own.values()]))
        parts = total.split([value.numel() for value in own.values()])
        sums |= {name: part.view(value.shape) for (name, value), part in zip(own.items(), parts)}
    return {name: sums[name] for name in values}


def compare(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative difference of the loss, and the largest relative difference of a gradient, with the weight's name.

    Differences are relative to the largest value of the tensor, or to 1e-6 of the largest gradient if that is larger.
    """
    smallest = 1e-6 * max(float(grad.abs().max()) for name, grad in expected.items() if name != "loss")
    differences = {
        name: float((actual[name] - value).abs().max()) / max(float(value.abs().max()), smallest, 1e-30)
        for name, value in expected.items()
    }
    loss = differences.pop("loss")
    worst = max(differences, key=differences.get)
    zero = [name for name, value in expected.items() if not value.any()]
    return {
        "loss": loss,
        "gradient": differences[worst],
        "name": worst,
        "value": float(expected["loss"]),
        "zero_gradients": zero,
    }


# ---- several pipelines ----


def batches(reader: Comet) -> list[Batch]:
    """Four batches of two examples, with contexts of 5 to 120 tokens and answers of 1 to 9."""
    rng, items = random.Random(0), []
    for index in range(8):
        sizes = dict(
            prefix=1, context=rng.randint(5, 120), query=3, prompt=rng.randint(2, 6), answer=rng.choice([1, 2, 9])
        )
        pieces = {name: [rng.randrange(2, 500) for _ in range(size)] for name, size in sizes.items()}
        items.append(
            {
                **pieces,
                "evidence": [False] * sizes["context"],
                "starts": None,
                "ends": None,
                "example": Example(f"{index}", "", "", ("",)),
            }
        )
    collate = Collator(reader.tokenizer.pad_token_id)
    return [collate(items[at : at + 2]) for at in range(0, 8, 2)]


def run_side_by_side(folder: Path) -> None:
    """Two pipelines of two ranks, each with two micro-batches, random chunks and a second loss, against one process."""
    start_process_group(torch.device("cpu"))
    reader = tiny_comet(
        "objective=answer_and_copy", "objective.hint_tokens=3", "objective.copy_tokens=20", layers=LAYERS
    ).train()
    reader.begin_step(3, 42)
    all_batches, group, rows = batches(reader), init_pipeline_group(2), {}
    alone = optimizer_step(reader, all_batches) if rank() == 0 else None
    for schedule in ("contiguous", "cyclic"):
        reader.join_pipeline(group, schedule)
        together = optimizer_step(reader, all_batches[group.pipeline :: 2])
        if rank() == 0:
            rows[schedule] = compare(together[0], alone[0]) | {"counts": (together[1], alone[1])}
    if rank() == 0:
        torch.save(rows, folder / "side_by_side.pt")
    end_process_group()


def optimizer_step(reader: Comet, own: list[Batch]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Loss and gradients of one optimizer step, computed as in the Trainer, and the counts.

    Sums over the ranks where the reader is in a pipeline.
    """
    total = sum_dict if reader.pipeline is not None else lambda values: values
    reader.zero_grad()
    counts: dict[str, torch.Tensor] = {}
    for batch in own:
        for name, count in reader.counts(batch).items():
            counts[name] = counts.get(name, 0) + count.double()
    counts, loss, read = total(counts), torch.zeros((), dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for batch in own:
        output = reader(batch)
        value = sum(part / counts[name] for name, (part, _) in output["terms"].items())
        value.backward()
        loss += value.detach()
        read += torch.stack([output["slots"], output["context_tokens"]]).double()
    sums = total({"loss": loss, "read": read} | gradients(reader))
    slots, tokens = sums.pop("read").tolist()
    return sums, {name: float(count) for name, count in counts.items()} | {"slots": slots, "context_tokens": tokens}


# ---- errors and evaluation ----


def run_out_of_step() -> None:
    """Rank 1 is one text ahead of rank 0, which waits for no message."""
    start_process_group(torch.device("cpu"))
    reader = tiny_comet(layers=LAYERS).train()
    reader.join_pipeline(init_pipeline_group(2), "contiguous")
    reader.pipeline.transport.step = rank()
    reader.nll(all_supervised([FOUR]))
    dist.barrier()


def run_without_gradients(folder: Path) -> None:
    """Without gradients, no gradient messages are sent; in evaluation mode every rank computes its whole own batch."""
    start_process_group(torch.device("cpu"))
    reader = tiny_comet(layers=LAYERS)
    with torch.no_grad():
        alone = float(reader.nll(all_supervised([FOUR])).sum())
        reader.join_pipeline(init_pipeline_group(2), "cyclic")
        evaluated = float(reader.nll(all_supervised([FOUR] if rank() == 0 else [NINE])).sum())
        reader.train()
        shares = sum_over_ranks(torch.stack([reader.nll(all_supervised([FOUR])).sum().double() for _ in range(3)]))
    reader.pipeline.transport.wait_for_sends()
    sent = sum_over_ranks(torch.tensor(reader.pipeline.transport.messages_sent)).tolist()
    if rank() == 0:
        torch.save(
            {"alone": alone, "evaluated": evaluated, "shares": shares.tolist(), "sent": sent}, folder / "plain.pt"
        )
    end_process_group()


# ---- schedules ----


def run_timed(folder: Path, ranks: int) -> None:
    """Records events by a clock that the ranks share; every task sleeps, forward and backward.

    Rank 0 writes {schedule: events of each rank}.
    """
    start_process_group(torch.device("cpu"))
    reader, group, events_by_schedule = tiny_comet(layers=LAYERS).train(), init_pipeline_group(ranks), {}
    run_layer = reader.memory.run_layer

    def slow(*arguments):
        time.sleep(SLEEP)
        states, after = run_layer(*arguments)
        states.register_hook(lambda gradient: time.sleep(SLEEP))
        return states.view_as(states), after  # a view, whose own hooks run first: the task has started

    reader.memory.run_layer = slow
    for schedule in ("contiguous", "cyclic"):
        reader.join_pipeline(group, schedule)
        reader.pipeline.transport.events = events = []
        reader.nll(all_supervised([NINE])).sum().backward()
        events_by_schedule[schedule] = gather_rows([events])
    if rank() == 0:
        torch.save(events_by_schedule, folder / "timed.pt")
    end_process_group()


def run_benchmark(folder: Path, benchmark: PipelineBenchmark) -> None:
    """Both parts of scripts/bench/comet_pipeline.py with small settings."""
    start_process_group(torch.device("cpu"))
    measured = {"timed": measure_times(benchmark), "cells": measure_makespans(benchmark)}
    if rank() == 0:
        torch.save(measured, folder / "bench.pt")
    end_process_group()
