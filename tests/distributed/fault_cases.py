"""Ranks of which one fails in the middle of a task."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from pipeline_cases import CASES, NINE, all_supervised, case_reader
from processes import run_script

from breviary.contract import Reader
from breviary.runtime.distributed import rank, start_process_group
from breviary.training.log import RunLog
from breviary.training.pipeline import init_pipeline_group
from breviary.training.step_end import StepEnd
from comet.layers import MemoryLayers

TIMEOUT = 4.0  # seconds: engine.timeout
STEP, CHUNK, LAYER = 2, 3, 1  # task of the fault, in a cyclic schedule of nine chunks
DELAY = 0.6  # seconds before the fault: two heartbeats with the state of this task


def die() -> None:
    """As the kernel does when memory is exhausted."""
    time.sleep(DELAY)
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Stops the process with all its threads."""
    time.sleep(DELAY)
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    """A computation that never ends."""
    time.sleep(600)


def break_task(victim: int, kind: str, direction: str, own: int, layers: int) -> None:
    """Makes a task of rank `victim` fail: layer LAYER of the `own`-th chunk that it computes from now on, from 0."""
    if rank() != victim:
        return
    run_layer, calls = MemoryLayers.run_layer, 0

    def broken(self, stack, index, *rest):
        nonlocal calls
        calls += 1
        states, after = run_layer(self, stack, index, *rest)
        if calls - 1 != own * layers + LAYER:
            return states, after
        if direction == "forward":
            return (states * float("nan"), after) if kind == "nan" else (globals()[kind](), states, after)[1:]
        states.register_hook(lambda gradient: gradient * float("nan") if kind == "nan" else globals()[kind]())
        return states.view_as(states), after  # a view, whose own hooks run first: the task has started

    MemoryLayers.run_layer = broken


def run_broken(ranks: int, victim: int, kind: str, direction: str) -> None:
    """Three steps of a pipeline, of which the second fails."""
    start_process_group(torch.device("cpu"), TIMEOUT)
    group = init_pipeline_group(ranks, TIMEOUT)
    reader = case_reader(CASES["nine"])
    reader.join_pipeline(group, "cyclic")
    with group.watchdog:
        for step in range(1, 4):
            if step == STEP:
                break_task(victim, kind, direction, CHUNK // ranks, len(reader.decoder))
            reader.nll(all_supervised([NINE])).sum().backward()
            for weight in reader.parameters():
                torch.distributed.all_reduce(weight.grad)


def run_dying_training(arguments: list[str]) -> None:
    """train.py, in which rank 1 dies in the backward pass of the third optimizer step."""
    on_step_end = RunLog.on_step_end

    def dying(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 2:
            break_task(1, "die", "backward", 0, 2)

    RunLog.on_step_end = dying
    run_script("train.py", arguments)


def run_signalled_training(arguments: list[str]) -> None:
    """train.py, in which rank 1 alone gets SIGUSR1 in the third optimizer step; every rank must exit with code 0."""
    on_step_end = RunLog.on_step_end

    def signalled(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 3 and rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    RunLog.on_step_end = signalled
    try:
        run_script("train.py", arguments)
    except SystemExit as end:
        assert end.code == 0, end.code
    else:
        raise AssertionError("the training was not interrupted")


def run_not_finite_training(arguments: list[str], file: Path) -> None:
    """train.py, whose third micro-batch on rank 1 is NaN: its loss, or in a pipeline the output of a layer.

    file  receives the ids of that micro-batch
    """
    forward, calls = Reader.forward, 0

    def broken(self, batch):
        nonlocal calls
        calls += self.training
        if rank() != 1 or calls != 3:
            return forward(self, batch)
        file.write_text(json.dumps([example.id for example in batch.examples]))
        if "engine=pipeline" in arguments:
            break_task(1, "nan", "forward", 0, 2)
            return forward(self, batch)
        output = forward(self, batch)
        return output | {"terms": {name: (value * float("nan"), n) for name, (value, n) in output["terms"].items()}}

    Reader.forward = broken
    run_script("train.py", arguments)


class FakeTrainer:
    """Values of a step that StepEnd uses, on this rank."""

    def __init__(self, folder: Path) -> None:
        self.values, self.step_examples = torch.ones(2, dtype=torch.float64), [[f"rank {rank()}"]]
        self.args = SimpleNamespace(output_dir=f"{folder}/checkpoints", learning_rate=1e-3, device="cpu")
        self.state = SimpleNamespace(global_step=2, max_steps=9)

    def step_values(self) -> torch.Tensor:
        return self.values


def decide_after_steps(folder: Path) -> None:
    """Every rank writes what it does after a step in which one rank alone has a reason: its clock, a signal, a NaN."""
    start_process_group(torch.device("cpu"))
    decisions = {}
    for victim in range(2):
        for reason in ("clock", "signal", "nan"):
            callback = StepEnd("1m")
            callback.trainer = trainer = FakeTrainer(folder)
            if rank() == victim:
                callback.saved -= 61 if reason == "clock" else 0
                callback.interruption.received = signal.SIGTERM if reason == "signal" else 0
                trainer.values[0] = float("nan") if reason == "nan" else 1
            control = SimpleNamespace(
                should_save=False, should_training_stop=False, should_log=True, should_evaluate=False
            )
            callback.on_step_end(trainer.args, trainer.state, control)
            stop = control.should_training_stop
            decisions[f"{reason} {victim}"] = [control.should_save, stop, callback.signal, callback.failure]
    (folder / f"{rank()}.json").write_text(json.dumps(decisions))
