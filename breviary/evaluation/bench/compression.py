"""Speed of compression against the bare encoder, and of a training step against full context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.stack import CapturingCache
from breviary.contract import Batch, Context, Question, Reader
from breviary.evaluation.timing import measure_alternating, median_ratio, random_batch, reader_from_overrides
from breviary.memory.encoder import ContextEncoder
from breviary.readers.compressed import CompressedReader

QUESTION, ANSWER, EVIDENCE = 24, 8, 100  # tokens


def measure_compression(overrides: Sequence[str], join: str, length: int, ratio: int, runs: int) -> dict[str, Any]:
    """Time and peak memory of a compression and of its floor, the bare encoder forward pass on the same tokens.

    overrides  of the reader: compressor, backbone, dtype
    length     tokens of context and question together
    """
    frozen = ["decoder.train=frozen", "compressor.encoder_train=frozen"]
    settings = [f"compressor.join={join}", f"compressor.ratio={ratio}", *frozen]
    reader = reader_from_overrides(*overrides, *settings).eval()
    batch = random_batch(reader, length, QUESTION, evidence=EVIDENCE)
    with torch.no_grad(), reader.mixed_precision():
        times = _compare(_encoder_forward(reader, batch), _compression(reader, batch), runs)
    return {"join": join, "tokens": length, "ratio": ratio, **times}


def measure_training_step(overrides: Sequence[str], join: str, length: int, ratio: int, runs: int) -> dict[str, Any]:
    """Time and peak memory of a training step at a ratio, and of one of the whole backbone on as many tokens.

    overrides  of the reader, `compressor=...` first; both readers train LoRA adapters
    """
    compressor, *shared = overrides
    full = reader_from_overrides("compressor=full_context", *shared)
    reader = reader_from_overrides(compressor, *shared, f"compressor.join={join}", f"compressor.ratio={ratio}")
    batch = random_batch(full, length, QUESTION, ANSWER, EVIDENCE)
    times = _compare(_training_step(full, batch), _training_step(reader, batch), runs)
    return {"join": join, "tokens": length, "ratio": ratio, **times}


def _encoder_forward(reader: CompressedReader, batch: Batch) -> Callable[[], Any]:
    """The floor: one forward pass of the truncated encoder over the rows that the compression encodes.

    It stores keys and values where the compression does.
    """
    encoder = reader.compressor.context_encoder
    stack = reader.decoder if encoder.join == "depth" else encoder.encoder
    capture = encoder.join == "input" and encoder.question != "alone"
    rows = _encoder_rows(encoder, batch)

    def forward() -> Any:
        cache = CapturingCache() if capture else None
        outputs = []
        for ids in rows:
            positions = torch.arange(ids.shape[1]).expand_as(ids)
            outputs.append(stack.norm(stack.run(stack.embed(ids), range(encoder.layers), positions, cache=cache)))
        return outputs, cache

    return forward


def _encoder_rows(encoder: ContextEncoder, batch: Batch) -> list[Tensor]:
    """Token ids of the encoder's forward passes: context and question in one row, or segments and question apart."""
    context, question = batch.context.ids, batch.query.ids
    is_split = encoder.segment_size < context.shape[1] + question.shape[1]
    if encoder.question != "alone" and not is_split:
        return [torch.cat([context, question], 1)]
    if is_split:  # the last segment is padded, as in `encode`
        context = torch.nn.functional.pad(context, (0, -context.shape[1] % encoder.segment_size))
    return [context.view(-1, min(encoder.segment_size, context.shape[1])), question]


def _compression(reader: CompressedReader, batch: Batch) -> Callable[[], Any]:
    """The whole compression: encode, group, merge, align."""
    compressor, encoder = reader.compressor, reader.compressor.context_encoder

    def compress() -> Any:
        encoded = compressor.encode(Context(batch.context.ids, batch.context.mask, batch.prefix))
        stack = reader.decoder if encoder.join == "depth" else encoder.encoder
        states = stack.embed(batch.query.ids)
        if encoder.join == "depth":  # the reader runs the question through the same layers, once
            positions = batch.context.lengths[:, None] + torch.arange(QUESTION)[None]
            states = stack.run(states, range(encoder.layers), positions)
        question = Question(batch.query.ids, batch.query.mask, states, batch.query.mask)
        return compressor.compress(encoded, question), encoded

    return compress


def _training_step(reader: Reader, batch: Batch) -> Callable[[], None]:
    """Forward and backward pass."""

    def step() -> None:
        reader.zero_grad()
        output = reader.loss(batch)
        (output.nll.sum() / output.tokens.sum()).backward()

    return step


def _compare(floor: Callable[[], Any], ours: Callable[[], Any], runs: int) -> dict[str, float]:
    """Medians in seconds and MiB of both calls, and the ratios ours / floor."""
    measured = measure_alternating({"floor": floor, "ours": ours}, runs, memory=True)
    low, high = measured["floor"], measured["ours"]
    return {
        "floor_s": low.median_seconds,
        "ours_s": high.median_seconds,
        "time_ratio": median_ratio(high.seconds, low.seconds),
        "floor_mib": low.median_peak_bytes / 2**20,
        "ours_mib": high.median_peak_bytes / 2**20,
        "memory_ratio": high.median_peak_bytes / low.median_peak_bytes,
    }
