"""Which rank computes which chunks of a text, in what order, and the resulting timeline (CoMeT, spec 2.2, 2.6).

Plain arithmetic on the host. C chunks, R ranks, L layers; a task is one layer over one chunk. It depends on the
previous layer over the same chunk (same rank) and on the same layer over the previous chunk (its memory).

    contiguous  a rank computes a block of neighbouring chunks, layer by layer: one message per layer and rank
    cyclic      rank j mod R computes chunk j through all layers: shorter idle times at both ends and equal loads, but
                one message per layer and chunk
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SCHEDULES = ("contiguous", "cyclic")
Task = tuple[int, int]  # chunk, layer


def chunk_owners(chunks: int, ranks: int, schedule: str) -> list[int]:
    """The rank of each chunk. With fewer chunks than ranks the last ranks have none.

    Contiguous blocks differ by at most one chunk. The longer blocks come first: a text's first chunks have fewer memory
    slots.
    """
    assert schedule in SCHEDULES, schedule
    if schedule == "cyclic":
        return [chunk % ranks for chunk in range(chunks)]
    return [rank for rank in range(ranks) for _ in range(chunks // ranks + (rank < chunks % ranks))]


def rank_tasks(owners: Sequence[int], layers: int, rank: int, schedule: str) -> list[Task]:
    """The tasks of a rank in the order of execution; `owners` from `chunk_owners`."""
    assert schedule in SCHEDULES, schedule
    own = [chunk for chunk, owner in enumerate(owners) if owner == rank]
    if schedule == "cyclic":
        return [(chunk, layer) for chunk in own for layer in range(layers)]
    return [(chunk, layer) for layer in range(layers) for chunk in own]


@dataclass(frozen=True)
class Timeline:
    """Start and end of each task, in the unit of the costs, on `ranks` ranks."""

    spans: dict[Task, tuple[float, float]]
    ranks: int

    @property
    def makespan(self) -> float:
        """Time from the first start to the last end."""
        return max((end for _, end in self.spans.values()), default=0.0)

    @property
    def bubble(self) -> float:
        """Idle share of the ranks' time; 0 without tasks."""
        busy = sum(end - start for start, end in self.spans.values())
        return 1 - busy / (self.ranks * self.makespan) if busy else 0.0


def simulate(
    chunks: int,
    layers: int,
    ranks: int,
    schedule: str,
    cost: Callable[[int, int], float] = lambda *task: 1.0,
    latency: float = 0.0,
) -> Timeline:
    """The timeline of a forward pass in which tasks wait for their dependencies only.

    cost     time of the task (chunk, layer)
    latency  time of a message between two ranks
    A backward pass has the same tasks with all dependencies and orders reversed: with equal costs it takes as long.
    """
    owners = chunk_owners(chunks, ranks, schedule)
    orders = [rank_tasks(owners, layers, rank, schedule) for rank in range(ranks)]
    done, free_at = [0] * ranks, [0.0] * ranks
    spans: dict[Task, tuple[float, float]] = {}
    while len(spans) < chunks * layers:
        before = len(spans)
        for rank, order in enumerate(orders):
            while done[rank] < len(order):
                chunk, layer = order[done[rank]]
                needed = [task for task in ((chunk, layer - 1), (chunk - 1, layer)) if min(task) >= 0]
                if not all(task in spans for task in needed):
                    break
                ready = max((spans[task][1] + latency * (owners[task[0]] != rank) for task in needed), default=0.0)
                start = max(ready, free_at[rank])
                free_at[rank] = start + cost(chunk, layer)
                spans[chunk, layer] = start, free_at[rank]
                done[rank] += 1
        assert len(spans) > before, f"{schedule}: deadlock after {before} tasks"
    return Timeline(spans, ranks)
