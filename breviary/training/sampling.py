"""TODO DOC"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from torch.utils.data import Sampler


class StepSampler(Sampler[int]):
    """Example indices of a whole training, as one epoch; a function of the arguments alone.

    Each pass over the data is shuffled anew; with `grouped`, batches hold examples of similar length.
    """

    def __init__(self, lengths: list[int], batch: int, total: int, seed: int, grouped: bool):
        self.lengths, self.batch, self.total, self.seed, self.grouped = lengths, batch, total, seed, grouped

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        given, number = 0, 0
        while given < self.total:
            for index in self._pass(number):
                if given == self.total:
                    return
                given += 1
                yield index
            number += 1

    def _pass(self, number: int) -> list[int]:
        rng = random.Random(f"{self.seed}-{number}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        if not self.grouped:
            return order
        # Sorted within pools of 16 batches: similar lengths together, yet every pass mixes them differently.
        pool = 16 * self.batch
        pools = [sorted(order[i : i + pool], key=lambda j: self.lengths[j]) for i in range(0, len(order), pool)]
        order = [j for p in pools for j in p]
        batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        rng.shuffle(batches)
        return [j for b in batches for j in b]


class RepeatBatches(Sampler[int]):
    """Every batch `copies` times: batches go to the processes in turn, and neighbours that read one together get the same."""

    def __init__(self, sampler: StepSampler, batch: int, copies: int):
        self.sampler, self.batch, self.copies = sampler, batch, copies

    def __len__(self) -> int:
        return len(self.sampler) * self.copies

    def __iter__(self) -> Iterator[int]:
        indices = iter(self.sampler)
        while batch := list(itertools.islice(indices, self.batch)):
            for _ in range(self.copies):
                yield from batch
