"""Caches of encoded contexts: each distinct context is encoded once for all its questions.

`ContextCache` is for the questions of one evaluation. `EncodingStore` shares encoded contexts between evaluations of
the same weights in one process (`variants` of eval.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from time import perf_counter
from typing import Any

import torch

from breviary.contract import Batch, Compressor, Context, Encoded, Tokens
from breviary.decoding.shared_keys import SharedKeys, join_shared
from breviary.memory.encoded_batches import join_contexts, move_encoded, split_contexts
from breviary.runtime.device import synchronise
from breviary.runtime.timing import READ, add_phase_seconds, phase


def context_keys(prefix: Tokens, context: Tokens) -> list[bytes]:
    """A key for each row, from the token ids of its prefix and context; independent of padding."""
    prefixes, contexts = (
        [ids[mask].cpu().numpy().tobytes() for ids, mask in zip(part.ids, part.mask)] for part in (prefix, context)
    )
    return [first + b"|" + second for first, second in zip(prefixes, contexts)]


class ContextCacheBase:
    """Least-recently-used cache of values that a method computes from contexts, keyed by the ids of prefix and context.

    capacity  maximum number of contexts
    reused    for each row of the last call: True where its context was already in the cache
    """

    def __init__(self, capacity: int = 32) -> None:
        self.capacity = capacity
        self.reused: list[bool] = []
        self._entries: OrderedDict[bytes, Any] = OrderedDict()
        self._keys: list[bytes] = []  # of the last call's rows

    def lookup(self, prefix: Tokens, context: Tokens, compute: Callable[[list[int]], Sequence[Any]]) -> list[Any]:
        """The entry of each row. `compute` returns, in order, the entries of the row indices that are missing."""
        keys = self._keys = context_keys(prefix, context)
        missing = list({key: b for b, key in reversed(list(enumerate(keys))) if key not in self._entries}.values())
        self.reused = [b not in missing for b in range(len(keys))]
        entries = {key: self._entries[key] for key in keys if key in self._entries}
        if missing:
            self._make_room(len(missing), entries)  # before the new ones are computed: not held at the same time
            entries |= zip((keys[b] for b in missing), compute(missing))
        for key in keys:
            self._entries[key] = entries[key]
            self._entries.move_to_end(key)
        while len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
        return [entries[key] for key in keys]

    def replace(self, entries: Sequence[Any]) -> None:
        """Replaces the entries of the last call's rows, those that are still in the cache."""
        self._entries |= {key: entry for key, entry in zip(self._keys, entries) if key in self._entries}

    def held_bytes(self, prefix: Tokens, context: Tokens) -> list[int] | None:
        """Bytes held of each row's context; None where one is not in the cache."""
        entries = [self._entries.get(key) for key in context_keys(prefix, context)]
        return None if any(entry is None for entry in entries) else [self._entry_bytes(entry) for entry in entries]

    def _entry_bytes(self, entry: Any) -> int:
        """Bytes of one entry."""
        raise NotImplementedError

    def _make_room(self, count: int, keep: Collection[bytes]) -> None:
        """Removes the oldest entries, but none of `keep`, until `count` further ones fit."""
        removable = [key for key in self._entries if key not in keep]
        for key in removable[: max(len(self._entries) + count - self.capacity, 0)]:
            del self._entries[key]


LIMIT_BYTES = 4 * 2**30  # for comparison: a context of 3,000 tokens takes 7 MB (SmolLM2-135M, float32, join: depth)


class EncodingStore:
    """Encoded contexts in CPU memory, up to `limit_bytes`.

    A full store evicts nothing: every evaluation visits all contexts in the same order, so a store that evicts its
    oldest entry would have no hits. All compressors that use a store must have the same `encode`: equal weights, and
    settings that differ only in `compress_only_keys`.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._entries: dict[bytes, tuple[Encoded, float]] = {}  # with the seconds that encoding took
        self._bytes = 0

    def encode(self, compressor: Compressor, context: Context) -> list[Encoded]:
        """`compressor.encode` of each of B rows, as B encodings of batch size 1.

        A hit adds the seconds of its first encoding to phase "read", so that tables report the cost of encoding.
        """
        keys, device = context_keys(context.prefix, context), context.ids.device
        missing = [b for b, key in enumerate(keys) if key not in self._entries]
        add_phase_seconds(READ, sum(self._entries[key][1] for key in keys if key in self._entries))
        result = {b: move_encoded(self._entries[key][0], device) for b, key in enumerate(keys) if key in self._entries}
        if missing:
            rows = torch.tensor(missing, device=device)
            part = Context(context.ids[rows], context.mask[rows], context.prefix.rows(rows))
            synchronise()
            start = perf_counter()
            encoded = split_contexts(compressor.encode(part))
            synchronise()
            seconds = (perf_counter() - start) / len(missing)
            for b, one in zip(missing, encoded):
                self._insert(keys[b], one, seconds)
            result |= zip(missing, encoded)
        return [result[b] for b in range(len(keys))]

    def _insert(self, key: bytes, one: Encoded, seconds: float) -> None:
        if self._bytes + one.bytes <= self.limit_bytes:
            self._entries[key] = move_encoded(one, "cpu"), seconds
            self._bytes += one.bytes


class PrefillCache(ContextCacheBase):
    """The decoder's keys and values of [prefix ; memory], a SharedKeys of one row for each context."""

    def _entry_bytes(self, entry: SharedKeys) -> int:
        return entry.row_bytes()[0]


class ContextCache(ContextCacheBase):
    """Encoded contexts and, where the memory needs no question, the decoder's keys and values of the memory.

    store  encodings shared with other evaluations of the same weights
    """

    def __init__(self, capacity: int = 32, store: EncodingStore | None = None) -> None:
        super().__init__(capacity)
        self.prefills, self.store = PrefillCache(capacity), store

    def prefilled(self, batch: Batch, prefill: Callable[[list[int]], Sequence[SharedKeys]]) -> SharedKeys:
        """The prefilled memory of every row. `prefill` takes the row indices that are missing."""
        joined = join_shared(self.prefills.lookup(batch.prefix, batch.context, prefill))
        self.prefills.replace(joined.split())  # so that the tensors from which it was joined are not held beside it
        self.reused = self.prefills.reused
        return joined

    def held_bytes(self, prefix: Tokens, context: Tokens) -> list[int] | None:
        """As ContextCacheBase.held_bytes: the memory where it serves any question, else the encoded context."""
        prefilled = self.prefills.held_bytes(prefix, context)
        return super().held_bytes(prefix, context) if prefilled is None else prefilled

    def _entry_bytes(self, entry: Encoded) -> int:
        return entry.bytes

    def encode(self, compressor: Compressor, context: Context, keep: bool = True) -> Encoded:
        """`compressor.encode(context)`; contexts in the cache are not encoded again.

        keep  False: the contexts are not added to the cache, as nothing will read them again
        """

        def encode_missing(missing: list[int]) -> list[Encoded]:
            rows = torch.tensor(missing, device=context.ids.device)
            part = Context(context.ids[rows], context.mask[rows], context.prefix.rows(rows))
            with phase(READ):
                return self.store.encode(compressor, part) if self.store else split_contexts(compressor.encode(part))

        rows = (
            self.lookup(context.prefix, context, encode_missing) if keep else encode_missing([*range(len(context.ids))])
        )
        return join_contexts(rows)
