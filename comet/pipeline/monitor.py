"""Progress of a text on one process and detection of non-finite values, for failure messages (CoMeT, spec 2.3)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from breviary.training.watchdog import NotFiniteFailure, Watchdog
from comet.pipeline.schedule import Task

FORWARD, BACKWARD = 0, 1
DIRECTIONS = ("forward", "backward")


class Event(NamedTuple):
    """Start of a task or of an idle time on a process; ends the previous one.

    time  seconds of the machine's monotonic clock
    task  that starts; None = the process waits or is idle
    """

    time: float
    direction: int
    task: Task | None


class TextMonitor:
    """Monitors one text on one process.

    Reports the start of every task, forward and backward, to the watchdog. Checks of outputs and gradients run on the
    device; `check_finite` evaluates them after the backward pass, with one host sync per text.

    rank    world rank of this process
    events  a list that records events, for measurements; None = not recorded
    """

    def __init__(self, watchdog: Watchdog, rank: int, step: int, events: list[Event] | None = None) -> None:
        self.watchdog, self.rank, self.step, self.events = watchdog, rank, step, events
        self._finite: list[tuple[int, Task, Tensor]] = []  # direction, task, and a scalar: all values are finite

    def start_task(self, task: Task, direction: int) -> None:
        """Reports that the process computes `task`."""
        self.watchdog.set_state(describe_task(self.step, *task, direction), is_computing=True)
        self._record(direction, task)

    def start_waiting(self, message: str, direction: int) -> None:
        """Reports that the process waits for a message, described by `message`."""
        self.watchdog.set_state(f"waiting for {message}")
        self._record(direction, None)

    def start_idle(self, direction: int) -> None:
        """Reports that the process computes no task."""
        self.watchdog.set_state(f"in step {self.step}, between two passes")
        self._record(direction, None)

    def watch_output(self, task: Task, states: Tensor) -> None:
        """Checks a task's output (B, N, D) and, in the backward pass, its gradient, which starts the backward task."""
        if states.requires_grad:
            self._finite.append((FORWARD, task, torch.isfinite(states.detach()).all()))
            states.register_hook(lambda gradient: self._start_backward(task, gradient))

    def is_finite(self, task: Task) -> Tensor | bool:
        """Whether the output of `task` is finite, as a scalar on the device; True where it was not the last output."""
        return self._finite[-1][2] if self._finite and self._finite[-1][:2] == (FORWARD, task) else True

    def check_finite(self) -> None:
        """Evaluates all checks, after the backward pass.

        Raises: NotFiniteFailure naming the first task with non-finite values.
        """
        checks = torch.stack([check for *_, check in self._finite]).tolist() if self._finite else []
        for (direction, task, _), is_finite in zip(self._finite, checks):
            if not is_finite:
                raise non_finite_failure(self.rank, describe_task(self.step, *task, direction))
        self._finite.clear()
        self.start_idle(BACKWARD)

    def _start_backward(self, task: Task, gradient: Tensor | None) -> None:
        self.start_task(task, BACKWARD)
        if gradient is not None:  # None: supervised tokens depend on the memory only, not on these states
            self._finite.append((BACKWARD, task, torch.isfinite(gradient).all()))

    def _record(self, direction: int, task: Task | None) -> None:
        if self.events is not None:
            self.events.append(Event(time.monotonic(), direction, task))


def task_spans(events: Sequence[Event], direction: int) -> dict[Task, tuple[float, float]]:
    """Start and end of each task in one direction, in order of start. A task ends at the next event."""
    return {
        event.task: (event.time, following.time)
        for event, following in zip(events, events[1:])
        if event.task is not None and event.direction == direction
    }


def describe_task(step: int, chunk: int, layer: int, direction: int) -> str:
    """The task as part of a message."""
    return f"in step {step}, {DIRECTIONS[direction]}, chunk {chunk}, layer {layer}"


def non_finite_failure(rank: int, where: str) -> NotFiniteFailure:
    """The exception for non-finite values."""
    return NotFiniteFailure(f"rank {rank} computed non-finite values {where}")
