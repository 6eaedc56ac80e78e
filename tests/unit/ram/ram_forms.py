"""Configurations of RAM and helpers, for the tests of the whole compressor.

Segments of 6 tokens split the ragged contexts of 50, 0, 14, 2 and 32 tokens into 9, 0, 3, 1 and 6 of them.
"""

import torch

FROZEN = ["decoder.train=frozen"]  # saves the time to build adapters
SIX = ["compressor=ram", "compressor.segment_size=6", "compressor.ratio=2", *FROZEN]
ALL = ["compressor=ram", "compressor.segment_size=6", "compressor.ratio=1", *FROZEN]
SEVERAL = ["compressor=ram_comi", "compressor.join=input", "compressor.read=segments", "compressor.skim_ratio=2"]
DEPTH, WHOLE = "compressor.join=depth", "compressor.read=whole"
SKIMMED = "compressor.keep=none"
SLOTS = ["compressor.ratio=null", "compressor.slots=17"]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def memory_of(reader, batch):
    """The memory that `reader.loss` computes for a batch, and its result."""
    memories, compress = [], reader.compressor.compress

    def recorded(*args):
        memories.append(compress(*args))
        return memories[0]

    reader.compressor.compress = recorded
    try:
        output = reader.loss(batch)
    finally:
        del reader.compressor.compress
    return memories[0], output


def rows_of(memory):
    """Slots of each context, without padding."""
    return [embeds[mask] for embeds, mask in zip(memory.embeds, memory.mask)]
