"""Speed of every reader's training step, relative to a plain forward and backward pass of as many token-layers.

Shape letters: B rows of a pass, N columns, D hidden width.

Token-layers: forward hooks record every call of a decoder layer in one step of the reader. A call on (B, N, D) states
counts B * N token-layers, padding included (sequences are rounded up to 16; random rows have equal lengths). With a
join at depth, the layers below and above it therefore count different numbers of tokens. Forward passes without
gradient count too, and run without gradient in the floor.

The floor (lower bound) calls the same layer modules, adapters included, in the same passes on random states of the same
shapes, with causal attention and no mask; then the head and cross-entropy on as many supervised rows. The difference is
the reader's overhead: embedding, assembly, selection and merging, masks, memory, the chunked loss.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.nn.modules.module import register_module_forward_pre_hook

from breviary.contract import Batch, Reader
from breviary.evaluation.bench.compression import ANSWER, EVIDENCE, QUESTION
from breviary.evaluation.bench.rows import Row
from breviary.evaluation.timing import median_ratio, random_batch, reader_from_overrides
from breviary.runtime.device import synchronise

WARM_UP_LENGTH = 128  # tokens


@dataclass
class Pass:
    """Consecutive layer calls on states of one shape.

    rows, columns  B and N
    with_gradient  whether the pass is part of the autograd graph
    needs_input    whether its input requires a gradient
    """

    layers: list[nn.Module]
    rows: int
    columns: int
    with_gradient: bool
    needs_input: bool

    @property
    def token_layers(self) -> int:
        """B * N of each layer."""
        return self.rows * self.columns * len(self.layers)


def measure_step(overrides: Sequence[str], length: int, rows: int, runs: int) -> Iterator[Row]:
    """Yields an updated row after each turn of reader and floor.

    overrides  of the reader
    length     tokens of context, question and answer
    rows       examples of the batch
    Fields: ratio is the median over turns of ours / floor in this process's CPU seconds, wall_ratio in wall time.
    """
    torch.manual_seed(0)
    reader = reader_from_overrides(*overrides).train()
    warm_up, batch = (
        random_batch(reader, tokens, QUESTION, ANSWER, EVIDENCE, n)
        for tokens, n in ((WARM_UP_LENGTH, 1), (length, rows))
    )
    _step(reader, warm_up)()
    passes = record_passes(reader, batch)
    calls = {"ours": _step(reader, batch), "floor": _floor(reader, passes, int(reader.counts(batch)["answer"]))}
    _floor(reader, record_passes(reader, warm_up), 1)()
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "floor": []}
    for _ in range(runs):
        for name, call in calls.items():
            seconds[name].append(_seconds(call))
        (ours, ours_wall), (floor, floor_wall) = (zip(*seconds[name]) for name in ("ours", "floor"))
        yield {
            "turns": len(ours),
            "token_layers": sum(each.token_layers for each in passes),
            "ours_cpu_s": statistics.median(ours),
            "floor_cpu_s": statistics.median(floor),
            "ratio": median_ratio(ours, floor),
            "wall_ratio": median_ratio(ours_wall, floor_wall),
        }


def record_passes(reader: Reader, batch: Batch) -> list[Pass]:
    """The passes of one forward pass of the loss, in order."""
    passes: list[Pass] = []
    kind = type(reader.decoder.layers[0])

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not isinstance(module, kind):
            return
        states, with_gradient = inputs[0], torch.is_grad_enabled()
        rows, columns = states.shape[:2]
        last = passes[-1] if passes else None
        if last and (last.rows, last.columns, last.with_gradient) == (rows, columns, with_gradient):
            last.layers.append(module)
        else:
            passes.append(Pass([module], rows, columns, with_gradient, states.requires_grad))

    handle = register_module_forward_pre_hook(record)
    try:
        reader.loss(batch)
    finally:
        handle.remove()
    return passes


def _step(reader: Reader, batch: Batch) -> Callable[[], None]:
    """A function that runs forward and backward pass of the reader."""

    def step() -> None:
        reader.zero_grad()
        sum(value / count.clamp(min=1) for value, count in reader.loss(batch).terms().values()).backward()

    return step


def _floor(reader: Reader, passes: Sequence[Pass], supervised: int) -> Callable[[], None]:
    """A function that runs the plain step with the recorded passes, `supervised` rows in the loss."""
    decoder = reader.decoder
    ids = torch.randint(0, decoder.config.vocab_size, (supervised,))

    def run(each: Pass) -> Tensor:
        states = torch.randn(each.rows, each.columns, decoder.width, dtype=decoder.dtype)
        states.requires_grad_(each.needs_input)
        positions = torch.arange(each.columns).expand(each.rows, -1)
        with torch.set_grad_enabled(each.with_gradient):
            inputs = decoder.attention_inputs(states, positions)
            for layer in each.layers:
                states = layer(states, past_key_values=None, use_cache=False, **inputs)
        return states

    def step() -> None:
        reader.zero_grad()
        with decoder.mixed_precision():
            *others, last = [run(each) for each in passes]
            rows = decoder.norm(last.flatten(0, 1)[-supervised:])
            logits = linear(rows, decoder.lm_head.weight).float()
            loss = cross_entropy(logits, ids[-len(rows) :])
        loss = loss + sum(states.float().mean() for states in others if states.requires_grad)
        if loss.requires_grad:
            loss.backward()

    return step


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """CPU time of this process and wall time of a call."""
    synchronise()
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    synchronise()
    return time.process_time() - cpu, time.perf_counter() - wall
