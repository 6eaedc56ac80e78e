"""Where the reading of a text stands, and whether its numbers are finite: what is told when a process fails (spec 2.3)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from breviary.training.watchdog import ProcessFailure, Watchdog
from comet.pipeline.schedule import Cell

FORWARD, BACKWARD = 0, 1
DIRECTIONS = ("forward", "backward")


class Event(NamedTuple):
    """Something begins on a process, and what was before ends; at  seconds by the machine's clock (time.monotonic).

    cell  that is computed from now on; None = nothing is: it waits, or rests
    """

    at: float
    direction: int
    cell: Cell | None


class Progress:
    """Of one text on one process. A cell is noted when it begins, in both directions; what it gave is looked at when the backward
    pass is through, one host sync for a text.

    rank    of this process in the world
    events  a list that takes what happens, for measuring; None = nobody asks
    """

    def __init__(self, watch: Watchdog, rank: int, step: int, events: list[Event] | None = None) -> None:
        self.watch, self.rank, self.step, self.events = watch, rank, step, events
        self._finite: list[tuple[int, Cell, Tensor]] = []  # direction, cell, whether what it gave is finite: a scalar

    def begins(self, cell: Cell, direction: int) -> None:
        """The cell is computed from now on."""
        self.watch.set_state(stands(self.step, *cell, direction), is_computing=True)
        self._note(direction, cell)

    def waits(self, what: str, direction: int) -> None:
        """For a message, from now on."""
        self.watch.set_state(f"waiting for {what}")
        self._note(direction, None)

    def rests(self, direction: int) -> None:
        """No cell is computed for now."""
        self.watch.set_state(f"in step {self.step}, between two passes")
        self._note(direction, None)

    def follows(self, cell: Cell, states: Tensor) -> None:
        """Looks at the cell's output (B, N, D), and in the backward pass at its gradient, with which that of the cell begins."""
        if states.requires_grad:
            self._finite.append((FORWARD, cell, torch.isfinite(states.detach()).all()))
            states.register_hook(lambda gradient: self._comes_back(cell, gradient))

    def well(self, cell: Cell) -> Tensor | bool:
        """Whether what the cell gave in the forward pass is finite, as far as it was looked at; a scalar, not waited for."""
        return self._finite[-1][2] if self._finite and self._finite[-1][:2] == (FORWARD, cell) else True

    def check(self) -> None:
        """The backward pass is through.

        Raises: ProcessFailure naming the first cell whose numbers are not finite.
        """
        finite = torch.stack([flag for *_, flag in self._finite]).tolist() if self._finite else []
        for (direction, cell, _), well in zip(self._finite, finite):
            if not well:
                raise not_finite(self.rank, stands(self.step, *cell, direction))
        self._finite.clear()
        self.rests(BACKWARD)

    def _comes_back(self, cell: Cell, gradient: Tensor | None) -> None:
        self.begins(cell, BACKWARD)
        if gradient is not None:  # else nothing that is supervised depends on the stream, only on the memory
            self._finite.append((BACKWARD, cell, torch.isfinite(gradient).all()))

    def _note(self, direction: int, cell: Cell | None) -> None:
        if self.events is not None:
            self.events.append(Event(time.monotonic(), direction, cell))


def spans_of(events: Sequence[Event], direction: int) -> dict[Cell, tuple[float, float]]:
    """When each cell was computed in one direction, {cell: (start, end)} in the order of starting: until the next event."""
    return {
        event.cell: (event.at, after.at)
        for event, after in zip(events, events[1:])
        if event.cell is not None and event.direction == direction
    }


def stands(step: int, chunk: int, layer: int, direction: int) -> str:
    """For people."""
    return f"in step {step}, {DIRECTIONS[direction]}, chunk {chunk}, layer {layer}"


def not_finite(rank: int, where: str) -> ProcessFailure:
    """What is raised where numbers are not finite."""
    return ProcessFailure(f"rank {rank} made numbers that are not finite {where}")
