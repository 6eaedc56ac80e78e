"""Packing: whole texts are grouped into packs of a maximum number of tokens (CoMeT, arXiv 2602.01766).

train.batch_size counts packs. The reader processes each text as a separate example, so texts of a pack do not attend to
each other; in the published code they do.
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
    """Packs of at most `tokens` tokens: a text that does not fit starts a new pack; a longer text is a pack of its own.

    reader  class of the reader or compressor. A ChunkedReader processes texts without padding; for others, padding to
            the longest text of the pack counts as tokens
    """

    def __init__(self, tokens: int, reader: type):
        self.tokens, self.counts_padding = tokens, not issubclass(reader, ChunkedReader)

    def packs(self, lengths: Sequence[int], seed: int, number: int) -> Iterator[Pack]:
        """The packs of epoch `number`, in that epoch's order. lengths: tokens of each example."""
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
        """Number of packs in `epochs` passes over a tokenised split; a fraction of a pass is rounded up."""
        lengths, whole = text_lengths(items), math.floor(epochs)
        counts = [sum(1 for _ in self.packs(lengths, seed, number)) for number in range(math.ceil(epochs))]
        return sum(counts[:whole]) + sum(math.ceil((epochs - whole) * count) for count in counts[whole:])


class PackSampler(Sampler[Pack]):
    """The packs of a whole training run as one epoch, repacked in each pass. Depends on the arguments only.

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
