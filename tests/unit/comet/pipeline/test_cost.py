"""comet.pipeline.cost: what is counted equals what is computed, sent and kept."""

import pytest
import torch
from comet_helpers import B, C, G, S, comet, drawn_ids, text_of

from breviary.training.pipeline import PipelineGroup
from comet.pipeline.cost import Memory, Part, Plan, Shape, kept_bytes, message_bytes, parts_of
from comet.pipeline.chunk_pipeline import crossings, pieces_of
from scripts.bench.comet_length import PUBLISHED, SHAPES, multiplications_ratio

SIZES = Memory(C, S, G, B)
QWEN3_4B = Shape(36, 2560, 9728, 32, 8, 128, 151936, True)
PAPER = Memory(2048, 8, 512, 2048)


def read(dtype, layers, chunks):
    reader = comet(dtype=dtype, layers=layers).train()
    reader.decoder.checkpointing = True
    reader.join_pipeline(PipelineGroup(), "cyclic")
    plan = [C] * (chunks - 1) + [5]
    return reader, text_of(drawn_ids(1, sum(plan)), [plan])


def test_parts_are_the_chunks_that_are_read():
    reader, text = read("float32", 2, 5)
    chunks = list(reader.laid_out(text))
    pieces = pieces_of(reader.memory, chunks, text)
    crossing = crossings(reader, pieces)
    shape = Shape.of(reader.decoder.config)
    parts = parts_of(sum(text.steps[number].sizes[0] for number in range(5)), SIZES)
    assert [part.own for part in parts] == [chunk.layout.mask.shape[1] for chunk in chunks]
    assert [part.seats for part in parts] == [piece.seat_mask.shape[1] for piece in pieces]
    assert [message_bytes(part, shape, SIZES, torch.float32) for part in parts] == [
        crossing[number].bytes if number in crossing else 0 for number in range(5)
    ]


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_kept_bytes_are_what_autograd_keeps(dtype):
    """Of one more layer, over six chunks; to 15%, as small tensors are not counted."""
    kept = {}
    for layers in (2, 3):
        reader, text = read(dtype, layers, 6)
        weights = {value.untyped_storage().data_ptr() for value in (*reader.parameters(), *reader.buffers())}
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), reader.decoder.mixed_precision():
            alive = reader.nll(text)  # storages must not be freed and used anew
        kept[layers] = sum(seen.values())
        assert alive.requires_grad
    shape, kind = Shape.of(reader.decoder.config), getattr(torch, dtype)
    counted = sum(kept_bytes(part, shape, SIZES, kind) for part in parts_of(5 * C + 5, SIZES))
    print(dtype, counted, kept[3] - kept[2], counted / (kept[3] - kept[2]))
    assert counted == pytest.approx(kept[3] - kept[2], rel=0.15)


def test_weights():
    reader, _ = read("float32", 2, 1)
    norms = sum(value.numel() for name, value in reader.decoder.named_parameters() if value.dim() == 1)
    shape = Shape.of(reader.decoder.config)
    assert shape.weights + SIZES.weights(shape) == sum(value.numel() for value in reader.parameters()) - norms
    assert QWEN3_4B.weights / 1e9 == pytest.approx(4.02, abs=0.01)  # as published
    assert PAPER.weights(QWEN3_4B) == 36 * 36 * 2560 + 513 * 2560


def test_a_message_of_the_paper_s_sizes():
    """S in float32, Q in bfloat16."""
    steady = parts_of(32768, PAPER)[-1]
    assert steady.seats == 2560
    assert message_bytes(steady, QWEN3_4B, PAPER, torch.bfloat16) == 40 + 512 * 2560 * 4 + 2048 * 2560 * 2


def test_multiplications_are_the_benchmark_s():
    """A steady chunk, kv_prefix: the two ways of counting agree."""
    sizes, steady = SHAPES["qwen3_4b"], Part(2048, 256, 512, 2048, 2560)
    D, kv, q = 2560, 1024, 4096
    row = 2 * D * q + 2 * D * kv + 3 * D * 9728
    scatter = (2560 + 2816) * row + (2560 + 2816) * (2560 + 2817) * q
    assert scatter / steady.multiplications(QWEN3_4B) == pytest.approx(multiplications_ratio(sizes), rel=1e-3)
    assert list(PUBLISHED.values()) == [PAPER.chunk, PAPER.stride, PAPER.slots, PAPER.queue]


@pytest.mark.parametrize("schedule, bubble", [("contiguous", 15 / 51), ("cyclic", 15 / 159)])
def test_the_paper_s_training(schedule, bubble):
    """128k tokens on 16 ranks: 64 chunks, 36 layers."""
    plan = Plan(QWEN3_4B, PAPER, 131072, 16, 1, schedule)
    computed, sent, kept = plan.computed(), plan.sent(), plan.kept()
    assert computed["chunks"] == 64 and computed["bubble"] == pytest.approx(bubble)
    assert 1 < computed["speedup"] < 16 * (1 - bubble) + 0.01
    borders = 15 if schedule == "contiguous" else 63
    assert sent["messages"] == 2 * 36 * borders and sent["border"] == 2 * 36 * sent["message"]
    assert kept["total"] == sum(value for name, value in kept.items() if name != "total") < 80e9
    assert Plan(QWEN3_4B, PAPER, 131072, 1, 16, schedule).kept()["activations"] > 10 * kept["activations"]


def test_one_rank_sends_nothing_and_waits_for_nobody():
    plan = Plan(QWEN3_4B, PAPER, 20000, 1, 1, "cyclic")
    assert plan.computed()["speedup"] == plan.computed()["makespan"] / plan.computed()["cells"] == 1
    assert set(plan.sent().values()) == {0}
