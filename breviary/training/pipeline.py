"""Pipelines: groups of R neighbouring ranks that process one batch together.

The world consists of world size / R pipelines; rank = pipeline * R + index. Neighbours in a pipeline are neighbours in
the world, so their messages stay on one machine wherever R divides its number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from breviary.runtime.distributed import rank, world_size
from breviary.training.watchdog import Watchdog, start_watchdog


@dataclass(frozen=True)
class PipelineGroup:
    """The pipeline of this process, and its index in it.

    ranks      R, processes of a pipeline
    pipeline   number of this process's pipeline, from 0
    index      of this process in the pipeline, from 0
    to_higher  process group for messages to higher ranks; None = one process
    to_lower   process group for messages to lower ranks. Two groups, separate from the world's: a backend that handles
               the messages between two ranks in order of the calls then never blocks a message behind one in the other
               direction, or behind a reduction of gradients
    watchdog   over all processes of the world; None = one process
    """

    ranks: int = 1
    pipeline: int = 0
    index: int = 0
    to_higher: Any = None
    to_lower: Any = None
    watchdog: Watchdog | None = None

    @property
    def members(self) -> range:
        """World ranks of the pipeline, in order."""
        return range(self.pipeline * self.ranks, (self.pipeline + 1) * self.ranks)

    @property
    def reports_counts(self) -> bool:
        """Whether this process reports the counts of the batch, which all ranks of the pipeline share."""
        return self.index == 0


def describe_pipelines(world: int, ranks: int) -> str:
    """One printed line per pipeline, with its ranks."""
    lines = [
        f"pipeline {number}: ranks {', '.join(map(str, range(number * ranks, (number + 1) * ranks)))}"
        for number in range(world // ranks)
    ]
    return "\n".join(lines)


def init_pipeline_group(ranks: int, timeout: float = 900) -> PipelineGroup:
    """The pipeline of this process, of `ranks` processes: process groups, connected neighbours and a watchdog.

    Called by every process of the world, because process groups are created collectively.
    timeout  of the watchdog in seconds

    Raises: ValueError where the world size is not a multiple of `ranks`.
    """
    world = world_size()
    if ranks < 1 or world % ranks:
        raise ValueError(
            f"engine.ranks={ranks}: the {world} processes do not divide into pipelines of so many; e.g. "
            f"engine.ranks={world}"
        )
    pipeline, index = divmod(rank(), ranks)
    if ranks == 1:
        return PipelineGroup(ranks, pipeline, index)
    # Twice the watchdog's timeout: the watchdog names the failed rank, a missing message only the neighbour.
    groups = [
        tuple(
            dist.new_group(list(range(number * ranks, (number + 1) * ranks)), timeout=timedelta(seconds=2 * timeout))
            for _ in range(2)
        )
        for number in range(world // ranks)
    ]
    to_higher, to_lower = groups[pipeline]
    group = PipelineGroup(ranks, pipeline, index, to_higher, to_lower, start_watchdog(rank(), world, timeout))
    _connect_neighbours(group)
    return group


def _connect_neighbours(group: PipelineGroup) -> None:
    """Exchanges one message per direction between neighbours, including last and first, pair by pair in a common order.

    NCCL connects two ranks at their first message and blocks both until then: a receiver that posts its buffer early
    would wait for a sender that waits for it.
    """
    on_gpu = dist.get_backend(group.to_higher) == "nccl"
    token = torch.zeros(1, device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu")
    for low, high in sorted({tuple(sorted((i, (i + 1) % group.ranks))) for i in range(group.ranks)}):
        if group.index == low:
            dist.send(token, group.members[high], group.to_higher)
            dist.recv(token, group.members[high], group.to_lower)
        elif group.index == high:
            dist.recv(token, group.members[low], group.to_higher)
            dist.send(token, group.members[low], group.to_lower)


# ------------------------------------------------------------------ deferred gradients


def deferred_gradients(
    value: Tensor, weights: Sequence[Tensor], others: Sequence[Tensor] = (), checks: Callable[[], None] = lambda: None
) -> Tensor:
    """The same value; its backward pass sets the gradients of all weights together, at its end.

    An engine that reduces gradients over the ranks as they are computed (ZeRO 2) waits for all ranks at each bucket,
    and fills buckets in order of arrival. Ranks of a pipeline compute different layers at a time: they would wait for
    each other, or sum gradients of different weights. Deferred gradients are set after the last message, in an order
    that is equal on all ranks.

    value    (...) with a graph
    weights  leaves; a weight that `value` does not depend on gets zeros, as other ranks may use it
    others   further leaves that the backward pass must reach; their gradients are discarded
    checks   called after the backward pass, before any weight has a gradient
    Cost: every rank holds all gradients of one backward pass until its end; reduction does not overlap with it.
    """
    return _DeferredGradients.apply([value], others, checks, *weights)


class _DeferredGradients(torch.autograd.Function):
    """([value], others, checks, weights ...) -> value.

    The list hides the value's graph from autograd: `backward` runs its own backward pass through it.
    """

    @staticmethod
    def forward(
        ctx: Any, box: list[Tensor], others: Sequence[Tensor], checks: Callable[[], None], *weights: Tensor
    ) -> Tensor:
        ctx.box, ctx.others, ctx.checks, ctx.weights = box, others, checks, weights
        return box[0].detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Popped, so that autograd can free the inner graph during its backward pass.
        leaves = [*ctx.weights, *ctx.others]
        gradients = torch.autograd.grad(ctx.box.pop(), leaves, gradient, materialize_grads=True)
        ctx.checks()
        return None, None, None, *gradients[: len(ctx.weights)]
