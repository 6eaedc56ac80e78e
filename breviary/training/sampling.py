"""Order of the training examples, as a function of the seed only."""

from __future__ import annotations

import heapq
import itertools
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler


def shuffled_pass(count: int, seed: int, number: int) -> tuple[array, random.Random]:
    """(order of `count` examples in pass `number`, random generator for further draws of this pass)."""
    rng = random.Random(f"{seed}-{number}")
    order = array("q", range(count))  # 8 bytes per example; a list takes 40
    rng.shuffle(order)
    return order, rng


class StepSampler(Sampler[int]):
    """Example indices of a whole training run as one epoch; depends on the arguments only.

    lengths  tokens of each example
    batch    examples of an optimizer step
    total    examples of the run
    grouped  batches hold examples of similar length. Where the last batch of a pass is short, examples of the next pass
             of the nearest lengths complete it, so that every optimizer step has a group of its own
    Each pass over the data is shuffled anew.
    """

    def __init__(self, lengths: Sequence[int], batch: int, total: int, seed: int, grouped: bool):
        self.lengths, self.batch, self.total, self.seed, self.grouped = lengths, batch, total, seed, grouped

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        # Fewer examples than a batch: a batch holds whole passes, and there is nothing to group.
        passes = self._grouped_passes() if self.grouped and len(self.lengths) >= self.batch else self._passes()
        return itertools.islice(itertools.chain.from_iterable(passes), self.total)

    def _shuffled(self, number: int) -> tuple[array, random.Random]:
        return shuffled_pass(len(self.lengths), self.seed, number)

    def _passes(self) -> Iterator[Iterable[int]]:
        return (self._shuffled(number)[0] for number in itertools.count())

    def _grouped_passes(self) -> Iterator[Iterable[int]]:
        """Every pass but for the examples that the pass before it took; each is a multiple of a batch."""
        taken: set[int] = set()
        for number in itertools.count():
            order, rng = self._shuffled(number)
            order = array("q", (i for i in order if i not in taken)) if taken else order
            # Sorted within pools of 16 batches: batches of similar lengths that differ from pass to pass.
            pool = 16 * self.batch
            for start in range(0, len(order), pool):
                order[start : start + pool] = array(
                    "q", sorted(order[start : start + pool], key=self.lengths.__getitem__)
                )
            batches = array("q", range(len(order) // self.batch))
            short = list(order[len(batches) * self.batch :])
            rng.shuffle(batches)
            taken = set(self._nearest(short, rng)) if short else set()
            yield itertools.chain(self._of_batches(order, batches), short, sorted(taken))

    def _of_batches(self, order: array, batches: array) -> Iterator[int]:
        for number in batches:
            yield from order[number * self.batch : (number + 1) * self.batch]

    def _nearest(self, short: list[int], rng: random.Random) -> list[int]:
        """The examples that complete a short batch: others, of the lengths nearest to its mean, ties at random."""
        mean, own = sum(self.lengths[i] for i in short) / len(short), set(short)
        others = array("q", (i for i in range(len(self.lengths)) if i not in own))
        rng.shuffle(others)
        return heapq.nsmallest(self.batch - len(short), others, key=lambda i: abs(self.lengths[i] - mean))


class RepeatBatches(Sampler[Any]):
    """Yields every batch `copies` times in a row.

    Processes take batches in turn, so that the `copies` ranks of a pipeline get the same batch.
    """

    def __init__(self, sampler: Any, batch: int, copies: int):
        self.sampler, self.batch, self.copies = sampler, batch, copies

    def __len__(self) -> int:
        return len(self.sampler) * self.copies

    def __iter__(self) -> Iterator[Any]:
        indices = iter(self.sampler)
        while batch := list(itertools.islice(indices, self.batch)):
            for _ in range(self.copies):
                yield from batch
