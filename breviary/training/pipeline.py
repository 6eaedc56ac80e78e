"""Where a process stands when several of them read one batch together: pipelines of R neighbouring ranks.

World = pipelines x R, rank = pipeline * R + place: neighbours in a pipeline are neighbours in the world, so that what crosses
between them stays on one machine wherever R divides its processes.
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
    """One process's place.

    ranks     R, processes of a pipeline; pipeline  which of them this process belongs to (0 ..); index  place in it
    rising, falling  process groups of the pipeline, for messages to higher and to lower ranks; None = one process. They are
              two, and neither is the world's: a backend that takes up messages between two ranks in the order of the calls
              then never holds one behind a message the other way, or behind a sum of gradients.
    watch     over the processes of the world; None = one process
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
        """Whether this process's counts stand for the pipeline's batch: it is the same on all its ranks."""
        return self.index == 0


def describe_pipelines(world: int, ranks: int) -> str:
    """Which ranks are a pipeline, for people."""
    lines = [
        f"pipeline {number}: ranks {', '.join(map(str, range(number * ranks, (number + 1) * ranks)))}"
        for number in range(world // ranks)
    ]
    return "\n".join(lines)


def init_pipeline_group(ranks: int, timeout: float = 900) -> PipelineGroup:
    """This process's place in pipelines of `ranks` processes, with its groups, whose neighbours are connected, and a watch that
    waits `timeout` seconds. Called by every process of the world, as groups are made together.

    Raises: ValueError if the processes do not divide into pipelines.
    """
    world = world_size()
    if ranks < 1 or world % ranks:
        raise ValueError(
            f"engine.ranks={ranks}: the {world} processes do not divide into pipelines of so many; e.g. "
            f"engine.ranks={world}"
        )
    pipeline, index = divmod(rank(), ranks)
    place = PipelineGroup(ranks, pipeline, index)
    if ranks == 1:
        return place
    # The watch speaks first: it knows who failed, where a message that does not come only tells of a neighbour.
    groups = [
        tuple(
            dist.new_group(list(range(number * ranks, (number + 1) * ranks)), timeout=timedelta(seconds=2 * timeout))
            for _ in range(2)
        )
        for number in range(world // ranks)
    ]
    place = PipelineGroup(ranks, pipeline, index, *groups[pipeline], start_watchdog(rank(), world, timeout))
    _connect(place)
    return place


def _connect(place: PipelineGroup) -> None:
    """One message each way between neighbours, the last and the first included, pair after pair in an order that all share.

    NCCL connects two ranks at their first message and holds up both until then: a receiver that makes room ahead would wait
    for a sender that waits for it.
    """
    on_gpu = dist.get_backend(place.to_higher) == "nccl"
    token = torch.zeros(1, device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu")
    for low, high in sorted({tuple(sorted((at, (at + 1) % place.ranks))) for at in range(place.ranks)}):
        if place.index == low:
            dist.send(token, place.members[high], place.to_higher)
            dist.recv(token, place.members[high], place.to_lower)
        elif place.index == high:
            dist.recv(token, place.members[low], place.to_higher)
            dist.send(token, place.members[low], place.to_lower)


# ------------------------------------------------------------------ gradients that come together


def deferred_gradients(
    value: Tensor, weights: Sequence[Tensor], others: Sequence[Tensor] = (), checks: Callable[[], None] = lambda: None
) -> Tensor:
    """The same value, whose backward pass gives every weight its whole gradient at its very end, all in one go.

    An engine that reduces gradients over the ranks as they arise (ZeRO 2) waits for all ranks at each bucket, and puts into a
    bucket what comes next. Ranks of a pipeline stand at different layers: they would wait for each other, or sum gradients of
    different weights. Given at once, gradients come after the last message and, out of equal graphs, in equal order.

    value    (...) with a graph
    weights  leaves; one that `value` does not depend on gets zeros, as other ranks may use it
    others   leaves that the backward pass is to reach too; they get no gradient
    checks   called when it is through, before any weight has a gradient
    Cost: the gradients of one backward pass are held whole on every rank until it is through, and reducing does not overlap.
    """
    return _AtOnce.apply([value], others, checks, *weights)


class _AtOnce(torch.autograd.Function):
    """([value], others, checks, weights ...) -> value. In a list the value brings no graph along: it has a backward pass of its
    own."""

    @staticmethod
    def forward(
        ctx: Any, box: list[Tensor], others: Sequence[Tensor], checks: Callable[[], None], *weights: Tensor
    ) -> Tensor:
        ctx.box, ctx.others, ctx.checks, ctx.weights = box, others, checks, weights
        return box[0].detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Popped: autograd frees the inner graph while it goes through it.
        leaves = [*ctx.weights, *ctx.others]
        found = torch.autograd.grad(ctx.box.pop(), leaves, gradient, materialize_grads=True)
        ctx.checks()
        return None, None, None, *found[: len(ctx.weights)]
