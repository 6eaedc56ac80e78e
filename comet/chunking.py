"""How a text is cut into chunks (CoMeT, spec 3.3). Plain numbers on the host: work per chunk, never per token.

N tokens of a text, c tokens of a full chunk. Every strategy returns the chunks' sizes in order; they sum to N, and each
is from 1 to c. Only `random.Random.random` is used: its sequence is the same in every Python version.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

STRATEGIES = ("fixed", "right_aligned", "uniform", "random", "semantic", "mixture")
# Probabilities of MIXED by text length, as published: below one chunk; below three quarters of the longest text; above.
MIXTURE = ((0.8, 0.1, 0.1, 0.0, 0.0), (0.6, 0.1, 0.2, 0.05, 0.05), (0.6, 0.1, 0.1, 0.2, 0.0))
MIXED = ("fixed", "right_aligned", "random", "uniform", "semantic")
BOUNDARIES = ("<|im_end|>", " \n", "\n", "\n\n", ".", ",", "。")  # tokens after which the semantic strategy cuts


def fixed(tokens: int, chunk: int) -> list[int]:
    """Full chunks, the remainder last."""
    return [chunk] * (tokens // chunk) + ([tokens % chunk] if tokens % chunk else [])


def right_aligned(tokens: int, chunk: int) -> list[int]:
    """Full chunks, the remainder first."""
    return fixed(tokens, chunk)[::-1]


def uniform(tokens: int, chunk: int, chunks: int) -> list[int]:
    """`chunks` chunks, or as many more as the text needs, whose sizes differ by at most 1."""
    count = min(max(chunks, -(-tokens // chunk)), tokens)
    return [tokens // count + (i < tokens % count) for i in range(count)]


def random_sizes(tokens: int, chunk: int, chunks: int, smallest: int, rng: random.Random) -> list[int]:
    """A random number of chunks of random sizes: at most `chunks` where that suffices, each of at least `smallest`."""
    fewest = -(-tokens // chunk)
    most = max(min(tokens // smallest, chunks), fewest)
    count = fewest + int(rng.random() * (most - fewest + 1))
    smallest = min(smallest, tokens // count)
    sizes, slack = [smallest] * count, tokens - count * smallest
    while slack:  # random shares of the slack, capped by the room; each round fills a chunk or uses up the slack
        open_chunks = [i for i in range(count) if sizes[i] < chunk]
        shares = [rng.random() + 1e-9 for _ in open_chunks]
        ends, at = [], 0.0
        for share in shares:
            at += share / sum(shares)
            ends.append(min(round(at * slack), slack))
        ends[-1] = slack
        for i, start, end in zip(open_chunks, [0, *ends], ends):
            taken = min(end - start, chunk - sizes[i])
            sizes[i] += taken
            slack -= taken
    return sizes


def semantic(tokens: int, chunk: int, smallest: int, boundaries: Sequence[int]) -> list[int]:
    """Each chunk ends at the last boundary within `smallest` to c tokens; without one, after c tokens.

    boundaries  ascending positions (number of preceding tokens) where a text may be cut
    """
    sizes, start = [], 0
    while tokens - start > chunk:
        last = bisect.bisect_right(boundaries, start + chunk) - 1
        end = boundaries[last] if last >= 0 and boundaries[last] >= start + smallest else start + chunk
        sizes.append(end - start)
        start = end
    return sizes + ([tokens - start] if tokens > start else [])


class ChunkPlanner:
    """Cuts texts with one strategy. Random choices depend on the argument `seed` alone.

    chunk_size      c
    stride          text tokens per compression token
    strategy        one of STRATEGIES; mixture draws one of MIXED for each text with the published probabilities
    most_chunks     of the random and uniform strategies; the mixture's longest text has most_chunks * c tokens
    smallest_chunk  tokens, of the random, uniform and semantic strategies
    widest_stride   largest stride of `sample_stride`; None = always `stride`
    """

    def __init__(
        self,
        chunk_size: int,
        stride: int,
        strategy: str = "mixture",
        most_chunks: int = 16,
        smallest_chunk: int = 4,
        widest_stride: int | None = None,
    ):
        assert strategy in STRATEGIES, strategy
        self.chunk_size, self.stride, self.strategy = chunk_size, stride, strategy
        self.most_chunks, self.smallest_chunk, self.widest_stride = most_chunks, smallest_chunk, widest_stride

    def plan(self, tokens: int, boundaries: Sequence[int] = (), seed: str = "") -> list[int]:
        """Sizes of the chunks of a text of `tokens` tokens; [] without tokens. `boundaries` as in `semantic`."""
        if not tokens:
            return []
        rng = random.Random(f"chunks-{seed}")
        c, strategy = self.chunk_size, self.strategy
        if strategy == "mixture":
            shares = MIXTURE[(tokens >= c) + (tokens >= 0.75 * self.most_chunks * c)]
            strategy = _weighted_choice(rng, MIXED, shares)
        if strategy == "fixed":
            return fixed(tokens, c)
        if strategy == "right_aligned":
            return right_aligned(tokens, c)
        if strategy == "uniform":
            return uniform(tokens, c, min(self.most_chunks, max(tokens // self.smallest_chunk, 1)))
        if strategy == "random":
            return random_sizes(tokens, c, self.most_chunks, self.smallest_chunk, rng)
        return semantic(tokens, c, self.smallest_chunk, boundaries)

    def sample_stride(self, seed: str = "") -> int:
        """Stride of a text in a training step.

        One of the n values `stride` * 2^i up to `widest_stride`, with weights (n - i)^2.
        """
        if self.widest_stride is None:
            return self.stride
        choices = [self.stride]
        while choices[-1] * 2 <= self.widest_stride:
            choices.append(choices[-1] * 2)
        weights = [(len(choices) - i) ** 2 for i in range(len(choices))]
        return _weighted_choice(random.Random(f"stride-{seed}"), choices, [w / sum(weights) for w in weights])


def _weighted_choice(rng: random.Random, choices: Sequence[T], weights: Sequence[float]) -> T:
    """One of `choices`, with probabilities proportional to `weights`."""
    at = rng.random() * sum(weights)
    for choice, weight in zip(choices, weights):
        at -= weight
        if at < 0:
            return choice
    return choices[-1]
