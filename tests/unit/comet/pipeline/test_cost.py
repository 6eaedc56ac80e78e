"""comet.pipeline.cost: counted sizes equal the computed, sent and saved ones."""

import pytest
import torch
from comet_helpers import B, C, G, S, chunked_text, random_ids, tiny_comet

from breviary.training.pipeline import PipelineGroup
from comet.bench.backends import PUBLISHED, SHAPES, multiplications_ratio
from comet.pipeline.chunk_pipeline import chunk_pieces, message_layouts
from comet.pipeline.cost import (
    BackboneShape,
    ChunkShape,
    MemoryShape,
    PipelinePlan,
    activation_bytes,
    chunk_shapes,
    message_bytes,
)

SIZES = MemoryShape(C, S, G, B)
QWEN3_4B = BackboneShape(36, 2560, 9728, 32, 8, 128, 151936, True)
PAPER = MemoryShape(2048, 8, 512, 2048)


def training_reader_and_text(dtype, layers, chunks):
    reader = tiny_comet(dtype=dtype, layers=layers).train()
    reader.decoder.checkpointing = True
    reader.join_pipeline(PipelineGroup(), "cyclic")
    plan = [C] * (chunks - 1) + [5]
    return reader, chunked_text(random_ids(1, sum(plan)), [plan])


def test_chunk_shapes_equal_those_of_the_reader():
    reader, text = training_reader_and_text("float32", 2, 5)
    chunks = list(reader.prepare_chunks(text))
    pieces = chunk_pieces(reader.memory, chunks, text)
    layouts = message_layouts(reader, pieces)
    shape = BackboneShape.from_config(reader.decoder.config)
    shapes = chunk_shapes(sum(text.steps[number].sizes[0] for number in range(5)), SIZES)
    assert [one.columns for one in shapes] == [chunk.layout.mask.shape[1] for chunk in chunks]
    assert [one.slots for one in shapes] == [piece.slot_mask.shape[1] for piece in pieces]
    assert [message_bytes(one, shape, SIZES, torch.float32) for one in shapes] == [
        layouts[number].bytes if number in layouts else 0 for number in range(5)
    ]


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_activation_bytes_equal_those_that_autograd_saves(dtype):
    """For one more layer, over six chunks, within 15%: small tensors are not counted."""
    saved = {}
    for layers in (2, 3):
        reader, text = training_reader_and_text(dtype, layers, 6)
        weights = {value.untyped_storage().data_ptr() for value in (*reader.parameters(), *reader.buffers())}
        seen = {}

        def pack(tensor, weights=weights, seen=seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), reader.decoder.mixed_precision():
            nll = reader.nll(text)  # keeps the storages alive, so that none is reused
        saved[layers] = sum(seen.values())
        assert nll.requires_grad
    shape, kind = BackboneShape.from_config(reader.decoder.config), getattr(torch, dtype)
    counted = sum(activation_bytes(one, shape, SIZES, kind) for one in chunk_shapes(5 * C + 5, SIZES))
    print(dtype, counted, saved[3] - saved[2], counted / (saved[3] - saved[2]))
    assert counted == pytest.approx(saved[3] - saved[2], rel=0.15)


def test_number_of_weights_in_backbone_and_memory():
    reader, _ = training_reader_and_text("float32", 2, 1)
    norms = sum(value.numel() for name, value in reader.decoder.named_parameters() if value.dim() == 1)
    shape = BackboneShape.from_config(reader.decoder.config)
    assert shape.weights + SIZES.weights(shape) == sum(value.numel() for value in reader.parameters()) - norms
    assert QWEN3_4B.weights / 1e9 == pytest.approx(4.02, abs=0.01)  # as published
    assert PAPER.weights(QWEN3_4B) == 36 * 36 * 2560 + 513 * 2560


def test_message_bytes_at_the_paper_s_sizes():
    """S in float32, Q in bfloat16."""
    steady = chunk_shapes(32768, PAPER)[-1]
    assert steady.slots == 2560
    assert message_bytes(steady, QWEN3_4B, PAPER, torch.bfloat16) == 40 + 512 * 2560 * 4 + 2048 * 2560 * 2


def test_multiplications_equal_the_benchmark_s():
    """A steady chunk with kv_prefix: both ways of counting agree."""
    sizes, steady = SHAPES["qwen3_4b"], ChunkShape(2048, 256, 512, 2048, 2560)
    D, kv, q = 2560, 1024, 4096
    row = 2 * D * q + 2 * D * kv + 3 * D * 9728
    scatter = (2560 + 2816) * row + (2560 + 2816) * (2560 + 2817) * q
    assert scatter / steady.multiplications(QWEN3_4B) == pytest.approx(multiplications_ratio(sizes), rel=1e-3)
    assert list(PUBLISHED.values()) == [PAPER.chunk, PAPER.stride, PAPER.slots, PAPER.queue]


@pytest.mark.parametrize("schedule, bubble", [("contiguous", 15 / 51), ("cyclic", 15 / 159)])
def test_a_plan_at_the_paper_s_sizes(schedule, bubble):
    """128k tokens on 16 ranks: 64 chunks, 36 layers."""
    plan = PipelinePlan(QWEN3_4B, PAPER, 131072, 16, 1, schedule)
    timing, traffic, held = plan.timing(), plan.traffic(), plan.memory_bytes()
    assert timing["chunks"] == 64 and timing["bubble"] == pytest.approx(bubble)
    assert 1 < timing["speedup"] < 16 * (1 - bubble) + 0.01
    borders = 15 if schedule == "contiguous" else 63
    assert traffic["messages"] == 2 * 36 * borders and traffic["border"] == 2 * 36 * traffic["message"]
    assert held["total"] == sum(value for name, value in held.items() if name != "total") < 80e9
    one_rank = PipelinePlan(QWEN3_4B, PAPER, 131072, 1, 16, schedule).memory_bytes()
    assert one_rank["activations"] > 10 * held["activations"]


def test_one_rank_sends_nothing_and_is_never_idle():
    plan = PipelinePlan(QWEN3_4B, PAPER, 20000, 1, 1, "cyclic")
    timing = plan.timing()
    assert timing["speedup"] == timing["makespan"] / timing["cells"] == 1
    assert set(plan.traffic().values()) == {0}
