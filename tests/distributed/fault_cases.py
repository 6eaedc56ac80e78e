"""Ranks of which one goes wrong in the middle of a cell."""

from __future__ import annotations

import os
import signal
import time

import torch
from pipeline_cases import CASES, NINE, case_reader, everything
from processes import run_script

from breviary.runtime.distributed import rank, start_process_group
from breviary.training.log import RunLog
from breviary.training.pipeline import init_pipeline_group
from comet.layers import MemoryLayers

TIMEOUT = 4.0  # seconds: engine.timeout
STEP, CHUNK, LAYER = 2, 3, 1  # where it happens: of nine chunks, cyclic
TOLD = 0.6  # seconds of the cell before: two signs of life


def die() -> None:
    """As when memory runs out."""
    time.sleep(TOLD)
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """A process that never goes on, with all its threads."""
    time.sleep(TOLD)
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    """A computation that never ends."""
    time.sleep(600)


def break_cell(victim: int, kind: str, direction: str, own: int, layers: int) -> None:
    """Lets one cell of rank `victim` go wrong: the LAYER-th of the `own`-th chunk that it reads (0 is its first) from now on."""
    if rank() != victim:
        return
    whole, calls = MemoryLayers.cell, 0

    def cell(self, stack, index, *rest):
        nonlocal calls
        calls += 1
        states, after = whole(self, stack, index, *rest)
        if calls - 1 != own * layers + LAYER:
            return states, after
        if direction == "forward":
            return (states * float("nan"), after) if kind == "nan" else (globals()[kind](), states, after)[1:]
        states.register_hook(lambda gradient: gradient * float("nan") if kind == "nan" else globals()[kind]())
        return states.view_as(states), after  # whose own hooks come first: the cell has begun

    MemoryLayers.cell = cell


def run_broken(ranks: int, victim: int, kind: str, direction: str) -> None:
    """A pipeline's few steps, of which the second goes wrong."""
    start_process_group(torch.device("cpu"), TIMEOUT)
    place = init_pipeline_group(ranks, TIMEOUT)
    reader = case_reader(CASES["nine"])
    reader.join_pipeline(place, "cyclic")
    with place.watchdog:
        for step in range(1, 4):
            if step == STEP:
                break_cell(victim, kind, direction, CHUNK // ranks, len(reader.decoder))
            reader.nll(everything([NINE])).sum().backward()
            for weight in reader.parameters():
                torch.distributed.all_reduce(weight.grad)


def run_dying_training(arguments: list[str]) -> None:
    """train.py, whose rank 1 dies in the backward pass of its third optimizer step."""
    whole = RunLog.on_step_end

    def ends(self, args, state, control, **kwargs):
        whole(self, args, state, control, **kwargs)
        if state.global_step == 2:
            break_cell(1, "die", "backward", 0, 2)

    RunLog.on_step_end = ends
    run_script("train.py", arguments)
