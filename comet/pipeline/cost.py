"""What reading one long text on R ranks costs: multiplications, bytes sent, bytes kept (CoMeT, spec 2.6). Plain arithmetic.

c text tokens of a chunk, s stride, G global slots, B queue budget; L layers, D width. One text (a row) at a time, in full
chunks. Bytes of activations are counted off what autograd keeps with activation checkpointing, and tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from breviary.memory.assembly import ROUND_TO
from comet.pipeline.transfer import Crossing
from comet.chunking import fixed
from comet.pipeline.schedule import owners, simulate

BACKWARD = (
    3  # a cell's backward pass by its forward pass, in multiplications: two for gradients, one for computing it again
)
ADAM = 8  # bytes of moments, each weight
WIDE = 4  # bytes of a float32


@dataclass(frozen=True)
class Shape:
    """Sizes of a backbone: L layers, width D, inner width of the MLP, attention heads of `head` numbers each, V words."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    words: int
    tied: bool

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a Hugging Face configuration."""
        heads = config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.vocab_size,
            bool(config.tie_word_embeddings),
        )

    @property
    def row(self) -> int:
        """Weights of one layer's matrices: multiplications for each row of its input."""
        return 2 * self.width * self.head * (self.heads + self.kv_heads) + 3 * self.width * self.inner

    @property
    def weights(self) -> int:
        """All of the backbone's, norms left out."""
        return self.layers * self.row + (1 if self.tied else 2) * self.words * self.width


@dataclass(frozen=True)
class Memory:
    """Sizes of CoMeT's chunks and memory: c, s, G, B; rank of the adapters."""

    chunk: int
    stride: int
    slots: int
    queue: int
    rank: int = 8

    def weights(self, shape: Shape) -> int:
        """New weights: norms, gate and two adapters a layer, and the learned tokens."""
        return shape.layers * shape.width * (4 + 4 * self.rank) + (1 + self.slots) * shape.width


@dataclass(frozen=True)
class Part:
    """One chunk: text tokens, compression tokens, readouts (0 = nothing follows), and queue slots and all seats it finds."""

    text: int
    beacons: int
    readouts: int
    queued: int
    seats: int

    @property
    def own(self) -> int:
        """Rows that pass the layers, padding included."""
        return -(-(self.text + self.beacons + self.readouts) // ROUND_TO) * ROUND_TO

    def multiplications(self, shape: Shape) -> int:
        """Of one layer over the chunk, forward, memory as keys and values alone."""
        q, kv = shape.heads * shape.head, shape.kv_heads * shape.head
        return (
            self.own * shape.row
            + self.seats * 2 * shape.width * kv
            + self.own * (self.own + 1) * q
            + 2 * self.own * self.seats * q
        )


def parts_of(tokens: int, memory: Memory) -> list[Part]:
    """The chunks of a text."""
    sizes, found, queued = fixed(tokens, memory.chunk), [], 0
    for number, text in enumerate(sizes):
        closes = number + 1 < len(sizes)
        beacons = -(-text // memory.stride) if closes else text // memory.stride
        beacons = beacons if memory.queue else 0
        found.append(
            Part(text, beacons, memory.slots if closes else 0, queued, queued + (memory.slots if number else 0))
        )
        queued = min(queued + beacons, memory.queue)
    return found


def message_bytes(part: Part, shape: Shape, memory: Memory, dtype: torch.dtype) -> int:
    """Of what crosses into a chunk, in one layer and direction; 0 where it has no seat."""
    if not part.seats:
        return 0
    return Crossing(1, memory.slots, part.queued, shape.width, dtype, torch.device("meta")).bytes


def kept_bytes(part: Part, shape: Shape, memory: Memory, dtype: torch.dtype) -> int:
    """What one cell keeps for the backward pass with checkpointing: the layer's input; seats, their norm and their keys and
    values; what becomes of readouts and compression tokens."""
    D, e = shape.width, dtype.itemsize
    normed = WIDE + 3 * e if e < WIDE else 3 * WIDE
    found = part.own * D * e + part.seats * (D * normed + 2 * shape.kv_heads * shape.head * e)
    if part.readouts or part.beacons:
        kept = min(part.queued + part.beacons, memory.queue)
        found += (
            6 * part.readouts * D * WIDE + 3 * part.beacons * D * WIDE + (part.queued + part.beacons + kept) * D * e
        )
    return found


def layer_bytes(part: Part, shape: Shape, dtype: torch.dtype) -> int:
    """What a layer keeps of itself while it is computed again in the backward pass."""
    e, q, kv = dtype.itemsize, shape.heads * shape.head, shape.kv_heads * shape.head
    rows = shape.width * (2 * WIDE + 5 * e) + (2 * q + 2 * kv) * 2 * e + 3 * shape.inner * e
    return part.own * rows + (part.own + part.seats) * (2 * kv * e + part.own)  # all keys and values; the mask


@dataclass(frozen=True)
class Plan:
    """What is planned: pipelines of R ranks, `dp` of them side by side; tokens of each text.

    zero      the weights' masters and Adam's moments, and between backward passes gradients, are shared out over all processes
    dtype     of the stream; supervised  tokens of each chunk whose logits are kept (0: the answer's few, not counted)
    """

    shape: Shape
    memory: Memory
    tokens: int
    ranks: int
    dp: int
    schedule: str
    dtype: torch.dtype = torch.bfloat16
    zero: bool = True
    supervised: int = 0

    def computed(self) -> dict[str, float]:
        """Cells and time: chunks, cells of all ranks, makespan and bubble with equal cells; bubble and speed-up by
        multiplications, forward and backward."""
        parts, layers = parts_of(self.tokens, self.memory), self.shape.layers
        equal = simulate(len(parts), layers, self.ranks, self.schedule)
        costs = [part.multiplications(self.shape) for part in parts]
        weighed = simulate(len(parts), layers, self.ranks, self.schedule, lambda chunk, layer: costs[chunk])
        return {
            "chunks": len(parts),
            "cells": len(parts) * layers,
            "makespan": equal.makespan,
            "bubble": equal.bubble,
            "weighed_bubble": weighed.bubble,
            "speedup": layers * sum(costs) / weighed.makespan,
            "multiplications": (1 + BACKWARD) * layers * sum(costs),
        }

    def sent(self) -> dict[str, int]:
        """Bytes: the longest message; of a border between two ranks and of the busiest rank, both directions, for one text; and
        of each process's gradients for one step."""
        parts = parts_of(self.tokens, self.memory)
        owner = owners(len(parts), self.ranks, self.schedule)
        crossing = [number for number in range(1, len(parts)) if owner[number] != owner[number - 1]]
        sizes = {number: message_bytes(parts[number], self.shape, self.memory, self.dtype) for number in crossing}
        by_rank = [0] * self.ranks
        for number, size in sizes.items():
            by_rank[owner[number - 1]] += self.shape.layers * size  # the memory
            by_rank[owner[number]] += self.shape.layers * size  # its gradient
        world = self.ranks * self.dp
        weights = self.shape.weights + self.memory.weights(self.shape)
        each = self.dtype.itemsize if self.zero else WIDE
        return {
            "message": max(sizes.values(), default=0),
            "messages": 2 * self.shape.layers * len(crossing),
            "border": 2 * self.shape.layers * max(sizes.values(), default=0),
            "rank": max(by_rank),
            "gradients": 2 * (world - 1) * weights * each // world,
        }

    def kept(self) -> dict[str, int]:
        """Bytes of the rank that has most: weights, gradients, optimizer (masters, moments, accumulated gradients), activations,
        the state of one text, messages under way, the layer computed again; and their sum."""
        world, e = self.ranks * self.dp, self.dtype.itemsize
        weights = self.shape.weights + self.memory.weights(self.shape)
        found = {
            "weights": weights * (e if self.zero else WIDE),
            "gradients": weights * (e if self.zero else 2 * WIDE),  # DDP sums them in buckets of its own
            "optimizer": weights * (2 * WIDE + ADAM) // world if self.zero else weights * ADAM,
        }
        parts = parts_of(self.tokens, self.memory)
        owner = owners(len(parts), self.ranks, self.schedule)
        loads = [self._activations(parts, owner, rank) for rank in range(self.ranks)]
        found |= max(loads, key=lambda load: sum(load.values()))
        found["state"] = self.shape.layers * self.shape.width * (2 * self.memory.slots * WIDE + self.memory.queue * e)
        found["layer"] = max((layer_bytes(part, self.shape, self.dtype) for part in parts), default=0)
        return found | {"total": sum(found.values())}

    def _activations(self, parts: list[Part], owner: list[int], rank: int) -> Mapping[str, int]:
        layers, e = self.shape.layers, self.dtype.itemsize
        kept = messages = 0
        for number, part in enumerate(parts):
            if owner[number] == rank:
                kept += layers * kept_bytes(part, self.shape, self.memory, self.dtype)
                kept += part.own * (part.own + part.seats)  # the mask, of all layers
                kept += min(self.supervised, part.text) * self.shape.words * (2 * WIDE + e)
                after = number + 1
                if after < len(parts) and owner[after] != rank:  # what was sent is kept until its gradient is there
                    messages += layers * message_bytes(parts[after], self.shape, self.memory, self.dtype)
        return {"activations": kept, "messages": messages}

    def on(self, ranks: int, dp: int, schedule: str) -> Plan:
        """The same on other ranks."""
        return replace(self, ranks=ranks, dp=dp, schedule=schedule)
