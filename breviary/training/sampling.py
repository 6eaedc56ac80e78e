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
    grouped  batches hold examples of similar length. Where the last batch of a pass is short, examples of the next pass
             of the nearest lengths complete it, so that every optimizer step has a group of its own
    Each pass over the data is shuffled anew.
    """

    def __init__(self, lengths: list[int], batch: int, total: int, seed: int, grouped: bool):
        self.lengths, self.batch, self.total, self.seed, self.grouped = lengths, batch, total, seed, grouped

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        # Fewer examples than a batch: a batch holds whole passes, and there is nothing to group.
        passes = self._grouped_passes() if self.grouped and len(self.lengths) >= self.batch else self._passes()
        return itertools.islice(itertools.chain.from_iterable(passes), self.total)

    def _shuffled(self, number: int) -> tuple[list[int], random.Random]:
        """The order of a pass, and the generator of its further draws."""
        rng = random.Random(f"{self.seed}-{number}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        return order, rng

    def _passes(self) -> Iterator[list[int]]:
        return (self._shuffled(number)[0] for number in itertools.count())

    def _grouped_passes(self) -> Iterator[list[int]]:
        """Every pass but for the examples that the pass before it took; each is a multiple of a batch."""
        taken: set[int] = set()
        for number in itertools.count():
            order, rng = self._shuffled(number)
            order = [i for i in order if i not in taken]
            # Sorted within pools of 16 batches: batches of similar lengths that differ from pass to pass.
            pool = 16 * self.batch
            pools = [sorted(order[i : i + pool], key=lambda j: self.lengths[j]) for i in range(0, len(order), pool)]
            order = [j for p in pools for j in p]
            batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
            short = batches.pop() if batches and len(batches[-1]) < self.batch else []
            rng.shuffle(batches)
            taken = set(self._nearest(short, rng)) if short else set()
            yield [j for b in batches for j in b] + short + sorted(taken)

    def _nearest(self, short: list[int], rng: random.Random) -> list[int]:
        """The examples that complete a short batch: others, of the lengths nearest to its mean, ties at random."""
        mean, own = sum(self.lengths[i] for i in short) / len(short), set(short)
        others = [i for i in range(len(self.lengths)) if i not in own]
        rng.shuffle(others)
        return sorted(others, key=lambda i: abs(self.lengths[i] - mean))[: self.batch - len(short)]


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
