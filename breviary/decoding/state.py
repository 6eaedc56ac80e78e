"""State of a decoder while it decodes: keys and values per layer, with a memory that joins at any layer.

Keys and values of encoded contexts (decoding/shared_keys.py) are computed once and shared by every question: each layer
joins them with the keys of the question and the answer while it computes, and no copy is held.
Shape letters: B rows, C contexts, N new tokens, K keys, D hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.attention import BLOCKWISE
from breviary.backbones.stack import Stack
from breviary.decoding.shared_keys import KeyMask, SharedKeys, shared_prefixes
from breviary.memory.assembly import take_columns

GROWTH = 16  # columns by which a full buffer of keys and values is enlarged


class DecodingState:
    """A partly decoded sequence whose lower and upper layers hold different keys.

    Below the joining layer n the cache holds [prefix, question, answer so far]; from n on it holds [prefix, memory,
    question, answer so far]. With n = 0 there are no lower layers.
    """

    def __init__(self, stack: Stack, layer: int):
        self.stack, self.layer = stack, layer
        self.cache = SharingCache()
        self.lower_mask: Tensor  # (B, K) valid keys of the lower layers, from prefill_lower on
        self.upper_mask: Tensor  # (B, K) valid keys of the upper layers behind the shared ones, from prefill_upper on
        self.next_position: Tensor  # (B,), from prefill_upper on
        self.slots: Tensor | None = None  # (B,) int64, memory slots among the upper layers' keys

    def prefill_lower(self, states: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """First pass through the lower layers; states (B, N, D), right-padded. Returns their output, (B, N, D)."""
        states = self.stack.run(states, range(self.layer), positions, mask, self.cache)
        self.lower_mask = self._without_padding(mask, range(self.layer))
        return states

    def prefill_upper(
        self, states: Tensor, positions: Tensor, mask: Tensor, before: SharedKeys | None = None
    ) -> Tensor:
        """First pass through the upper layers; states (B, N, D), right-padded. Returns each row's last logits, (B, V).

        mask    (B, N)
        before  keys and values that precede `states` in these layers
        """
        self.cache.before = before
        upper = range(self.layer, len(self.stack))
        last_B1 = (mask.sum(1, keepdim=True) - 1).clamp(min=0)
        # A row without any token behind shared keys has zeros at position 0.
        self.next_position = positions.gather(1, last_B1)[:, 0] + 1
        # transformers' sdpa would repeat the keys of every head group where there is a mask.
        implementation = BLOCKWISE if self._is_sdpa_on_cpu else self.stack.config._attn_implementation
        with self.stack.attention(implementation):
            states = self.stack.run(states, upper, positions, self._key_mask(mask), self.cache)
        self.upper_mask = self._without_padding(mask, upper)
        # A row without any token is predicted from zeros.
        last_B1D = take_columns(states, last_B1).masked_fill(~mask.any(1)[:, None, None], 0)
        return self.stack.head(self.stack.norm(last_B1D))[:, 0]

    def _key_mask(self, own: Tensor) -> KeyMask:
        """Mask of all keys of the upper layers, where `own` (B, N) is that of the rows' own."""
        return own if self.cache.before is None else self.cache.before.key_mask(own)

    def _without_padding(self, mask: Tensor, layers: range) -> Tensor:
        """The mask (B, K) of a prefill without the last columns that are padding in all rows, also in the cache.

        One row, and rows of equal length, then have valid keys only and decode without an attention mask.
        """
        padding = int((~mask.any(0)).flip(0).long().cumprod(0).sum())
        if padding:
            self.cache.cut(padding, layers)
        return mask[:, : mask.shape[1] - padding]

    def teacher_forced_rows(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Normed states after each given token, (B, N) right-padded -> (B, N, D). Does not change the state."""
        cache = _Unchanged(self.cache)
        positions = self.next_position[:, None] + torch.arange(ids.shape[1], device=ids.device)
        states = self.stack.embed(ids)
        if self.layer:
            key_mask = torch.cat([self.lower_mask, mask], 1)
            states = self.stack.run(states, range(self.layer), positions, key_mask, cache)
        upper_mask = self._key_mask(torch.cat([self.upper_mask, mask], 1))
        return self.stack.norm(self.stack.run(states, range(self.layer, len(self.stack)), positions, upper_mask, cache))

    def step(self, ids: Tensor) -> Tensor:
        """Appends one token to every row, (B,) -> logits (B, V)."""
        one = torch.ones_like(ids, dtype=torch.bool)[:, None]
        positions = self.next_position[:, None]
        states = self.stack.embed(ids[:, None])
        if self.layer:
            self.lower_mask = torch.cat([self.lower_mask, one], 1)
            states = self.stack.run(states, range(self.layer), positions, self.lower_mask, self.cache)
        self.upper_mask = torch.cat([self.upper_mask, one], 1)
        states = self._step_upper(states, positions)
        self.next_position = self.next_position + 1
        return self.stack.head(self.stack.norm(states))[:, 0]

    def _step_upper(self, states: Tensor, positions: Tensor) -> Tensor:
        """One token (B, 1, D) through the upper layers."""
        upper = range(self.layer, len(self.stack))
        # Shared keys are not copied, see backbones.attention.shared.
        is_separate = self._is_sdpa_on_cpu and not torch.is_grad_enabled()
        parts = shared_prefixes(self.cache.before, upper, self.upper_mask) if is_separate else None
        if parts is None:
            return self.stack.run(states, upper, positions, self._key_mask(self.upper_mask), self.cache)
        with self.stack.attention(BLOCKWISE), self.cache.own_only():
            return self.stack.run(states, upper, positions, parts, self.cache)

    @property
    def _is_sdpa_on_cpu(self) -> bool:
        return self.stack.config._attn_implementation in ("sdpa", BLOCKWISE) and self.next_position.device.type == "cpu"

    def keep_rows(self, index: Tensor) -> None:
        """Drops all rows but those of `index` (R,) int64, in that order."""
        if self.layer:
            self.lower_mask = self.lower_mask[index]
        self.upper_mask, self.next_position = self.upper_mask[index], self.next_position[index]
        self.cache.keep_rows(index)


class SharingCache:
    """Keys and values of each layer: those of a shared memory, then the rows' own, which grow.

    Only the rows' own keys are held for each row. Layers may differ in length.
    """

    def __init__(self) -> None:
        self.before: SharedKeys | None = None
        self._own: dict[int, tuple[Tensor, Tensor]] = {}  # views of the tensors in `_buffers`, where there is one
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._returns_own = False

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values, each (B, heads, N, head width); returns all of the layer."""
        if layer in self._own:
            keys, values = self._append(keys, values, layer)
        self._own[layer] = keys, values
        return (keys, values) if self._returns_own else _concatenate([*self._shared(layer), (keys, values)])

    @contextlib.contextmanager
    def own_only(self) -> Iterator[None]:
        """Context manager: `update` returns the rows' own keys and values only."""
        self._returns_own = True
        try:
            yield
        finally:
            self._returns_own = False

    def _append(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Appends to the rows' own keys and values of a layer, (B, heads, N, head width).

        Without gradients, one token is written into a preallocated buffer: `torch.cat` would copy all in every step.
        """
        old = self._own[layer]
        if torch.is_grad_enabled() or keys.shape[2] > 1:
            self._buffers.pop(layer, None)
            return _concatenate([old, (keys, values)])
        filled, buffers = old[0].shape[2], self._buffers.get(layer)
        if buffers is None or buffers[0].shape[2] == filled:
            buffers = _with_capacity(old[0].to(keys.dtype)), _with_capacity(old[1].to(values.dtype))
            self._buffers[layer] = buffers
        for buffer, new in zip(buffers, (keys, values)):
            buffer[:, :, filled : filled + 1] = new
        return buffers[0][:, :, : filled + 1], buffers[1][:, :, : filled + 1]

    def keep_rows(self, index: Tensor) -> None:
        """Drops all rows but those of `index` (R,) int64, in that order."""
        self._buffers.clear()
        self._own = {layer: (keys[index], values[index]) for layer, (keys, values) in self._own.items()}
        if self.before is not None:
            self.before = self.before.select(index.tolist())

    def get_seq_length(self, layer: int) -> int:
        """Number of keys K of a layer; the name is that of transformers' caches."""
        return sum(keys.shape[2] for keys, _ in [*self._shared(layer), self._own[layer]])

    def cut(self, columns: int, layers: range) -> None:
        """Removes the last columns of the rows' own keys and values in `layers`."""
        for layer in layers:
            keys, values = self._own[layer]
            self._own[layer] = keys[:, :, :-columns], values[:, :, :-columns]
            self._buffers.pop(layer, None)

    def followed_by(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """As `update`, without changing the cache."""
        own = [self._own[layer]] if layer in self._own else []
        return _concatenate([*self._shared(layer), *own, (keys, values)])

    def _shared(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        return [self.before.by_row(layer)] if self.before and self.before.holds(layer) else []


class _Unchanged:
    """A cache for one pass after which the given one is as before."""

    def __init__(self, cache: SharingCache) -> None:
        self._cache = cache

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As `SharingCache.followed_by`."""
        return self._cache.followed_by(keys, values, layer)


def _with_capacity(old: Tensor) -> Tensor:
    """A copy of (B, heads, N, head width) with GROWTH further columns."""
    buffer = old.new_empty(*old.shape[:2], old.shape[2] + GROWTH, old.shape[3])
    buffer[:, :, : old.shape[2]] = old
    return buffer


def _concatenate(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Keys and values one after the other, in the dtype of the last; a single pair is returned without a copy."""
    if len(pairs) == 1:
        return pairs[0]
    keys, values = ([x.to(part[-1].dtype) for x in part] for part in zip(*pairs))
    return torch.cat(keys, 2), torch.cat(values, 2)
