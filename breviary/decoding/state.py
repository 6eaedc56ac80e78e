"""Memories that were read once for all questions on them: keys and values of the decoder's upper layers.

Where a memory is the context's alone (full context, mean pooling), the decoder need not read it again for another question.
Shape letters: B contexts, K tokens and slots of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from breviary.backbones.stack import ReadOnlyCache, Stack


class DecodingState:
    """A half-read sequence whose lower and upper layers hold different keys.

    Below the joining layer n the cache holds [prefix, question, answer so far], from n on [prefix, memory, question,
    answer so far]; with n = 0 there is no lower part.
    """

    def __init__(self, stack: Stack, layer: int):
        self.stack, self.layer = stack, layer
        self.cache = DynamicCache()  # without a configuration: layers may differ in length
        self.below: Tensor | None = None  # (B, K) valid keys of the lower layers
        self.above: Tensor | None = None
        self.next_position: Tensor | None = None  # (B,)
        self.slots: Tensor | None = None  # (B,) int64, memory slots among the upper layers' keys

    def prefill_lower(self, states: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """First pass through the lower layers; states (B, N, D), left-padded."""
        self.below = mask
        return self.stack.run(states, range(self.layer), positions, mask, self.cache)

    def prefill_upper(
        self, states: Tensor, positions: Tensor, mask: Tensor, before: PrefilledMemory | None = None
    ) -> Tensor:
        """First pass through the upper layers; gives the logits after the last column, (B, V). before: what these layers hold
        already, of which `mask` (B, K + N) tells as well."""
        self.above = mask
        for layer, (keys, values) in before.keys_values.items() if before else ():
            self.cache.update(keys, values, layer)
        self.next_position = positions[:, -1] + 1
        states = self.stack.run(states, range(self.layer, len(self.stack)), positions, mask, self.cache)
        return self.stack.head(self.stack.norm(states[:, -1:]))[:, 0]

    def score(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits after each of further tokens, (B, N) right-padded -> (B, N, V); the stream stays where it is."""
        held = ReadOnlyCache([(layer.keys, layer.values) for layer in self.cache.layers])
        positions = self.next_position[:, None] + torch.arange(ids.shape[1], device=ids.device)
        states = self.stack.embed(ids)
        if self.layer:
            states = self.stack.run(states, range(self.layer), positions, torch.cat([self.below, mask], 1), held)
        states = self.stack.run(
            states, range(self.layer, len(self.stack)), positions, torch.cat([self.above, mask], 1), held
        )
        return self.stack.head(self.stack.norm(states))

    def step(self, ids: Tensor) -> Tensor:
        """One more token for every row, (B,) -> logits (B, V)."""
        one = torch.ones_like(ids, dtype=torch.bool)[:, None]
        positions = self.next_position[:, None]
        states = self.stack.embed(ids[:, None])
        if self.layer:
            self.below = torch.cat([self.below, one], 1)
            states = self.stack.run(states, range(self.layer), positions, self.below, self.cache)
        self.above = torch.cat([self.above, one], 1)
        states = self.stack.run(states, range(self.layer, len(self.stack)), positions, self.above, self.cache)
        self.next_position = self.next_position + 1
        return self.stack.head(self.stack.norm(states))[:, 0]


@dataclass
class PrefilledMemory:
    """[prefix ; memory] of each context as the decoder's layers from the joining one on hold it.

    keys_values  {layer: (keys, values)}, each (B, heads, K, head width)
    mask         (B, K) True = a key that may be attended to; right-padded
    slots        (B,) int64, memory slots among them
    """

    keys_values: dict[int, tuple[Tensor, Tensor]]
    mask: Tensor
    slots: Tensor

    def split(self) -> list[PrefilledMemory]:
        """One of batch size 1 for each context, cut to its own length (at least one column, masked where it has no token)."""
        out = []
        for b, width in enumerate(self.mask.sum(1).clamp(min=1).tolist()):
            row = slice(b, b + 1)
            kept = {
                layer: (k[row, :, :width].clone(), v[row, :, :width].clone())
                for layer, (k, v) in self.keys_values.items()
            }
            out.append(PrefilledMemory(kept, self.mask[row, :width].clone(), self.slots[row].clone()))
        return out

    @staticmethod
    def join(parts: list[PrefilledMemory]) -> PrefilledMemory:
        """The contexts of `parts` as one batch, padded to the longest."""
        width = max(part.mask.shape[1] for part in parts)

        def joined(tensors: list[Tensor]) -> Tensor:
            """Keys or values, each (1, heads, K, head width)."""
            return torch.cat([torch.nn.functional.pad(x, (0, 0, 0, width - x.shape[2])) for x in tensors])

        layers = {
            layer: tuple(joined([part.keys_values[layer][i] for part in parts]) for i in (0, 1))
            for layer in parts[0].keys_values
        }
        mask = torch.cat([torch.nn.functional.pad(part.mask, (0, width - part.mask.shape[1])) for part in parts])
        return PrefilledMemory(layers, mask, torch.cat([part.slots for part in parts]))
