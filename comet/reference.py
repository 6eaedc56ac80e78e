"""CoMeT's slow twin: one text, one token, one slot at a time, seats in the sequence as published (spec 1.2 to 1.4).

Nothing here is fast or batched. Parity tests compare values and gradients with comet/layers.py and comet/stream.py.
Shape letters: N text tokens, D width, V vocabulary. A memory slot is one vector (D,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from breviary.backbones.stack import Stack
from comet.layers import MemoryLayers
from comet.memory import wide

TEXT, BEACON, READOUT = "text", "beacon", "readout"


@dataclass
class ReferenceMemory:
    """One layer: carried slots S (None before the first chunk is closed), and the queue, oldest first."""

    carried: list[Tensor] | None = None
    queue: list[Tensor] = field(default_factory=list)


def reference_columns(
    text: int, stride: int, closes: bool, readouts: int, beacons: bool = True
) -> list[tuple[str, int]]:
    """1. The tokens of a chunk in order, as (kind, number): a beacon after every `stride` text tokens (and after a last
    shorter group of a closed chunk), readouts at the end of a closed chunk."""
    columns, beacon = [], 0
    for token in range(text):
        columns.append((TEXT, token))
        group_ends = (token + 1) % stride == 0 or (closes and token + 1 == text)
        if beacons and group_ends:
            columns.append((BEACON, beacon))
            beacon += 1
    return columns + ([(READOUT, slot) for slot in range(readouts)] if closes else [])


def reference_states(
    stack: Stack, memory: MemoryLayers, ids: Sequence[int], sizes: Sequence[int], stride: int
) -> tuple[Tensor, list[ReferenceMemory]]:
    """The stream after the last layer at every text token (N, D), and what every layer remembers at the end.

    ids of one text, `sizes` of its chunks; the last chunk stays open.
    """
    layers = [ReferenceMemory() for _ in range(len(stack))]
    out, at = [], 0
    for number, size in enumerate(sizes):
        closes = number + 1 < len(sizes)
        columns = reference_columns(size, stride, closes, memory.global_slots, memory.queue_budget > 0)
        words = stack.embed(torch.tensor([ids[at : at + size]]))[0]
        tokens = memory.tokens.weight.to(words.dtype)
        rows = [words[i] if kind == TEXT else tokens[0] if kind == BEACON else tokens[1 + i] for kind, i in columns]
        for index in range(len(stack)):
            rows = _layer(stack, memory, index, layers[index], rows, columns, closes)
        out += [row for row, (kind, _) in zip(rows, columns) if kind == TEXT]
        at += size
    return torch.stack(out), layers


def _layer(
    stack: Stack,
    memory: MemoryLayers,
    index: int,
    own: ReferenceMemory,
    rows: list[Tensor],
    columns: list[tuple[str, int]],
    closes: bool,
) -> list[Tensor]:
    """2. to 5. One layer over one chunk: its output rows; `own` is changed when the chunk closes."""
    net = memory.layers[index]
    # 2. Seats: global slots through their adapter, then the queue from old to new.
    seats = [_adapted(net.global_adapter, slot).to(rows[0].dtype) for slot in own.carried or []] + own.queue
    # 3. The layer, over seats and columns, positions from 0, plainly causal.
    sequence = torch.stack([*seats, *rows])[None]
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
    rows = list(output[len(seats) :])
    if not closes:
        return rows
    # 4. Global slots: the candidate at first, a gated mix from then on.
    readouts = [row for row, (kind, _) in zip(rows, columns) if kind == READOUT]
    candidates = [_normed(net.global_norm, row) for row in readouts]
    if own.carried is None or net.gate is None:
        own.carried = candidates
    else:
        mixed = []
        for new, old in zip(candidates, own.carried):
            g = torch.sigmoid(wide(net.gate.weight[0]) @ torch.cat([new, old]) + net.gate_bias)
            mixed.append(g * old + (1 - g) * new)
        own.carried = mixed
    # 5. The queue: first in, first out.
    for row, (kind, _) in zip(rows, columns):
        if kind == BEACON:
            own.queue.append(_adapted(net.temporary_adapter, _normed(net.temporary_norm, row)).to(row.dtype))
    del own.queue[: max(len(own.queue) - memory.queue_budget, 0)]
    return rows


def _normed(norm: torch.nn.RMSNorm, row: Tensor) -> Tensor:
    return wide(row) / (wide(row).pow(2).mean() + norm.eps).sqrt() * wide(norm.weight)


def _adapted(adapter: torch.nn.Module, row: Tensor) -> Tensor:
    return row + wide(adapter.up.weight) @ (wide(adapter.down.weight) @ row)
