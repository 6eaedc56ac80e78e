"""Order of the training examples, as a function of the seed only."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from torch.utils.data import Sampler


class StepSampler(Sampler[int]):
    """Example indices of a whole training run as one epoch; depends on the arguments only.

    lengths  tokens of each example
    batch    examples of an optimizer step
    total    examples of the run
    grouped  batches hold examples of similar length
    Each pass over the data is shuffled anew.
    """

    def __init__(self, lengths: list[int], batch: int, total: int, seed: int, grouped: bool):
        self.lengths, self.batch, self.total, self.seed, self.grouped = lengths, batch, total, seed, grouped

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        passes = itertools.chain.from_iterable(map(self._pass, itertools.count()))
        return itertools.islice(passes, self.total)

    def _pass(self, number: int) -> list[int]:
        rng = random.Random(f"{self.seed}-{number}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        if not self.grouped:
            return order
        # Sorted within pools of 16 batches: batches of similar lengths that differ from pass to pass.
        pool = 16 * self.batch
        pools = [sorted(order[i : i + pool], key=lambda j: self.lengths[j]) for i in range(0, len(order), pool)]
        order = [j for p in pools for j in p]
        batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        rng.shuffle(batches)
        return [j for b in batches for j in b]


class RepeatBatches(Sampler[int]):
    """Yields every batch `copies` times in a row.

    Processes take batches in turn, so that the `copies` ranks of a pipeline get the same batch.
    """

    def __init__(self, sampler: StepSampler, batch: int, copies: int):
        self.sampler, self.batch, self.copies = sampler, batch, copies

    def __len__(self) -> int:
        return len(self.sampler) * self.copies

    def __iter__(self) -> Iterator[int]:
        indices = iter(self.sampler)
        while batch := list(itertools.islice(indices, self.batch)):
            for _ in range(self.copies):
                yield from batch
