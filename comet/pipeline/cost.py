"""Cost of one long text on R ranks: multiplications, bytes sent, bytes held (CoMeT, spec 2.6). Plain arithmetic.

c text tokens per chunk, s stride, G global slots, B queue budget; L layers, D width. One text (one row) at a time, in
full chunks. Bytes of activations count the tensors that autograd saves with activation checkpointing; tests check them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from breviary.backbones.head import loss_bytes
from breviary.backbones.pretrained import DTYPES
from breviary.backbones.shape import BackboneShape
from breviary.memory.assembly import ROUND_TO
from breviary.training.cost.layer import Training, saved_bytes, transient_bytes
from breviary.training.cost.memory import Step
from comet.chunking import fixed
from comet.pipeline.messages import MessageLayout
from comet.pipeline.schedule import chunk_owners, simulate

BACKWARD = 3  # multiplications of a task's backward pass per forward pass: two for gradients, one for recomputation
ADAM = 8  # bytes of both moments per weight
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class MemoryShape:
    """Sizes of CoMeT's chunks and memory: chunk c, stride s, slots G, queue B; rank of the adapters."""

    chunk: int
    stride: int
    slots: int
    queue: int
    rank: int = 8

    def weights(self, shape: BackboneShape) -> int:
        """New weights: norms, gate and two adapters per layer, and the learned tokens."""
        return shape.layers * shape.width * (4 + 4 * self.rank) + (1 + self.slots) * shape.width


@dataclass(frozen=True)
class ChunkShape:
    """Sizes of one chunk.

    text, compression, readout  tokens; readout 0 = the last chunk
    queue, slots                queue slots, and all memory slots, at the start of the chunk
    """

    text: int
    compression: int
    readout: int
    queue: int
    slots: int

    @property
    def columns(self) -> int:
        """Columns of the sequence, padding included."""
        return -(-(self.text + self.compression + self.readout) // ROUND_TO) * ROUND_TO

    def multiplications(self, shape: BackboneShape) -> int:
        """Multiplications of one layer's forward pass with backend kv_prefix."""
        q, kv = shape.heads * shape.head, shape.kv_heads * shape.head
        return (
            self.columns * shape.layer_weights
            + self.slots * 2 * shape.width * kv
            + self.columns * (self.columns + 1) * q
            + 2 * self.columns * self.slots * q
        )


def chunk_shapes(tokens: int, memory: MemoryShape) -> list[ChunkShape]:
    """The chunks of a text of `tokens` tokens."""
    sizes, shapes, queue = fixed(tokens, memory.chunk), [], 0
    for number, text in enumerate(sizes):
        updates = number + 1 < len(sizes)
        compression = -(-text // memory.stride) if updates else text // memory.stride
        compression = compression if memory.queue else 0
        readout, slots = memory.slots if updates else 0, queue + (memory.slots if number else 0)
        shapes.append(ChunkShape(text, compression, readout, queue, slots))
        queue = min(queue + compression, memory.queue)
    return shapes


def message_bytes(chunk: ChunkShape, shape: BackboneShape, memory: MemoryShape, dtype: torch.dtype) -> int:
    """Bytes of the message into a chunk, per layer and direction; 0 without memory slots."""
    if not chunk.slots:
        return 0
    return MessageLayout(1, memory.slots, chunk.queue, shape.width, dtype, torch.device("meta")).bytes


def activation_bytes(chunk: ChunkShape, shape: BackboneShape, memory: MemoryShape, dtype: torch.dtype) -> int:
    """Bytes that one task saves for the backward pass, with checkpointing.

    The layer's input; memory slots, their norm, keys and values; results of readout and compression tokens.
    """
    D, e = shape.width, dtype.itemsize
    normed = FLOAT32 + 3 * e if e < FLOAT32 else 3 * FLOAT32
    saved = chunk.columns * D * e + chunk.slots * (D * normed + 2 * shape.kv_heads * shape.head * e)
    if chunk.readout or chunk.compression:
        entries = chunk.queue + chunk.compression
        saved += 6 * chunk.readout * D * FLOAT32 + 3 * chunk.compression * D * FLOAT32
        saved += (entries + min(entries, memory.queue)) * D * e
    return saved


def recompute_bytes(chunk: ChunkShape, shape: BackboneShape, dtype: torch.dtype) -> int:
    """Bytes that a layer holds while the backward pass recomputes it."""
    e, q, kv = dtype.itemsize, shape.heads * shape.head, shape.kv_heads * shape.head
    rows = shape.width * (2 * FLOAT32 + 5 * e) + (2 * q + 2 * kv) * 2 * e + 3 * shape.inner * e
    keys_values_and_mask = (chunk.columns + chunk.slots) * (2 * kv * e + chunk.columns)
    return chunk.columns * rows + keys_values_and_mask


def training_cost(cfg: Any, shape: BackboneShape, lengths: Any, processes: int) -> tuple[Step, float, float]:
    """(Step of the rank that holds most, FLOPs of one text, new weights), as `estimate_training` expects them.

    Texts of a batch are counted as rows of equal length.
    """
    settings, tokens = cfg.compressor, lengths.context + lengths.question + lengths.answer
    memory = MemoryShape(
        settings.chunk_size, settings.stride, settings.global_slots, settings.queue_budget, settings.adapter_rank
    )
    ranks, rows, dtype = cfg.engine.ranks, cfg.train.batch_size, DTYPES[cfg.backbone.dtype]
    decoder = cfg.decoder
    training = Training.of(decoder.train, decoder.lora_rank, decoder.lora_targets, decoder.lora_dropout)
    plan = PipelinePlan(shape, memory, tokens, ranks, max(processes // ranks, 1), cfg.engine.schedule, dtype)
    held, chunks = plan.memory_bytes(), chunk_shapes(tokens, memory)
    saved, layer = held["activations"], held["layer"]
    own = shape.layers * training.adapter_weights(shape) + memory.weights(shape)
    if not cfg.train.gradient_checkpointing:
        most = -(-len(chunks) // ranks)  # chunks of the rank that has most
        columns = sum(sorted((chunk.columns for chunk in chunks), reverse=True)[:most])
        saved += shape.layers * columns * (saved_bytes(shape, training, dtype.itemsize) - shape.width * dtype.itemsize)
        layer = max(chunk.columns for chunk in chunks) * transient_bytes(shape, training, dtype.itemsize)
    in_layers = training.share(shape) * shape.layers * shape.layer_weights + own
    casts = in_layers * dtype.itemsize if cfg.engine.kind in ("single", "ddp") and dtype.itemsize < FLOAT32 else 0
    supervised = min(settings.chunk_size, tokens) if settings.supervise == "text" else lengths.answer
    logits = loss_bytes(rows * supervised, shape.vocabulary, dtype.itemsize)
    trained = in_layers + (shape.weights - shape.layers * shape.layer_weights if training.mode == "full" else 0)
    step = Step(
        (rows * saved + casts,), (0,), (rows * layer,), (trained,), logits, rows * (held["messages"] + held["state"])
    )
    head = tokens if settings.supervise == "text" else lengths.answer
    flops = 2 * plan.timing()["multiplications"] + 6 * head * shape.embedding_weights
    return step, flops, memory.weights(shape)


@dataclass(frozen=True)
class PipelinePlan:
    """A planned run: `dp` pipelines of `ranks` ranks each, texts of `tokens` tokens.

    dtype       of the hidden states
    zero        master weights, Adam's moments and, between backward passes, gradients are sharded over all processes
    supervised  tokens of each chunk whose logits are held; 0 = the few of an answer, which are not counted
    """

    shape: BackboneShape
    memory: MemoryShape
    tokens: int
    ranks: int
    dp: int
    schedule: str
    dtype: torch.dtype = torch.bfloat16
    zero: bool = True
    supervised: int = 0

    def timing(self) -> dict[str, float]:
        """Numbers of chunks and tasks, makespan and bubble with equal tasks, and multiplications forward and backward.

        weighed_bubble and speedup weight tasks by their multiplications.
        """
        chunks, layers = chunk_shapes(self.tokens, self.memory), self.shape.layers
        equal = simulate(len(chunks), layers, self.ranks, self.schedule)
        costs = [chunk.multiplications(self.shape) for chunk in chunks]
        weighted = simulate(len(chunks), layers, self.ranks, self.schedule, lambda chunk, layer: costs[chunk])
        return {
            "chunks": len(chunks),
            "cells": len(chunks) * layers,
            "makespan": equal.makespan,
            "bubble": equal.bubble,
            "weighed_bubble": weighted.bubble,
            "speedup": layers * sum(costs) / weighted.makespan,
            "multiplications": (1 + BACKWARD) * layers * sum(costs),
        }

    def traffic(self) -> dict[str, int]:
        """Bytes sent.

        message    the longest message; messages = their number
        border     between two ranks, rank = by the busiest rank; both directions, for one text
        gradients  by each process for one step
        """
        chunks = chunk_shapes(self.tokens, self.memory)
        owners = chunk_owners(len(chunks), self.ranks, self.schedule)
        borders = [number for number in range(1, len(chunks)) if owners[number] != owners[number - 1]]
        sizes = {number: message_bytes(chunks[number], self.shape, self.memory, self.dtype) for number in borders}
        by_rank = [0] * self.ranks
        for number, size in sizes.items():
            by_rank[owners[number - 1]] += self.shape.layers * size  # the memory
            by_rank[owners[number]] += self.shape.layers * size  # its gradient
        world = self.ranks * self.dp
        weights = self.shape.weights + self.memory.weights(self.shape)
        per_weight = self.dtype.itemsize if self.zero else FLOAT32
        return {
            "message": max(sizes.values(), default=0),
            "messages": 2 * self.shape.layers * len(borders),
            "border": 2 * self.shape.layers * max(sizes.values(), default=0),
            "rank": max(by_rank),
            "gradients": 2 * (world - 1) * weights * per_weight // world,
        }

    def memory_bytes(self) -> dict[str, int]:
        """Bytes held by the rank that holds most, and their total.

        optimizer  master weights, moments, accumulated gradients
        messages   sent memories whose gradient has not arrived
        state      the memory of one text
        layer      the layer that the backward pass recomputes
        """
        world, e = self.ranks * self.dp, self.dtype.itemsize
        weights = self.shape.weights + self.memory.weights(self.shape)
        held = {
            "weights": weights * (e if self.zero else FLOAT32),
            "gradients": weights * (e if self.zero else 2 * FLOAT32),  # DDP sums them in buckets of its own
            "optimizer": weights * (2 * FLOAT32 + ADAM) // world if self.zero else weights * ADAM,
        }
        chunks = chunk_shapes(self.tokens, self.memory)
        owners = chunk_owners(len(chunks), self.ranks, self.schedule)
        loads = [self._activations(chunks, owners, rank) for rank in range(self.ranks)]
        largest = max(loads, key=lambda load: sum(load.values()))
        held |= largest
        held["state"] = self.shape.layers * self.shape.width * (2 * self.memory.slots * FLOAT32 + self.memory.queue * e)
        held["layer"] = max((recompute_bytes(chunk, self.shape, self.dtype) for chunk in chunks), default=0)
        return held | {"total": sum(held.values())}

    def _activations(self, chunks: list[ChunkShape], owners: list[int], rank: int) -> Mapping[str, int]:
        layers, e = self.shape.layers, self.dtype.itemsize
        saved = messages = 0
        for number, chunk in enumerate(chunks):
            if owners[number] == rank:
                saved += layers * activation_bytes(chunk, self.shape, self.memory, self.dtype)
                saved += chunk.columns * (chunk.columns + chunk.slots)  # the attention mask, shared by all layers
                saved += min(self.supervised, chunk.text) * self.shape.vocabulary * (2 * FLOAT32 + e)
                after = number + 1
                if after < len(chunks) and owners[after] != rank:  # a message is held until its gradient arrives
                    messages += layers * message_bytes(chunks[after], self.shape, self.memory, self.dtype)
        return {"activations": saved, "messages": messages}
