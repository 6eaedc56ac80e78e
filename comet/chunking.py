"""How a text is cut into chunks (CoMeT, spec 3.3). Plain numbers on the host: work per chunk, never per token.

N tokens of a text, c tokens of a full chunk. Every function gives the chunks' sizes in order; they sum to N, each is from
1 to c. Only `random.Random.random` is drawn from: its sequence is the same in every Python version.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence

STRATEGIES = ("fixed", "right_aligned", "uniform", "random", "semantic", "mixture")
# Shares of (fixed, right_aligned, random, uniform, semantic) by length, as published: below one chunk, below three
# quarters of the longest text, and above.
MIXTURE = ((0.8, 0.1, 0.1, 0.0, 0.0), (0.6, 0.1, 0.2, 0.05, 0.05), (0.6, 0.1, 0.1, 0.2, 0.0))
MIXED = ("fixed", "right_aligned", "random", "uniform", "semantic")
BOUNDARIES = ("<|im_end|>", " \n", "\n", "\n\n", ".", ",", "。")  # tokens after which the semantic strategy cuts


def fixed(tokens: int, chunk: int) -> list[int]:
    """Full chunks, what is left over last."""
    return [chunk] * (tokens // chunk) + ([tokens % chunk] if tokens % chunk else [])


def right_aligned(tokens: int, chunk: int) -> list[int]:
    """Full chunks, what is left over first."""
    return fixed(tokens, chunk)[::-1]


def uniform(tokens: int, chunk: int, chunks: int) -> list[int]:
    """`chunks` chunks, or as many more as must be, whose sizes differ by at most 1."""
    count = min(max(chunks, -(-tokens // chunk)), tokens)
    return [tokens // count + (i < tokens % count) for i in range(count)]


def random_sizes(tokens: int, chunk: int, chunks: int, smallest: int, rng: random.Random) -> list[int]:
    """A drawn number of chunks, at most `chunks` where that is enough, of drawn sizes of at least `smallest`."""
    fewest = -(-tokens // chunk)
    most = max(min(tokens // smallest, chunks), fewest)
    count = fewest + int(rng.random() * (most - fewest + 1))
    smallest = min(smallest, tokens // count)
    sizes, slack = [smallest] * count, tokens - count * smallest
    while slack:  # drawn shares of what is left, cut to the room; each round fills a chunk or uses up the slack
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
    """Each chunk ends at the latest boundary that leaves it `smallest` to c tokens, else after c.

    boundaries  ascending places (tokens before them) where a text may be cut
    """
    sizes, at = [], 0
    while tokens - at > chunk:
        found = bisect.bisect_right(boundaries, at + chunk) - 1
        end = boundaries[found] if found >= 0 and boundaries[found] >= at + smallest else at + chunk
        sizes.append(end - at)
        at = end
    return sizes + ([tokens - at] if tokens > at else [])


class ChunkPlanner:
    """Cuts texts as configured; draws are a function of what is passed as `drawn`.

    strategy    one of STRATEGIES; mixture draws one of the others for each text by the published shares
    chunk_size  c; most_chunks, smallest_chunk  of the drawn strategies; the longest text of the mixture's shares is
                most_chunks * c
    stride      text tokens for each compression token; widest_stride  None, or training draws each text's stride from
                the powers of two times `stride` up to it, small ones more often ((n - i)^2)
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

    def plan(self, tokens: int, boundaries: Sequence[int] = (), drawn: str = "") -> list[int]:
        """Sizes of the chunks of a text of `tokens` tokens; [] for no token. `boundaries` as in `semantic`."""
        if not tokens:
            return []
        rng = random.Random(f"chunks-{drawn}")
        c, strategy = self.chunk_size, self.strategy
        if strategy == "mixture":
            shares = MIXTURE[(tokens >= c) + (tokens >= 0.75 * self.most_chunks * c)]
            strategy = _drawn(rng, MIXED, shares)
        if strategy == "fixed":
            return fixed(tokens, c)
        if strategy == "right_aligned":
            return right_aligned(tokens, c)
        if strategy == "uniform":
            return uniform(tokens, c, min(self.most_chunks, max(tokens // self.smallest_chunk, 1)))
        if strategy == "random":
            return random_sizes(tokens, c, self.most_chunks, self.smallest_chunk, rng)
        return semantic(tokens, c, self.smallest_chunk, boundaries)

    def text_stride(self, drawn: str = "") -> int:
        """Stride of a text of a training step."""
        if self.widest_stride is None:
            return self.stride
        choices = [self.stride]
        while choices[-1] * 2 <= self.widest_stride:
            choices.append(choices[-1] * 2)
        weights = [(len(choices) - i) ** 2 for i in range(len(choices))]
        return _drawn(random.Random(f"stride-{drawn}"), choices, [weight / sum(weights) for weight in weights])


def _drawn(rng: random.Random, choices: Sequence, shares: Sequence[float]):
    """One of `choices`, each as often as its share says."""
    at = rng.random() * sum(shares)
    for choice, share in zip(choices, shares):
        at -= share
        if at < 0:
            return choice
    return choices[-1]
