"""State of a decoder while it decodes: keys and values per layer, with a memory that joins at any layer.

Where the memory does not depend on the question (full context, mean pooling), the keys and values of [prefix ; memory]
are computed once and reused for every question (`PrefilledMemory`).
Shape letters: B contexts, N new tokens, K keys, D hidden width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from breviary.backbones.stack import ReadOnlyCache, Stack


class DecodingState:
    """A partly decoded sequence whose lower and upper layers hold different keys.

    Below the joining layer n the cache holds [prefix, question, answer so far]; from n on it holds [prefix, memory,
    question, answer so far]. With n = 0 there are no lower layers.
    """

    def __init__(self, stack: Stack, layer: int):
        self.stack, self.layer = stack, layer
        self.cache = DynamicCache()  # without a configuration: layers may differ in length
        self.lower_mask: Tensor  # (B, K) valid keys of the lower layers, from prefill_lower on
        self.upper_mask: Tensor  # (B, K) valid keys of the upper layers, from prefill_upper on
        self.next_position: Tensor  # (B,), from prefill_upper on
        self.slots: Tensor | None = None  # (B,) int64, memory slots among the upper layers' keys

    def prefill_lower(self, states: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """First pass through the lower layers; states (B, N, D), left-padded. Returns their output, (B, N, D)."""
        self.lower_mask = mask
        return self.stack.run(states, range(self.layer), positions, mask, self.cache)

    def prefill_upper(
        self, states: Tensor, positions: Tensor, mask: Tensor, before: PrefilledMemory | None = None
    ) -> Tensor:
        """First pass through the upper layers. Returns the logits after the last column, (B, V).

        before  keys and values that precede `states` in these layers; `mask` (B, K + N) then covers both
        """
        self.upper_mask = mask
        for layer, (keys, values) in before.keys_values.items() if before else ():
            self.cache.update(keys, values, layer)
        self.next_position = positions[:, -1] + 1
        states = self.stack.run(states, range(self.layer, len(self.stack)), positions, mask, self.cache)
        return self.stack.head(self.stack.norm(states[:, -1:]))[:, 0]

    def teacher_forced_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits after each given token, (B, N) right-padded -> (B, N, V). Does not change the state."""
        cache = ReadOnlyCache([(layer.keys, layer.values) for layer in self.cache.layers])
        positions = self.next_position[:, None] + torch.arange(ids.shape[1], device=ids.device)
        states = self.stack.embed(ids)
        if self.layer:
            key_mask = torch.cat([self.lower_mask, mask], 1)
            states = self.stack.run(states, range(self.layer), positions, key_mask, cache)
        key_mask = torch.cat([self.upper_mask, mask], 1)
        states = self.stack.run(states, range(self.layer, len(self.stack)), positions, key_mask, cache)
        return self.stack.head(self.stack.norm(states))

    def step(self, ids: Tensor) -> Tensor:
        """Appends one token to every row, (B,) -> logits (B, V)."""
        one = torch.ones_like(ids, dtype=torch.bool)[:, None]
        positions = self.next_position[:, None]
        states = self.stack.embed(ids[:, None])
        if self.layer:
            self.lower_mask = torch.cat([self.lower_mask, one], 1)
            states = self.stack.run(states, range(self.layer), positions, self.lower_mask, self.cache)
        self.upper_mask = torch.cat([self.upper_mask, one], 1)
        states = self.stack.run(states, range(self.layer, len(self.stack)), positions, self.upper_mask, self.cache)
        self.next_position = self.next_position + 1
        return self.stack.head(self.stack.norm(states))[:, 0]


@dataclass
class PrefilledMemory:
    """Keys and values of [prefix ; memory] of each context, in the decoder's layers from the joining one on.

    keys_values  {layer: (keys, values)}, each (B, heads, K, head width)
    mask         (B, K) True = a key that may be attended to; right-padded
    slots        (B,) int64, memory slots among them
    """

    keys_values: dict[int, tuple[Tensor, Tensor]]
    mask: Tensor
    slots: Tensor

    def split(self) -> list[PrefilledMemory]:
        """One `PrefilledMemory` per context, batch size 1, cut to its length; an empty one has one masked column."""
        parts = []
        for b, width in enumerate(self.mask.sum(1).clamp(min=1).tolist()):
            row = slice(b, b + 1)
            layers = {
                layer: (k[row, :, :width].clone(), v[row, :, :width].clone())
                for layer, (k, v) in self.keys_values.items()
            }
            parts.append(PrefilledMemory(layers, self.mask[row, :width].clone(), self.slots[row].clone()))
        return parts

    @staticmethod
    def join(parts: list[PrefilledMemory]) -> PrefilledMemory:
        """The contexts of `parts` as one batch, padded to the longest."""
        width = max(part.mask.shape[1] for part in parts)

        def pad_and_concatenate(tensors: list[Tensor]) -> Tensor:
            """Keys or values, each (1, heads, K, head width)."""
            return torch.cat([torch.nn.functional.pad(x, (0, 0, 0, width - x.shape[2])) for x in tensors])

        layers = {
            layer: tuple(pad_and_concatenate([part.keys_values[layer][i] for part in parts]) for i in (0, 1))
            for layer in parts[0].keys_values
        }
        mask = torch.cat([torch.nn.functional.pad(part.mask, (0, width - part.mask.shape[1])) for part in parts])
        return PrefilledMemory(layers, mask, torch.cat([part.slots for part in parts]))
