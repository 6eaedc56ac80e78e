"""Which process reads which chunks of a text, in what order, and how long that takes (CoMeT, spec 2.2, 2.6).

Plain arithmetic on the host. C chunks, R ranks, L layers; a cell is one layer over one chunk. It needs the cell of the layer
before (the same chunk: the same rank) and that of the chunk before (the same layer: its memory).

    contiguous  a rank reads a block of neighbouring chunks, layer by layer: one message for each layer and rank
    cyclic      chunk j is read by rank j mod R, a chunk through all layers: a shorter wait at both ends and equal loads,
                for one message for each layer and chunk
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SCHEDULES = ("contiguous", "cyclic")
Cell = tuple[int, int]  # chunk, layer


def owners(chunks: int, ranks: int, schedule: str) -> list[int]:
    """For each chunk the rank that reads it. Blocks differ by at most one chunk, the longer ones first: the first chunks of a
    text have fewer memory seats. With fewer chunks than ranks the last ranks have none."""
    assert schedule in SCHEDULES, schedule
    if schedule == "cyclic":
        return [chunk % ranks for chunk in range(chunks)]
    return [rank for rank in range(ranks) for _ in range(chunks // ranks + (rank < chunks % ranks))]


def cells(owner: Sequence[int], layers: int, rank: int, schedule: str) -> list[Cell]:
    """The cells of a rank in the order in which it computes them; `owner` as `owners` gives it."""
    assert schedule in SCHEDULES, schedule
    own = [chunk for chunk, its in enumerate(owner) if its == rank]
    if schedule == "cyclic":
        return [(chunk, layer) for chunk in own for layer in range(layers)]
    return [(chunk, layer) for layer in range(layers) for chunk in own]


@dataclass(frozen=True)
class Timeline:
    """When each cell is computed, {cell: (start, end)}, in the unit of the costs; ranks  R."""

    spans: dict[Cell, tuple[float, float]]
    ranks: int

    @property
    def makespan(self) -> float:
        """From the first start to the last end."""
        return max((end for _, end in self.spans.values()), default=0.0)

    @property
    def bubble(self) -> float:
        """Share of the ranks' time in which they wait; 0 for no work."""
        worked = sum(end - start for start, end in self.spans.values())
        return 1 - worked / (self.ranks * self.makespan) if worked else 0.0


def simulate(
    chunks: int,
    layers: int,
    ranks: int,
    schedule: str,
    cost: Callable[[int, int], float] = lambda *cell: 1.0,
    hop: float = 0.0,
) -> Timeline:
    """When the cells of a forward pass are computed, where nothing but the dependencies is waited for.

    cost  time of the cell (chunk, layer); hop  time of a message between two ranks
    A backward pass has the same cells with every dependency and order turned round: with the same costs it takes as long.
    """
    owner = owners(chunks, ranks, schedule)
    orders = [cells(owner, layers, rank, schedule) for rank in range(ranks)]
    at, free, spans = [0] * ranks, [0.0] * ranks, {}
    while len(spans) < chunks * layers:
        before = len(spans)
        for rank, order in enumerate(orders):
            while at[rank] < len(order):
                chunk, layer = order[at[rank]]
                needed = [(c, l) for c, l in ((chunk, layer - 1), (chunk - 1, layer)) if c >= 0 and l >= 0]
                if not all(cell in spans for cell in needed):
                    break
                ready = max((spans[cell][1] + hop * (owner[cell[0]] != rank) for cell in needed), default=0.0)
                start = max(ready, free[rank])
                free[rank] = start + cost(chunk, layer)
                spans[chunk, layer] = start, free[rank]
                at[rank] += 1
        assert len(spans) > before, f"{schedule}: every rank waits for another, after {before} cells"
    return Timeline(spans, ranks)
