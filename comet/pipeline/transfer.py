"""Transfer of a layer's memory from one chunk to the next, and of its gradient back (CoMeT, spec 2.2, 2.3).

Shape letters: B rows, N columns of a chunk, G global slots, T queue slots, D width.

A transfer serves one forward and backward pass over one text. For each chunk and layer it receives the memory after the
previous chunk and sends the memory after this one. Within one process the memory is handed over as it is; between two
processes it is one message (comet/pipeline/messages.py). Sizes and masks follow from the chunk plan, which every
process knows: nothing is negotiated.

Gradients take the same way back: the backward pass of a send waits for the gradient, that of a receive sends it.
Messages are tagged and checked against their header, so the order in which autograd visits nodes affects waiting times,
never values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from breviary.training.pipeline import PipelineGroup, deferred_gradients
from comet.memory import LayerState
from comet.pipeline.messages import Inbox, MessageLayout
from comet.pipeline.monitor import BACKWARD, FORWARD, Event, TextMonitor, describe_task, non_finite_failure
from comet.pipeline.schedule import Task

CONTENTS = ("memory", "gradient")  # by direction


class LocalTransport:
    """Transport of memory within one process."""

    ranks, rank = 1, 0

    def start_text(
        self, owners: Sequence[int], tasks: Sequence[Task], layers: int, messages: Mapping[int, MessageLayout]
    ) -> LocalTransfer:
        """The transfer for one text.

        owners, tasks  rank of each chunk, and the tasks of this rank, as in comet.pipeline.schedule
        messages       layout of the messages into each chunk; chunks without memory slots have none
        """
        return LocalTransfer()


class LocalTransfer:
    """Transfer within one process: a chunk receives the very object that was sent to it."""

    def __init__(self) -> None:
        self._memories: dict[Task, LayerState | None] = {}

    def receive(self, chunk: int, layer: int) -> LayerState | None:
        """A layer's memory after the previous chunk; None = empty."""
        return self._memories.pop((chunk, layer), None)

    def send(self, chunk: int, layer: int, states: Tensor, memory: LayerState | None) -> Tensor:
        """Sends a layer's memory to `chunk`, the next one.

        states  (B, N, D) the layer's output for the sending chunk. The caller goes on with the returned tensor instead.
        """
        self._memories[chunk, layer] = memory
        return states

    def start_task(self, chunk: int, layer: int) -> None:
        """Called before a task is computed."""

    def end_task(self, chunk: int, layer: int, states: Tensor) -> None:
        """Called with the task's output (B, N, D)."""

    def attach_backward(self, loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The loss, whose backward pass reaches every sent memory and then `weights`."""
        return loss


class PipelineTransport(LocalTransport):
    """Transport of memory between the processes of a pipeline.

    group          this process's pipeline; its process groups carry these messages and nothing else
    messages_sent  [memories, gradients] sent so far
    events         a list that records events of the following texts; None = not recorded

    Cost: per layer and border between two processes one message of B (G s + T q) D bytes, with s and q the bytes of a
    number of S and Q; the same for gradients. A sent memory stays allocated until its gradient arrives. The receiver
    reads the header of every message, one host sync each: it must not go on with a wrong or non-finite memory. gloo
    sends from the host, so it does not support memory on a GPU.
    """

    def __init__(self, group: PipelineGroup):
        self.group, self.ranks, self.rank = group, group.ranks, group.index
        self.step = 0
        self.messages_sent = [0, 0]
        self.events: list[Event] | None = None
        self.pending_sends: list[tuple[Any, Tensor]] = []  # handles and buffers of messages that get no reply

    def start_text(
        self, owners: Sequence[int], tasks: Sequence[Task], layers: int, messages: Mapping[int, MessageLayout]
    ) -> LocalTransfer:
        """As in LocalTransport. Every rank of the pipeline calls it for the same texts in the same order."""
        self.wait_for_sends()
        self.step += 1
        return PipelineTransfer(self, owners, tasks, layers, messages)

    def wait_for_sends(self) -> None:
        """Waits for all sends that get no reply: gradients, and memories sent without gradients."""
        while self.pending_sends:
            self.pending_sends.pop()[0].wait()


class PipelineTransfer(LocalTransfer):
    """Transfer between several processes. Supports one backward pass."""

    def __init__(
        self,
        transport: PipelineTransport,
        owners: Sequence[int],
        tasks: Sequence[Task],
        layers: int,
        messages: Mapping[int, MessageLayout],
    ) -> None:
        super().__init__()
        self.transport, self.step, self.layers = transport, transport.step, layers
        self.owners, self.messages = owners, messages
        group = transport.group
        assert group.watchdog is not None, group  # None only in a group of one process
        self.monitor = TextMonitor(group.watchdog, group.members[transport.rank], transport.step, transport.events)
        self.has_gradients = torch.is_grad_enabled()  # a gradient will arrive for every sent memory
        self._leaves: list[Tensor] = []  # the backward pass must reach them, so that gradients are sent
        self._sends: dict[Task, tuple[Any, Tensor]] = {}  # memories whose gradient has not arrived
        self._last_states: dict[int, Tensor] = {}  # by chunk: the latest hidden states with a send in their graph
        self._inbox = {
            FORWARD: Inbox([task for task in tasks if self._crosses_ranks(task[0])]),
            BACKWARD: Inbox([(chunk + 1, layer) for chunk, layer in reversed(tasks) if self._crosses_ranks(chunk + 1)]),
        }
        self._inbox[FORWARD].post_next(self._post_receive)

    def receive(self, chunk: int, layer: int) -> LayerState | None:
        """As in LocalTransfer; waits for the message where another process sends the memory."""
        if not self._crosses_ranks(chunk):
            return super().receive(chunk, layer)
        leaf = torch.zeros((), device=self.messages[chunk].device, requires_grad=self.has_gradients)
        self._leaves.append(leaf)
        return LayerState(*_Receive.apply(self, (chunk, layer), leaf))

    def send(self, chunk: int, layer: int, states: Tensor, memory: LayerState | None) -> Tensor:
        """As in LocalTransfer; sends without waiting where another process receives."""
        if not self._crosses_ranks(chunk):
            return super().send(chunk, layer, states, memory)
        assert memory is not None, f"chunk {chunk}, layer {layer}: no memory to send"
        states = _Send.apply(self, (chunk, layer), states, memory.global_state, memory.queue)
        self._last_states[chunk] = states
        return states

    def start_task(self, chunk: int, layer: int) -> None:
        """Reports the task to the monitor."""
        self.monitor.start_task((chunk, layer), FORWARD)

    def end_task(self, chunk: int, layer: int, states: Tensor) -> None:
        """Lets the monitor check the task's output."""
        self.monitor.watch_output((chunk, layer), states)

    def attach_backward(self, loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """As in LocalTransfer.

        A chunk without supervised tokens contributes to the loss through its sent memory only.
        """
        self.monitor.start_idle(FORWARD)
        if not loss.requires_grad:
            return loss
        # Not kept as an attribute: this object is part of the graph that the states hold.
        states, self._last_states = list(self._last_states.values()), {}
        loss = _KeepInGraph.apply(loss, *states) if states else loss
        return deferred_gradients(loss, weights, self._leaves, self.monitor.check_finite)

    def send_message(self, task: Task, direction: int, global_state: Tensor, queue: Tensor) -> None:
        """Sends a task's incoming memory to its rank, or the memory's gradient to the rank of the previous chunk."""
        is_finite = direction == BACKWARD or self.monitor.is_finite((task[0] - 1, task[1]))
        message = self.messages[task[0]].pack([self.step, *task, direction], global_state, queue, is_finite)
        work = dist.isend(message, tag=self._tag(task, direction), **self._peer(task, direction, sends=True))
        self.transport.messages_sent[direction] += 1
        if direction == FORWARD and self.has_gradients:
            self._sends[task] = work, message
        else:
            self.transport.pending_sends.append((work, message))

    def receive_message(self, task: Task, direction: int) -> tuple[Tensor, Tensor]:
        """S and Q of a task's incoming memory, or their gradients; waits for the message.

        Raises: RuntimeError for another message than the expected one; ProcessFailure for non-finite values.
        """
        ends = self.owners[task[0] - 1], self.owners[task[0]]
        sender = self.transport.group.members[ends[direction]]
        expected = [self.step, *task, direction]
        self.monitor.start_waiting(f"{_describe(expected)} from rank {sender}", direction)
        message = self._inbox[direction].wait(task, lambda due: self._post_receive(due, direction))
        header, global_state, queue = self.messages[task[0]].views(message)
        *received, is_finite = header.tolist()
        if received != expected:
            raise RuntimeError(
                f"pipeline: rank {self.transport.rank} expected {_describe(expected)} and received "
                f"{_describe(received)}: all ranks of a pipeline must process the same batches in the same order"
            )
        if not is_finite:  # the sender's task: a memory is sent to the next chunk
            raise non_finite_failure(
                sender, describe_task(self.step, task[0] - (direction == FORWARD), task[1], direction)
            )
        if direction == BACKWARD:  # the reply implies that the memory was received
            self._sends.pop(task)[0].wait()
        return global_state.clone(), queue.clone()  # autograd must own them, not views of the message

    def _crosses_ranks(self, chunk: int) -> bool:
        """Whether another process sends the chunk's incoming memory."""
        return 0 < chunk < len(self.owners) and chunk in self.messages and self.owners[chunk] != self.owners[chunk - 1]

    def _post_receive(self, task: Task, direction: int = FORWARD) -> tuple[Any, Tensor]:
        """Handle and buffer of a task's message."""
        buffer = self.messages[task[0]].allocate()
        work = dist.irecv(buffer, tag=self._tag(task, direction), **self._peer(task, direction, sends=False))
        return work, buffer

    def _peer(self, task: Task, direction: int, sends: bool) -> dict[str, Any]:
        """The other process and the process group, as arguments of isend (`sends`) or irecv."""
        ends = self.owners[task[0] - 1], self.owners[task[0]]
        source, target = ends if direction == FORWARD else ends[::-1]
        group = self.transport.group
        peer = {"dst": group.members[target]} if sends else {"src": group.members[source]}
        return peer | {"group": group.to_higher if source < target else group.to_lower}

    def _tag(self, task: Task, direction: int) -> int:
        """Does not include the step: a rank that is one step behind receives the wrong message and fails, not hangs."""
        return 2 * (task[0] * self.layers + task[1]) + direction


class _Send(torch.autograd.Function):
    """(states, S, Q) -> states. Sends S and Q; the backward pass receives their gradients."""

    @staticmethod
    def forward(
        ctx: Any, transfer: PipelineTransfer, task: Task, states: Tensor, global_state: Tensor, queue: Tensor
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.transfer, ctx.task = transfer, task
        transfer.send_message(task, FORWARD, global_state, queue)
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, states: Tensor | None) -> tuple[Any, ...]:
        return None, None, states, *ctx.transfer.receive_message(ctx.task, BACKWARD)


class _Receive(torch.autograd.Function):
    """leaf -> (S, Q). Receives S and Q; the backward pass sends their gradients.

    The leaf requires a gradient, so that the backward pass reaches this node.
    """

    @staticmethod
    def forward(ctx: Any, transfer: PipelineTransfer, task: Task, leaf: Tensor) -> tuple[Tensor, Tensor]:
        ctx.transfer, ctx.task = transfer, task
        return transfer.receive_message(task, FORWARD)

    @staticmethod
    def backward(ctx: Any, global_state: Tensor, queue: Tensor) -> tuple[None, None, None]:
        ctx.transfer.send_message(ctx.task, BACKWARD, global_state, queue)
        return None, None, None


class _KeepInGraph(torch.autograd.Function):
    """(loss, states ...) -> loss.

    The states get no gradient, not even zeros, but the backward pass visits their nodes.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *states: Tensor) -> Tensor:
        ctx.count = len(states)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, loss: Tensor) -> tuple[Tensor | None, ...]:
        return loss, *[None] * ctx.count


def _describe(header: Sequence[int]) -> str:
    step, chunk, layer, direction = header
    content = CONTENTS[direction] if direction in (FORWARD, BACKWARD) else f"direction {direction}"
    return f"the {content} of step {step}, chunk {chunk}, layer {layer}"
