"""What pipelines read, and what one process makes of it; every rank writes nothing, rank 0 the deviations."""

from __future__ import annotations

import functools
import random
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from comet_helpers import C, comet, drawn_ids, text_of

from breviary.contract import Batch, Example
from breviary.runtime.distributed import end_process_group, gather_rows, rank, start_process_group, sum_over_ranks
from breviary.training.pipeline import PipelineGroup, init_pipeline_group
from comet.model import Comet
from comet.text import Text, steps_of
from data.collate import Collator
from scripts.bench import comet_pipeline

LAYERS = 3
SLEEP = 0.03  # seconds of a cell that is timed
NINE, FOUR = [C] * 8 + [5], [C, 7, C, C]
RAGGED = [[C, C, 3, C, C, C, 9], [C, C, 2, 1], [11]]
PACKED = [[[C, 4], [6], [C, C, 5]], [[9], [8], [C]]]


def everything(plans: list[list[int]]) -> Text:
    """Every token supervised."""
    return text_of(drawn_ids(len(plans), max(map(sum, plans))), plans)


def answers(plans: list[list[int]], *chunks: int) -> Text:
    """Supervised in the named chunks alone, counted from the end of each row (-1 is the last)."""
    text = everything(plans)
    places = torch.zeros_like(text.asked)
    for row, sizes in enumerate(plans):
        for chunk in chunks:
            if -chunk <= len(sizes):
                start = sum(sizes[: len(sizes) + chunk])
                places[row, start : start + sizes[chunk] - 1] = True
    return replace(text, asked=text.asked & places)


def packed() -> Text:
    """Several texts a row: in the last step, and in one before it, a text ends and nothing is taken in."""
    ids = drawn_ids(2, max(sum(map(sum, row)) for row in PACKED))
    asked = torch.arange(ids.shape[1]) < torch.tensor([sum(map(sum, row)) - 1 for row in PACKED])[:, None]
    return Text(ids, asked, steps_of(PACKED), [4, 8])


@dataclass
class Case:
    """texts are read one after the other, each with a backward pass of its own, or `together` with one for all."""

    texts: Callable[[], list[Text]]
    overrides: tuple[str, ...] = ()
    together: bool = False
    checkpointing: bool = False
    dtype: str = "float64"


CASES = {
    "nine": Case(lambda: [everything([NINE])]),
    "nine_recomputed": Case(lambda: [everything([NINE])], checkpointing=True),
    "scatter": Case(lambda: [everything([FOUR])], ("compressor.backend=scatter",)),
    "single_precision": Case(lambda: [everything([FOUR])], dtype="float32"),
    "bfloat16": Case(lambda: [everything([FOUR])], dtype="bfloat16"),
    "four": Case(lambda: [everything([FOUR])]),
    "answer_in_the_last_chunk": Case(lambda: [answers([NINE], -1)]),
    "answer_in_the_middle": Case(lambda: [answers([NINE], -6, -4)]),
    "ragged_rows": Case(lambda: [everything(RAGGED)]),
    "ragged_rows_recomputed": Case(lambda: [answers(RAGGED, -1, -2)], checkpointing=True),
    "two_chunks": Case(lambda: [everything([[C, 3]])]),
    "one_chunk": Case(lambda: [everything([[7]])]),
    "nothing_asked": Case(lambda: [answers([FOUR])]),
    "two_batches": Case(lambda: [everything([NINE]), answers(RAGGED, -1)]),
    "two_losses": Case(lambda: [answers([NINE], -1), everything([FOUR])], together=True),
    "packed": Case(lambda: [packed()]),
    "truncated": Case(lambda: [everything(RAGGED)], ("compressor.truncate_every=2",)),
    "queue_alone": Case(lambda: [everything([FOUR])], ("compressor.global_slots=0",)),
    "slots_alone": Case(lambda: [everything([FOUR])], ("compressor.queue_budget=0",)),
    "no_memory": Case(lambda: [everything([FOUR])], ("compressor.global_slots=0", "compressor.queue_budget=0")),
    "memory_alone_trained": Case(lambda: [answers([NINE], -1)], ("decoder.train=frozen",)),
}


def run_cases(ranks: int, folder: Path) -> None:
    """Every case on a pipeline of `ranks`, both schedules, against `run_alone`; writes {(case, schedule): what was found}."""
    start_process_group(torch.device("cpu"))
    place = init_pipeline_group(ranks) if ranks > 1 else PipelineGroup()
    alone, found = torch.load(folder / "alone.pt"), {}
    for name, case in CASES.items():
        reader = case_reader(case)
        for schedule in ("contiguous", "cyclic"):
            reader.join_pipeline(place, schedule)
            together = summed(read(reader, case))
            sent = sum_over_ranks(torch.tensor(reader.pipeline.handoff.sent if ranks > 1 else [0, 0])).tolist()
            if rank() == 0:
                found[name, schedule] = compared(together, alone[name]) | {"sent": sent}
    if rank() == 0:
        torch.save(found, folder / f"pipeline{ranks}.pt")
    end_process_group()


def run_alone(folder: Path) -> None:
    """Every case in a process that knows nothing of pipelines; writes {case: loss and gradients}."""
    torch.save({name: read(case_reader(case), case) for name, case in CASES.items()}, folder / "alone.pt")


def case_reader(case: Case) -> Comet:
    """In training mode, its weights the same in every process; one for all cases that are built alike."""
    return _reader(case.overrides, case.checkpointing, case.dtype)


@functools.cache
def _reader(overrides: tuple[str, ...], checkpointing: bool, dtype: str) -> Comet:
    reader = comet(*overrides, dtype=dtype, layers=LAYERS).train()
    reader.decoder.checkpointing = checkpointing
    return reader


def read(reader: Comet, case: Case) -> dict[str, torch.Tensor]:
    """Loss and gradients, {name: value}."""
    reader.zero_grad()
    texts, losses = case.texts(), []
    for text in texts:
        with reader.decoder.mixed_precision():
            losses.append(reader.nll(text).sum() / 7)
        if not case.together:
            losses[-1].backward()
            losses[-1] = losses[-1].detach()
    if case.together:
        sum(losses).backward()
    # A rank without a chunk has a zero in float32.
    return {"loss": sum(losses).detach().double()} | gradients(reader)


def gradients(reader: Comet) -> dict[str, torch.Tensor]:
    """{name: gradient}, zeros where none came."""
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in reader.named_parameters()
        if weight.requires_grad
    }


def summed(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Over the ranks."""
    return {name: sum_over_ranks(value) for name, value in found.items()}


def compared(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest deviation of the loss, relative, and of a weight's gradient, relative to its largest number, and whose; a gradient
    below a millionth of the largest is compared on that scale."""
    smallest = 1e-6 * max(float(grad.abs().max()) for name, grad in wanted.items() if name != "loss")
    off = {
        name: float((found[name] - value).abs().max()) / max(float(value.abs().max()), smallest, 1e-30)
        for name, value in wanted.items()
    }
    loss = off.pop("loss")
    worst = max(off, key=off.get)
    still = [name for name, value in wanted.items() if not value.any()]
    return {"loss": loss, "gradient": off[worst], "name": worst, "value": float(wanted["loss"]), "still": still}


# ---- batches on pipelines side by side ----


def batches(reader: Comet) -> list[Batch]:
    """Four batches of two examples, contexts of 5 to 120 tokens, answers of 1 to 9."""
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
    """Two pipelines of two ranks, two micro-batches each, drawn plans, a second loss: sums and counts, and one process's."""
    start_process_group(torch.device("cpu"))
    reader = comet(
        "objective=answer_and_copy", "objective.hint_tokens=3", "objective.copy_tokens=20", layers=LAYERS
    ).train()
    reader.begin_step(3, 42)
    everyone, place = batches(reader), init_pipeline_group(2)
    found, alone = {}, trained(reader, everyone)
    for schedule in ("contiguous", "cyclic"):
        reader.join_pipeline(place, schedule)
        together = trained(reader, everyone[place.pipeline :: 2])
        found[schedule] = compared(together[0], alone[0]) | {"counts": (together[1], alone[1])}
    if rank() == 0:
        torch.save(found, folder / "side_by_side.pt")
    end_process_group()


def trained(reader: Comet, own: list[Batch]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Loss and gradients of one optimizer step as the Trainer has them, and what it counts; summed over the ranks where these
    are a pipeline's."""
    total = summed if reader.pipeline is not None else lambda values: values
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


# ---- what goes wrong ----


def run_out_of_step() -> None:
    """Rank 1 has read one text more than rank 0; rank 0 has nothing to wait for."""
    start_process_group(torch.device("cpu"))
    reader = comet(layers=LAYERS).train()
    reader.join_pipeline(init_pipeline_group(2), "contiguous")
    reader.pipeline.handoff.step = rank()
    reader.nll(everything([FOUR]))
    dist.barrier()


def run_without_gradients(folder: Path) -> None:
    """Without gradients nothing comes back; in evaluation every rank reads its own batch, whole."""
    start_process_group(torch.device("cpu"))
    reader = comet(layers=LAYERS)
    with torch.no_grad():
        alone = float(reader.nll(everything([FOUR])).sum())
        reader.join_pipeline(init_pipeline_group(2), "cyclic")
        evaluated = float(reader.nll(everything([FOUR] if rank() == 0 else [NINE])).sum())
        reader.train()
        shares = sum_over_ranks(torch.stack([reader.nll(everything([FOUR])).sum().double() for _ in range(3)]))
    reader.pipeline.handoff.finish()
    sent = sum_over_ranks(torch.tensor(reader.pipeline.handoff.sent)).tolist()
    if rank() == 0:
        torch.save(
            {"alone": alone, "evaluated": evaluated, "shares": shares.tolist(), "sent": sent}, folder / "plain.pt"
        )
    end_process_group()


# ---- who waits for whom ----


def run_timed(folder: Path, ranks: int) -> None:
    """What happens when, by a clock that the ranks share; computing is sleeping, forward and back. Rank 0 writes {schedule: the
    events of each rank}."""
    start_process_group(torch.device("cpu"))
    reader, place, found = comet(layers=LAYERS).train(), init_pipeline_group(ranks), {}
    cell = reader.memory.cell

    def slow(*arguments):
        time.sleep(SLEEP)
        states, after = cell(*arguments)
        states.register_hook(lambda gradient: time.sleep(SLEEP))
        return states.view_as(states), after  # whose own hooks come first: the cell has begun

    reader.memory.cell = slow
    for schedule in ("contiguous", "cyclic"):
        reader.join_pipeline(place, schedule)
        reader.pipeline.handoff.events = events = []
        reader.nll(everything([NINE])).sum().backward()
        found[schedule] = gather_rows([events])
    if rank() == 0:
        torch.save(found, folder / "timed.pt")
    end_process_group()


def run_benchmark(folder: Path, given: Namespace) -> None:
    """Both parts of scripts/bench/comet_pipeline.py, small."""
    start_process_group(torch.device("cpu"))
    measured = {"timed": comet_pipeline.timed(given), "cells": comet_pipeline.counted(given)}
    if rank() == 0:
        torch.save(measured, folder / "bench.pt")
    end_process_group()
