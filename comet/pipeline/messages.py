"""Messages between two processes: one layer's memory, or its gradient (CoMeT, spec 2.2, 2.3).

Shape letters: B rows, G global slots, T queue slots, D width.

A message is one block of bytes,

    [ step, chunk, layer, direction, finite : int64 | S (B, G, D) | Q (B, T, D) ]

Every part keeps its dtype: nothing is rounded, and a half-precision queue takes half the bytes. M is computed
from S by the receiver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comet.pipeline.schedule import Task

HEADER = 5  # int64
POSTED = 2  # receives that are posted at a time: the due one and the next


@dataclass(frozen=True)
class MessageLayout:
    """Sizes of the messages into a chunk, for each layer.

    rows B, global_slots G, queue_slots T, width D
    dtype  of the queue and of the hidden states; S has float32 or wider
    """

    rows: int
    global_slots: int
    queue_slots: int
    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def parts(self) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of header, S and Q. Ordered from wide to narrow dtypes, so that every part is aligned."""
        state_dtype = torch.promote_types(self.dtype, torch.float32)
        return [
            (torch.int64, (HEADER,)),
            (state_dtype, (self.rows, self.global_slots, self.width)),
            (self.dtype, (self.rows, self.queue_slots, self.width)),
        ]

    @property
    def bytes(self) -> int:
        """Bytes of a message."""
        return sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in self.parts)

    def allocate(self) -> Tensor:
        """An uninitialised message, (bytes,) uint8."""
        return torch.empty(self.bytes, dtype=torch.uint8, device=self.device)

    def views(self, message: Tensor) -> list[Tensor]:
        """Views of a message: header (5,), S (B, G, D) and Q (B, T, D)."""
        views, start = [], 0
        for dtype, shape in self.parts:
            end = start + dtype.itemsize * torch.Size(shape).numel()
            views.append(message[start:end].view(dtype).view(shape))
            start = end
        return views

    def pack(
        self, header: Sequence[int], global_state: Tensor, queue: Tensor, is_finite: Tensor | bool = True
    ) -> Tensor:
        """The message; header = step, chunk, layer, direction.

        is_finite  all values that the memory was computed from are finite
        The finite flag is computed on the device, without a host sync.
        """
        for (dtype, shape), part in zip(self.parts[1:], (global_state, queue)):
            assert (part.dtype, tuple(part.shape)) == (dtype, shape), (part.dtype, part.shape, dtype, shape)
        message = self.allocate()
        views = self.views(message)
        views[0][:-1].copy_(torch.tensor(header, dtype=torch.int64))
        views[0][-1].copy_(torch.isfinite(global_state).all() & torch.isfinite(queue).all() & is_finite)
        for view, part in zip(views[1:], (global_state, queue)):
            view.copy_(part)
        return message


class Inbox:
    """Messages in the order in which they are due; the next receive is posted before the due message is waited for.

    `post` of the methods: task -> (handle to wait for, message buffer). It is not stored: it refers to the transfer,
    which owns this inbox.
    """

    def __init__(self, due: Sequence[Task]) -> None:
        self._due, self._next = list(due), 0
        self._posted: dict[Task, tuple[Any, Tensor]] = {}

    def post_next(self, post: Callable[[Task], tuple[Any, Tensor]]) -> None:
        """Posts the receive of the next message, if there is one."""
        if self._next < len(self._due):
            task = self._due[self._next]
            self._posted[task] = post(task)
            self._next += 1

    def wait(self, task: Task, post: Callable[[Task], tuple[Any, Tensor]]) -> Tensor:
        """The task's message; tasks may come in any order."""
        assert task in self._posted or task in self._due[self._next :], f"no message is due for {task}"
        while task not in self._posted:
            self.post_next(post)
        if len(self._posted) < POSTED:
            self.post_next(post)
        work, message = self._posted.pop(task)
        work.wait()
        return message
