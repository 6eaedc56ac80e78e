"""Forms of RAM, and its memory, for the tests of the whole compressor.

Segments of 6 tokens cut the ragged contexts of 50, 0, 14, 2 and 32 tokens into 9, 0, 3, 1 and 6 of them.
"""

import torch

FROZEN = ["decoder.train=frozen"]  # adapters take time to build
SIX = ["compressor=ram", "compressor.segment_size=6", "compressor.ratio=2", *FROZEN]
ALL = ["compressor=ram", "compressor.segment_size=6", "compressor.ratio=1", *FROZEN]
DEPTH, WHOLE = "compressor.join=depth", "compressor.read=whole"
SKIMMED = "compressor.keep=none"
SLOTS = ["compressor.ratio=null", "compressor.slots=17"]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def memory_of(reader, batch):
    """The memory that the reader makes of a batch on its way to the loss, and that loss."""
    made, compress = [], reader.compressor.compress

    def watched(*args):
        made.append(compress(*args))
        return made[0]

    reader.compressor.compress = watched
    try:
        output = reader.loss(batch)
    finally:
        del reader.compressor.compress
    return made[0], output


def rows_of(memory):
    """Slots of each context, without padding."""
    return [embeds[mask] for embeds, mask in zip(memory.embeds, memory.mask)]
