"""Traces of compressors, made by hand."""


def ram_trace(kept, relevance, tokens, size, dropped=False):
    """The padded trace of a compressor that keeps some segments whole and merges each other one into a slot."""
    slots, next_slot = [], 0
    for start, keep in zip(range(0, tokens, size), kept):
        count = min(size, tokens - start)
        slots += range(next_slot, next_slot + count) if keep else [-1 if dropped else next_slot] * count
        next_slot += count if keep else not dropped
    return {
        "kept": [*kept, False],
        "relevance": [*relevance, 0.0],
        "groups": [[*slots, -1, -1]],
        "weights": [[1.0] * len(slots) + [0.0, 0.0]],
    }
