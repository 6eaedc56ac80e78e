"""Reference implementation of CoMeT (spec 1.2-1.4): one text, token and slot at a time, slots in the sequence.

Parity tests compare values and gradients with comet/layers.py and comet/inference/stream.py.
Shape letters: N text tokens, D width, V vocabulary. A memory slot is one vector (D,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from breviary.backbones.stack import Stack
from comet.layers import MemoryLayers
from comet.memory import at_least_float32

TEXT, COMPRESSION, READOUT = "text", "compression", "readout"


@dataclass
class ReferenceMemory:
    """One layer: the global state S (None before the first update), and the queue, oldest first."""

    global_state: list[Tensor] | None = None
    queue: list[Tensor] = field(default_factory=list)


def reference_columns(
    text: int, stride: int, updates: bool, readouts: int, has_queue: bool = True
) -> list[tuple[str, int]]:
    """1. The tokens of a chunk in order, as (kind, number).

    A compression token follows every `stride` text tokens. A chunk that `updates` the memory has one more after a
    shorter last group, and readout tokens at its end.
    """
    columns, compression = [], 0
    for token in range(text):
        columns.append((TEXT, token))
        group_ends = (token + 1) % stride == 0 or (updates and token + 1 == text)
        if has_queue and group_ends:
            columns.append((COMPRESSION, compression))
            compression += 1
    return columns + ([(READOUT, slot) for slot in range(readouts)] if updates else [])


def reference_states(
    stack: Stack, memory: MemoryLayers, ids: Sequence[int], sizes: Sequence[int], stride: int
) -> tuple[Tensor, list[ReferenceMemory]]:
    """Hidden states after the last layer at every text token (N, D), and every layer's memory at the end.

    ids of one text, `sizes` of its chunks; the last chunk does not update the memory.
    """
    layers = [ReferenceMemory() for _ in range(len(stack))]
    out, start = [], 0
    for number, size in enumerate(sizes):
        updates = number + 1 < len(sizes)
        columns = reference_columns(size, stride, updates, memory.global_slots, memory.queue_budget > 0)
        embeds = stack.embed(torch.tensor([ids[start : start + size]]))[0]
        tokens = memory.tokens.weight.to(embeds.dtype)
        rows = [
            embeds[i] if kind == TEXT else tokens[0] if kind == COMPRESSION else tokens[1 + i] for kind, i in columns
        ]
        for index in range(len(stack)):
            rows = _layer(stack, memory, index, layers[index], rows, columns, updates)
        out += [row for row, (kind, _) in zip(rows, columns) if kind == TEXT]
        start += size
    return torch.stack(out), layers


def _layer(
    stack: Stack,
    memory: MemoryLayers,
    index: int,
    own: ReferenceMemory,
    rows: list[Tensor],
    columns: list[tuple[str, int]],
    updates: bool,
) -> list[Tensor]:
    """2. to 5. One layer over one chunk: its output rows; `own` is updated in place at the chunk's end."""
    net = memory.layers[index]
    # 2. Slots: the global state through its adapter, then the queue from old to new.
    slots = [_adapted(net.global_adapter, state).to(rows[0].dtype) for state in own.global_state or []] + own.queue
    # 3. The layer over slots and columns: positions from 0, causal attention.
    sequence = torch.stack([*slots, *rows])[None]
    N = sequence.shape[1]
    causal = torch.full((N, N), torch.finfo(sequence.dtype).min, dtype=sequence.dtype).triu(1)
    eager = stack.config._attn_implementation == "eager"
    positions = torch.arange(N)[None]
    output = stack.layers[index](
        sequence,
        attention_mask=(causal if eager else causal == 0)[None, None],
        position_ids=positions,
        past_key_values=None,
        use_cache=False,
        position_embeddings=stack.rotary(sequence, positions),
    )[0]
    rows = list(output[len(slots) :])
    if not updates:
        return rows
    # 4. Global state: first the candidate, afterwards a gated mix.
    readouts = [row for row, (kind, _) in zip(rows, columns) if kind == READOUT]
    candidates = [_normed(net.global_norm, row) for row in readouts]
    if own.global_state is None or net.gate is None:
        own.global_state = candidates
    else:
        mixed = []
        for new, old in zip(candidates, own.global_state):
            g = torch.sigmoid(at_least_float32(net.gate.weight[0]) @ torch.cat([new, old]) + net.gate_bias)
            mixed.append(g * old + (1 - g) * new)
        own.global_state = mixed
    # 5. The queue: first in, first out.
    for row, (kind, _) in zip(rows, columns):
        if kind == COMPRESSION:
            own.queue.append(_adapted(net.temporary_adapter, _normed(net.temporary_norm, row)).to(row.dtype))
    del own.queue[: max(len(own.queue) - memory.queue_budget, 0)]
    return rows


def _normed(norm: torch.nn.RMSNorm, row: Tensor) -> Tensor:
    return (
        at_least_float32(row) / (at_least_float32(row).pow(2).mean() + norm.eps).sqrt() * at_least_float32(norm.weight)
    )


def _adapted(adapter: torch.nn.Module, row: Tensor) -> Tensor:
    return row + at_least_float32(adapter.up.weight) @ (at_least_float32(adapter.down.weight) @ row)
