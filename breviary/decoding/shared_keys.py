"""Keys and values of encoded contexts that precede the rows' own in the decoder, shared by all questions on a context.

Shape letters: B rows, C contexts, N new tokens, K keys, J key/value heads, W head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from breviary.backbones.attention import SharedPrefix
from breviary.memory.kept_keys import KeptKeys

Pair: TypeAlias = tuple[Tensor, Tensor]
KeyMask: TypeAlias = Tensor | Mapping[int, Tensor]


class SharedKeys:
    """Keys and values of C contexts in some decoder layers, for B rows.

    slots  (B,) int64, memory slots of each row
    rows   context of each of the B rows; None = row b has context b
    """

    slots: Tensor
    rows: tuple[int, ...] | None

    def holds(self, layer: int) -> bool:
        """Whether there are keys of this layer."""
        raise NotImplementedError

    def by_row(self, layer: int) -> Pair:
        """Keys and values of a layer, each (B, J, K, W): views where possible, else a copy."""
        raise NotImplementedError

    def key_mask(self, own: Tensor) -> KeyMask:
        """Mask of these keys followed by each row's own, whose mask is `own` (B, N), as `Stack.run` takes it."""
        raise NotImplementedError

    def split(self) -> Sequence[SharedKeys]:
        """One object per row, which shares keys and values with this one."""
        raise NotImplementedError

    def row_bytes(self) -> list[int]:
        """Bytes of the keys and values of each row's context, without padding."""
        raise NotImplementedError

    def select(self, index: Sequence[int]) -> SharedKeys:
        """The rows in `index`, in that order, with the same keys and values."""
        parts = self.split()
        return join_shared([parts[row] for row in index])

    def by_context(self, layer: int) -> tuple[Tensor, Tensor, tuple[int, ...]] | None:
        """Views of a layer's keys and values, (C, J, K, W), and the number of valid keys of each context.

        None where they are not stored in this form.
        """
        raise NotImplementedError

    def _for_rows(self, contexts: Tensor) -> Tensor:
        """A tensor with a row for each context as one with a row for each of the B rows."""
        if self.rows is None or self.rows == tuple(range(len(contexts))):
            return contexts
        if len(contexts) == 1:
            return contexts.expand(len(self.rows), *contexts.shape[1:])
        return contexts[torch.tensor(self.rows, device=contexts.device)]


def shared_prefixes(shared: SharedKeys | None, layers: range, own: Tensor) -> dict[int, SharedPrefix] | None:
    """{layer: shared prefix} for decoding; `own` (B, N) masks the rows' own keys.

    None where there are no shared keys, or a layer stores them in a form that needs copies.
    """
    if shared is None:
        return None
    valid, parts = None if bool(own.all()) else own, {}
    for layer in layers:
        pair = shared.by_context(layer) if shared.holds(layer) else None
        if pair is None:
            return None
        keys, values, lengths = pair
        rows = tuple(range(len(own))) if shared.rows is None else shared.rows
        parts[layer] = SharedPrefix(keys, values, lengths, rows, valid)
    return parts


def join_shared(parts: Sequence[SharedKeys]) -> SharedKeys:
    """The rows of `parts`, results of `split` of one class, as one batch."""
    first = parts[0]
    assert isinstance(first, (PrefilledMemory, KeptCache)), type(first)
    return first.join(list(parts))  # type: ignore[arg-type]


@dataclass
class PrefilledMemory(SharedKeys):
    """Keys and values of [prefix ; memory] of C contexts, in the decoder's layers from the joining one on, for B rows.

    keys_values  {layer: (keys, values)}, each (C, J, at least K, W)
    mask         (B, K) True = a key that may be attended to; right-padded
    slots        (B,) int64, memory slots among them
    rows         context of each of the B rows; None = row b has context b
    """

    keys_values: dict[int, Pair]
    mask: Tensor
    slots: Tensor
    rows: tuple[int, ...] | None = None

    def holds(self, layer: int) -> bool:
        """As SharedKeys.holds."""
        return layer in self.keys_values

    def by_row(self, layer: int) -> Pair:
        """As SharedKeys.by_row."""
        keys, values = (self._for_rows(x[:, :, : self.mask.shape[1]]) for x in self.keys_values[layer])
        return keys, values

    def key_mask(self, own: Tensor) -> Tensor:
        """One mask for all layers, (B, K + N)."""
        return torch.cat([self.mask, own], 1)

    def by_context(self, layer: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """As SharedKeys.by_context."""
        return *self.keys_values[layer], self._lengths

    @cached_property
    def _lengths(self) -> tuple[int, ...]:
        """Valid keys of each context; 0 for one that no row has."""
        lengths = [0] * len(next(iter(self.keys_values.values()))[0])
        for row, count in zip(self.rows or range(len(self.mask)), self.mask.sum(1).tolist()):
            lengths[row] = count
        return tuple(lengths)

    def row_bytes(self) -> list[int]:
        """As SharedKeys.row_bytes."""
        tensors = [x for pair in self.keys_values.values() for x in pair]
        per_key = sum(x.shape[1] * x.shape[3] * x.element_size() for x in tensors)
        return [per_key * keys for keys in self.mask.sum(1).tolist()]

    def split(self) -> list[PrefilledMemory]:
        """As SharedKeys.split."""
        rows = range(len(self.mask)) if self.rows is None else self.rows
        return [
            PrefilledMemory(self.keys_values, self.mask[b : b + 1], self.slots[b : b + 1], (row,))
            for b, row in enumerate(rows)
        ]

    @staticmethod
    def join(parts: list[PrefilledMemory]) -> PrefilledMemory:
        """The rows of `parts`, results of `split`, as one batch. Keys and values are copied only from several tensors.

        A copy holds each distinct context once, padded to the longest.
        """
        slots = torch.cat([part.slots for part in parts])
        width = max(1, *(int(part.mask.sum(1).max()) for part in parts))
        sources = [(part, row) for part in parts for row in part.rows or range(len(part.mask))]
        if all(part.keys_values is parts[0].keys_values for part in parts):
            rows = tuple(row for _, row in sources)
            mask = torch.cat([part.mask[:, :width] for part in parts])
            return PrefilledMemory(parts[0].keys_values, mask, slots, rows)
        distinct = {(id(part.keys_values), row): (part.keys_values, row) for part, row in sources}
        place = {key: c for c, key in enumerate(distinct)}

        def padded(tensors: list[Tensor]) -> Tensor:
            """Keys or values, or masks with two further dimensions, each (1, heads, K, head width)."""
            return torch.cat([torch.nn.functional.pad(x, (0, 0, 0, width - x.shape[2])) for x in tensors])

        layers = {
            layer: tuple(padded([stored[layer][i][row : row + 1] for stored, row in distinct.values()]) for i in (0, 1))
            for layer in parts[0].keys_values
        }
        mask = padded([part.mask[:, None, :, None] for part in parts])[:, 0, :, 0]
        rows = tuple(place[id(part.keys_values), row] for part, row in sources)
        return PrefilledMemory(layers, mask, slots, rows)


@dataclass
class KeptCache(SharedKeys):
    """The entries that each layer and head keeps of the keys and values of [prefix ; context], for B rows.

    layers  one KeptKeys of C contexts per decoder layer
    slots   (B,) int64, entries kept of the context, averaged over layers and heads
    rows    context of each of the B rows; None = row b has context b
    """

    layers: Sequence[KeptKeys]
    slots: Tensor
    rows: tuple[int, ...] | None = None

    def holds(self, layer: int) -> bool:
        """Every layer holds keys."""
        return True

    def by_row(self, layer: int) -> Pair:
        """As SharedKeys.by_row; padded while it is used where rows or heads keep different numbers."""
        keys, values = (self._for_rows(x) for x in self.layers[layer].padded())
        return keys, values

    def key_mask(self, own: Tensor) -> KeyMask:
        """One mask where all layers keep equal numbers without biases, else one for each layer and head."""
        widths = {layer.width for layer in self.layers}
        if len(widths) == 1 and all(layer.is_uniform and layer.bias is None for layer in self.layers):
            return torch.cat([own.new_ones(len(own), widths.pop()), own], 1)
        return _HeadMasks(self, own)

    def by_context(self, layer: int) -> tuple[Tensor, Tensor, tuple[int, ...]] | None:
        """As SharedKeys.by_context: where heads keep equal numbers and scores have no bias."""
        kept = self.layers[layer]
        if not kept.is_uniform or kept.bias is not None:
            return None
        return *kept.padded(), (kept.width,) * len(kept.counts)

    def row_bytes(self) -> list[int]:
        """As SharedKeys.row_bytes."""
        rows = range(len(self.slots)) if self.rows is None else self.rows
        return [sum(layer.row_bytes(row) for layer in self.layers) for row in rows]

    def split(self) -> list[KeptCache]:
        """As SharedKeys.split."""
        rows = range(len(self.slots)) if self.rows is None else self.rows
        return [KeptCache(self.layers, self.slots[b : b + 1], (row,)) for b, row in enumerate(rows)]

    @staticmethod
    def join(parts: list[KeptCache]) -> KeptCache:
        """The rows of `parts`, results of `split`, as one batch that holds each distinct context once."""
        slots = torch.cat([part.slots for part in parts])
        sources = [(part.layers, row) for part in parts for row in part.rows or range(len(part.slots))]
        if all(part.layers is parts[0].layers for part in parts):
            return KeptCache(parts[0].layers, slots, tuple(row for _, row in sources))
        distinct = {(id(layers), row): (layers, row) for layers, row in sources}
        place = {key: c for c, key in enumerate(distinct)}
        joined = [
            KeptKeys.join([layers[layer].rows([row]) for layers, row in distinct.values()])
            for layer in range(len(parts[0].layers))
        ]
        return KeptCache(joined, slots, tuple(place[id(layers), row] for layers, row in sources))


class _HeadMasks(Mapping[int, Tensor]):
    """For each layer the mask of a KeptCache and the rows' own keys, (B, K + N), or (B, J, K + N) where heads differ.

    Computed when it is read.
    """

    def __init__(self, kept: KeptCache, own: Tensor):
        self._kept, self._own = kept, own

    def __len__(self) -> int:
        return len(self._kept.layers)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, layer: int) -> Tensor:
        keys = self._kept.layers[layer]
        kept = keys.key_mask()
        if kept is None:
            return torch.cat([self._own.new_ones(len(self._own), keys.width), self._own], 1)
        kept = self._kept._for_rows(kept)
        own = self._own[:, None].expand(-1, kept.shape[1], -1)
        if kept.dtype != torch.bool:
            own = kept.new_zeros(own.shape).masked_fill(~own, -torch.inf)
        return torch.cat([kept, own], 2)
