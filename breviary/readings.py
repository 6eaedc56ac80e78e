"""Contexts that one reader's weights have read, for several evaluations of them in one process (eval.py's `variants`)."""

from __future__ import annotations

from itertools import chain
from time import perf_counter

import torch

from breviary.context_cache import context_keys
from breviary.contract import Compressor, Context, Encoded
from breviary.runtime import spent, synchronise

LIMIT_BYTES = 4 * 2**30  # of 7 MB a context of 3,000 tokens of SmolLM2-135M in float32, joining at depth


class Readings:
    """Encoded contexts, on the CPU. Once `limit_bytes` are full nothing more is kept: every evaluation comes by all contexts in
    the same order, so that forgetting the oldest would find none again.

    Only for compressors whose `encode` is the same function: equal weights, and settings that differ in `after_reading` alone.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._kept: dict[bytes, tuple[Encoded, float]] = {}
        self._bytes = 0

    def encode(self, compressor: Compressor, context: Context) -> list[Encoded]:
        """`compressor.encode` of every row (B of them), each of batch size 1.

        Rows that were read before count as many seconds again: a table says what reading costs, not what keeping it saves.
        """
        keys, device = context_keys(context.prefix, context), context.ids.device
        missing = [b for b, key in enumerate(keys) if key not in self._kept]
        spent("encode", sum(self._kept[key][1] for key in keys if key in self._kept))
        found = {b: self._kept[key][0].to(device) for b, key in enumerate(keys) if key in self._kept}
        if missing:
            rows = torch.tensor(missing, device=device)
            own = context.rows(rows)
            synchronise()
            start = perf_counter()
            read = compressor.encode(Context(own.ids, own.mask, context.prefix.rows(rows))).split()
            synchronise()
            seconds = (perf_counter() - start) / len(missing)
            for b, one in zip(missing, read):
                self._keep(keys[b], one, seconds)
            found |= zip(missing, read)
        return [found[b] for b in range(len(keys))]

    def _keep(self, key: bytes, one: Encoded, seconds: float) -> None:
        tensors = chain((one.states, one.mask, one.ids), *one.keys_values)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self._bytes + size <= self.limit_bytes:
            self._kept[key] = one.to("cpu"), seconds
            self._bytes += size
