"""What crosses from one chunk to the next: a layer's memory forward, its gradient back (CoMeT, spec 2.2, 2.3).

Shape letters: B rows, G global slots, T queue slots, D width.

A passage is one reading of a text. For each chunk and layer it takes what the chunk before left, and gives what this one
leaves; between chunks of one process that is all. Between two processes each is one message of bytes,

    [ step, chunk, layer, direction, finite : int64 | S (B, G, D) | Q (B, T, D) ]

each part in its own type, so that nothing is rounded and a half-precision queue takes half the bytes. M is a function of S:
the receiver computes it. Sizes and masks follow from the plan of the chunks, which every process knows; nothing is negotiated.

Gradients go the same way back: what gives waits in its backward pass for the gradient, what takes sends it. Messages carry
tags and are checked against their header, so which node autograd visits first decides about waiting, never about values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from breviary.training.pipeline import PipelineGroup, deferred_gradients
from comet.memory import LayerState
from comet.pipeline.monitor import BACKWARD, FORWARD, Event, Progress, not_finite, stands
from comet.pipeline.schedule import Cell

NAMES = ("memory", "gradient")
HEADER = 5  # int64
AHEAD = 2  # messages for which room is made before they are waited for: the one that is due and the next


@dataclass(frozen=True)
class Crossing:
    """Sizes of what crosses into a chunk, for each layer: rows B, global slots G, queue slots T, width D; the queue's type
    (the stream's) and the carried slots' (float32 at least)."""

    rows: int
    global_slots: int
    queue_slots: int
    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def parts(self) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of header, S and Q. No type is wider than those before it: every part begins at a multiple of its
        items' size."""
        carried = torch.promote_types(self.dtype, torch.float32)
        return [
            (torch.int64, (HEADER,)),
            (carried, (self.rows, self.global_slots, self.width)),
            (self.dtype, (self.rows, self.queue_slots, self.width)),
        ]

    @property
    def bytes(self) -> int:
        """Of a message."""
        return sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in self.parts)

    def room(self) -> Tensor:
        """A message's bytes, not filled in, (N,) uint8."""
        return torch.empty(self.bytes, dtype=torch.uint8, device=self.device)

    def views(self, message: Tensor) -> list[Tensor]:
        """Header (5,), S (B, G, D) and Q (B, T, D) as they lie in a message."""
        found, at = [], 0
        for dtype, shape in self.parts:
            end = at + dtype.itemsize * torch.Size(shape).numel()
            found.append(message[at:end].view(dtype).view(shape))
            at = end
        return found

    def packed(self, header: Sequence[int], carried: Tensor, queue: Tensor, well: Tensor | bool = True) -> Tensor:
        """The message; header = step, chunk, layer, direction; well = whether what it was made of is finite. Whether all is
        finite is found on the device, and not waited for."""
        for (dtype, shape), part in zip(self.parts[1:], (carried, queue)):
            assert (part.dtype, tuple(part.shape)) == (dtype, shape), (part.dtype, part.shape, dtype, shape)
        message = self.room()
        views = self.views(message)
        views[0][:-1].copy_(torch.tensor(header, dtype=torch.int64))
        views[0][-1].copy_(torch.isfinite(carried).all() & torch.isfinite(queue).all() & well)
        for view, part in zip(views[1:], (carried, queue)):
            view.copy_(part)
        return message


class Handoff:
    """Memory goes from chunk to chunk within one process."""

    ranks, rank = 1, 0

    def open(
        self, owner: Sequence[int], order: Sequence[Cell], layers: int, crossings: Mapping[int, Crossing]
    ) -> Passage:
        """One reading of a text.

        owner, order  as in comet.pipeline.schedule, of its chunks and of this rank
        crossings     what crosses into each chunk; a chunk into which nothing does is not there
        """
        return Passage()


class Passage:
    """One reading of a text within one process: what is given to a chunk is what it takes."""

    def __init__(self) -> None:
        self._kept: dict[Cell, LayerState | None] = {}

    def take(self, chunk: int, layer: int) -> LayerState | None:
        """What the chunk before left in a layer; None = nothing yet."""
        return self._kept.pop((chunk, layer), None)

    def give(self, chunk: int, layer: int, states: Tensor, memory: LayerState | None) -> Tensor:
        """Leaves a layer's memory to `chunk`, the next one. The layer's output `states` (B, N, D) of the chunk that leaves it
        passes through: the result is to be used in its stead."""
        self._kept[chunk, layer] = memory
        return states

    def begins(self, chunk: int, layer: int) -> None:
        """A cell is computed from now on."""

    def follows(self, chunk: int, layer: int, states: Tensor) -> None:
        """A cell gave its output (B, N, D)."""

    def closed(self, value: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The loss, once all is read; its backward pass reaches everything that was given, and then `weights`."""
        return value


class PipelineHandoff(Handoff):
    """Memory goes from process to process where their chunks meet.

    place  of this process; its groups carry these messages and nothing else

    sent   messages sent so far, [memories, gradients]
    Cost: a message of B (G s + T q) D bytes, s and q the bytes of a carried and of a queued number, for each layer and for
    each border between two processes; the same back. A sent memory is kept until its gradient is there. A receiver looks at
    the header, one host sync for each message that it waits for: with the wrong memory, or with one that is not finite, nothing
    may go on. Not for gloo with memory on a GPU: gloo sends from the host.
    """

    def __init__(self, place: PipelineGroup):
        self.place, self.ranks, self.rank = place, place.ranks, place.index
        self.step = 0
        self.sent = [0, 0]
        self.events: list[Event] | None = None  # of what is read from now on, where somebody sets a list
        self.unanswered: list[tuple[Any, Tensor]] = []  # sends that no answer will follow, and what they send

    def open(
        self, owner: Sequence[int], order: Sequence[Cell], layers: int, crossings: Mapping[int, Crossing]
    ) -> Passage:
        """As Handoff's; every rank of the pipeline calls it for the same text, equally often."""
        self.finish()
        self.step += 1
        return PipelinePassage(self, owner, order, layers, crossings)

    def finish(self) -> None:
        """Waits until the others have what no answer will follow: gradients, and memories that were given without any."""
        while self.unanswered:
            self.unanswered.pop()[0].wait()


class PipelinePassage(Passage):
    """One reading of a text by several processes. Its backward pass goes once."""

    def __init__(
        self,
        handoff: PipelineHandoff,
        owner: Sequence[int],
        order: Sequence[Cell],
        layers: int,
        crossings: Mapping[int, Crossing],
    ) -> None:
        super().__init__()
        self.handoff, self.step, self.layers = handoff, handoff.step, layers
        self.owner, self.crossings = owner, crossings
        self.progress = Progress(handoff.place.watchdog, handoff.place.members[handoff.rank], handoff.step, handoff.events)
        self.answered = torch.is_grad_enabled()  # gradients will come for what is given
        self._leaves: list[Tensor] = []  # that a backward pass must reach, so that gradients are sent
        self._sends: dict[Cell, tuple[Any, Tensor]] = {}  # memories until their gradient is back
        self._last: dict[int, Tensor] = {}  # by chunk, the newest stream that passed a message
        self._inbox = {
            FORWARD: Inbox([cell for cell in order if self._travels(cell[0])]),
            BACKWARD: Inbox([(chunk + 1, layer) for chunk, layer in reversed(order) if self._travels(chunk + 1)]),
        }
        self._inbox[FORWARD].make_room(self._expected)

    def take(self, chunk: int, layer: int) -> LayerState | None:
        """As Passage's; waits for the message where another process gives."""
        if not self._travels(chunk):
            return super().take(chunk, layer)
        drive = torch.zeros((), device=self.crossings[chunk].device, requires_grad=self.answered)
        self._leaves.append(drive)
        return LayerState(*_Take.apply(self, (chunk, layer), drive))

    def give(self, chunk: int, layer: int, states: Tensor, memory: LayerState | None) -> Tensor:
        """As Passage's; sends, and does not wait, where another process takes."""
        if not self._travels(chunk):
            return super().give(chunk, layer, states, memory)
        assert memory is not None, f"chunk {chunk}, layer {layer}: nothing was kept of the chunks before"
        self._last[chunk] = states = _Give.apply(self, (chunk, layer), states, memory.carried, memory.queue)
        return states

    def begins(self, chunk: int, layer: int) -> None:
        """As Passage's."""
        self.progress.begins((chunk, layer), FORWARD)

    def follows(self, chunk: int, layer: int, states: Tensor) -> None:
        """As Passage's."""
        self.progress.follows((chunk, layer), states)

    def closed(self, value: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """As Passage's: a chunk that no supervised token is in has a loss only through the memory that it gave."""
        self.progress.rests(FORWARD)
        if not value.requires_grad:
            return value
        last, self._last = list(self._last.values()), {}  # not kept: this object is part of the graph that they hold
        value = _Tied.apply(value, *last) if last else value
        return deferred_gradients(value, weights, self._leaves, self.progress.check)

    def send(self, cell: Cell, direction: int, carried: Tensor, queue: Tensor) -> None:
        """Sends the memory that goes into a cell to the chunk's owner, or its gradient back to that of the chunk before."""
        well = direction == BACKWARD or self.progress.well((cell[0] - 1, cell[1]))
        message = self.crossings[cell[0]].packed([self.step, *cell, direction], carried, queue, well)
        work = dist.isend(message, tag=self._tag(cell, direction), **self._way(cell, direction, sends=True))
        self.handoff.sent[direction] += 1
        if direction == FORWARD and self.answered:
            self._sends[cell] = work, message
        else:
            self.handoff.unanswered.append((work, message))

    def received(self, cell: Cell, direction: int) -> tuple[Tensor, Tensor]:
        """S and Q of a cell, or their gradients; waits for the message.

        Raises: RuntimeError where another message came; ProcessFailure where its numbers are not finite.
        """
        ends = self.owner[cell[0] - 1], self.owner[cell[0]]
        sender = self.handoff.place.members[ends[direction]]
        wanted = [self.step, *cell, direction]
        self.progress.waits(f"{_told(wanted)} from rank {sender}", direction)
        message = self._inbox[direction].wait(cell, lambda due: self._expected(due, direction))
        header, carried, queue = self.crossings[cell[0]].views(message)
        *found, finite = header.tolist()
        if found != wanted:
            raise RuntimeError(
                f"pipeline: rank {self.handoff.rank} waited for {_told(wanted)} and got {_told(found)}: the ranks "
                "of a pipeline must read the same batches, as often and in the same order"
            )
        if not finite:  # the sender's cell: a memory goes to the next chunk
            raise not_finite(sender, stands(self.step, cell[0] - (direction == FORWARD), cell[1], direction))
        if direction == BACKWARD:  # whoever answers has the memory
            self._sends.pop(cell)[0].wait()
        return carried.clone(), queue.clone()  # off the message: autograd is to own them

    def _travels(self, chunk: int) -> bool:
        """Whether what goes into a chunk comes from another process."""
        return 0 < chunk < len(self.owner) and chunk in self.crossings and self.owner[chunk] != self.owner[chunk - 1]

    def _expected(self, cell: Cell, direction: int = FORWARD) -> tuple[Any, Tensor]:
        """Room for a cell's message, and what is waited for until it is there."""
        room = self.crossings[cell[0]].room()
        return dist.irecv(room, tag=self._tag(cell, direction), **self._way(cell, direction, sends=False)), room

    def _way(self, cell: Cell, direction: int, sends: bool) -> dict[str, Any]:
        """The other process and the group of a message that this one sends, or receives."""
        ends = self.owner[cell[0] - 1], self.owner[cell[0]]
        source, target = ends if direction == FORWARD else ends[::-1]
        place = self.handoff.place
        other = {"dst": place.members[target]} if sends else {"src": place.members[source]}
        return other | {"group": place.to_higher if source < target else place.to_lower}

    def _tag(self, cell: Cell, direction: int) -> int:
        """Without the step: a rank that is a step behind gets the wrong message and says so, instead of none for ever."""
        return 2 * (cell[0] * self.layers + cell[1]) + direction


class Inbox:
    """Messages in the order in which they are due; room for the next is made before one is waited for.

    `expect` of the methods: cell -> (something to wait for, the bytes). It is not kept: it holds the passage, which holds this.
    """

    def __init__(self, due: Sequence[Cell]) -> None:
        self._due, self._next = list(due), 0
        self._coming: dict[Cell, tuple[Any, Tensor]] = {}

    def make_room(self, expect: Callable[[Cell], tuple[Any, Tensor]]) -> None:
        """For the next message, if there is one."""
        if self._next < len(self._due):
            cell = self._due[self._next]
            self._coming[cell] = expect(cell)
            self._next += 1

    def wait(self, cell: Cell, expect: Callable[[Cell], tuple[Any, Tensor]]) -> Tensor:
        """The cell's message, in whatever order cells are asked for."""
        assert cell in self._coming or cell in self._due[self._next :], f"no message is due for {cell}"
        while cell not in self._coming:
            self.make_room(expect)
        if len(self._coming) < AHEAD:
            self.make_room(expect)
        work, message = self._coming.pop(cell)
        work.wait()
        return message


class _Give(torch.autograd.Function):
    """(states, S, Q) -> states; S and Q are sent, and their gradients received."""

    @staticmethod
    def forward(
        ctx: Any, passage: PipelinePassage, cell: Cell, states: Tensor, carried: Tensor, queue: Tensor
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.passage, ctx.cell = passage, cell
        passage.send(cell, FORWARD, carried, queue)
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, states: Tensor | None) -> tuple[Any, ...]:
        return None, None, states, *ctx.passage.received(ctx.cell, BACKWARD)


class _Take(torch.autograd.Function):
    """-> (S, Q), received; their gradients are sent. `drive` requires a gradient, so that the backward pass comes by."""

    @staticmethod
    def forward(ctx: Any, passage: PipelinePassage, cell: Cell, drive: Tensor) -> tuple[Tensor, Tensor]:
        ctx.passage, ctx.cell = passage, cell
        return passage.received(cell, FORWARD)

    @staticmethod
    def backward(ctx: Any, carried: Tensor, queue: Tensor) -> tuple[None, None, None]:
        ctx.passage.send(ctx.cell, BACKWARD, carried, queue)
        return None, None, None


class _Tied(torch.autograd.Function):
    """(value, states ...) -> value. The states get no gradient, not even zeros, yet the backward pass goes on to them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *states: Tensor) -> Tensor:
        ctx.count = len(states)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, value: Tensor) -> tuple[Tensor | None, ...]:
        return value, *[None] * ctx.count


def _told(header: Sequence[int]) -> str:
    step, chunk, layer, direction = header
    name = NAMES[direction] if direction in (FORWARD, BACKWARD) else f"direction {direction}"
    return f"the {name} of step {step}, chunk {chunk}, layer {layer}"
