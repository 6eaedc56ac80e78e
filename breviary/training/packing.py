"""Packs: whole texts that share a row of a training batch, up to a number of tokens (CoMeT, arXiv 2602.01766).

A pack takes the place of an example: train.batch_size counts packs, and a batch holds all texts of its packs. The
reader gets each text as an example of its own, so nothing passes between the texts of a pack, which the published code
lets happen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, Sampler

from breviary.contract import Batch
from breviary.readers.chunked import ChunkedReader
from breviary.training.sampling import shuffled_pass

Pack = list[int]  # indices of examples


def text_lengths(items: Any) -> list[int]:
    """Tokens of each example's whole text, at most; `items` is a tokenised split."""
    return [context + other for context, other in zip(items.lengths, items.other_lengths)]


class Packing:
    """Packs of at most `tokens` tokens; a text that does not fit begins the next pack, a longer one is a pack alone.

    reader  class of the reader or compressor. A ChunkedReader processes the texts of a batch without padding; for any
            other, the padding of each text to the longest of its pack counts
    """

    def __init__(self, tokens: int, reader: type):
        self.tokens, self.counts_padding = tokens, not issubclass(reader, ChunkedReader)

    def packs(self, lengths: Sequence[int], seed: int, number: int) -> Iterator[Pack]:
        """The packs of pass `number` over examples of so many tokens, in an order of its own."""
        pack: Pack = []
        used = longest = 0
        for index in shuffled_pass(len(lengths), seed, number)[0]:
            size = max(longest, lengths[index]) * (len(pack) + 1) if self.counts_padding else used + lengths[index]
            if pack and size > self.tokens:
                yield pack
                pack, used, longest = [], 0, 0
            pack.append(index)
            used, longest = used + lengths[index], max(longest, lengths[index])
        if pack:
            yield pack

    def count(self, items: Any, seed: int, epochs: float = 1) -> int:
        """Packs in `epochs` passes over a tokenised split; of a last part of a pass its share, rounded up."""
        lengths, whole = text_lengths(items), math.floor(epochs)
        counts = [sum(1 for _ in self.packs(lengths, seed, number)) for number in range(math.ceil(epochs))]
        return sum(counts[:whole]) + sum(math.ceil((epochs - whole) * count) for count in counts[whole:])


class PackSampler(Sampler[Pack]):
    """The packs of a whole training run as one epoch; depends on the arguments only. Each pass is packed anew.

    items  tokenised split
    total  packs of the run
    """

    def __init__(self, packing: Packing, items: Any, total: int, seed: int):
        self.packing, self.lengths, self.total, self.seed = packing, text_lengths(items), total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Pack]:
        passes = (self.packing.packs(self.lengths, self.seed, number) for number in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(passes), self.total)


class PackedItems(Dataset):
    """Tokenised examples by pack."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, pack: Pack) -> list[Any]:
        """The items of a pack."""
        return [self.items[index] for index in pack]


def collate_packs(collate: Callable[[Sequence[Any]], Batch]) -> Callable[[Sequence[Any]], Batch]:
    """`collate` for items and for packs of them, which `PackedItems` yields."""

    def collated(rows: Sequence[Any]) -> Batch:
        return collate([item for row in rows for item in (row if isinstance(row, list) else [row])])

    return collated


def pack_notes(items: Any, tokens: int | None) -> list[str]:
    """A note where examples are longer than a pack, of which each is then one; tokens: of a pack, None = no packs."""
    longer = [length for length in text_lengths(items) if tokens is not None and length > tokens]
    if not longer:
        return []
    return [
        f"{len(longer)} texts have more than train.pack_tokens={tokens} tokens, the longest {max(longer)}: each is a "
        "pack of its own; limits.max_context_tokens cuts contexts"
    ]
