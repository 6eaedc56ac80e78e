"""Counted memory against tensors that exist: of one layer exactly, of a training step within 10%."""

from __future__ import annotations

import pytest
import torch

from breviary.backbones.shape import KNOWN_SHAPES, BackboneShape
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import set_trainable
from breviary.report.tables.cells import command_estimate, compose_cell
from breviary.training.cost.compared import SHAPES, compare_memory
from breviary.training.cost.estimate import estimate_training
from breviary.training.cost.layer import Training, saved_bytes
from breviary.training.cost.measured import LiveBytes
from breviary.training.cost.parts import TextLengths
from scripts.bench.training_memory import FORMS

QWEN2_7B, TEXT = KNOWN_SHAPES["Qwen/Qwen2-7B-Instruct"], TextLengths(8192, 64, 64)


def saved_by_layers(backbone, training, layers):
    """Bytes that a forward pass of 32 tokens through so many layers leaves for the backward pass."""
    stack = Stack(TinyBackbone(layers=layers, device="cpu", **backbone).load())
    set_trainable(stack, training.mode, training.rank or 1, lora_targets=list(training.targets) or "all-linear")
    states = torch.randn(1, 32, stack.width).to(stack.dtype).requires_grad_()
    with LiveBytes() as live, stack.train().mixed_precision():
        for tensor in (states, *stack.parameters()):
            live.track(tensor)
        before = live.live
        output = stack.run(states, range(layers), torch.arange(32)[None])
    assert output.requires_grad
    return live.live - before, BackboneShape.from_config(stack.config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "backbone, training",
    [
        ({"family": "llama", "width": 32, "kv_heads": 4}, Training("frozen")),
        ({"family": "llama", "width": 32}, Training.of("lora", 2, ["q_proj", "down_proj"])),
        ({"family": "qwen2", "width": 64}, Training("attention")),
        ({"family": "qwen3", "width": 32}, Training("full")),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_a_layer_saves_as_many_bytes_as_are_counted(backbone, training, dtype):
    """Exactly, beside the copies of trained weights that autocast makes."""
    backbone = backbone | {"dtype": dtype}
    (one, shape), (two, _) = (saved_by_layers(backbone, training, layers) for layers in (1, 2))
    size = getattr(torch, dtype).itemsize
    casts = training.share(shape) * shape.layer_weights + training.adapter_weights(shape)
    casts = size * casts if size == 2 else 0
    small = 1024 if training.mode in ("full", "attention") else 0  # norms and biases
    assert two - one == pytest.approx(32 * saved_bytes(shape, training, size) + casts, abs=small)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_peak_of_a_step_is_counted_within_ten_percent(shape, dtype):
    row = compare_memory(shape, dtype, FORMS["full_context"], 32)
    assert row["estimated"] == pytest.approx(row["measured"], rel=0.1)


def test_the_peak_of_a_compressor_is_counted_within_ten_percent():
    row = compare_memory("llama", "bfloat16", FORMS["comi, input"], 96)
    assert row["estimated"] == pytest.approx(row["measured"], rel=0.1)


# ------------------------------------------------------------------ engines, by hand


def held(engine, *words, train="full", processes=8):
    """Estimate of full context on Qwen2-7B."""
    overrides = ("compressor=full_context", "backbone=qwen2_7b", f"engine={engine}", f"decoder.train={train}", *words)
    return estimate_training(compose_cell("train", overrides), QWEN2_7B, TEXT, processes).memory


def test_engines_shard_what_their_table_states():
    """16 bytes a trained weight: ZeRO has 2 of the weight, 2 of the gradient, 12 of master and Adam."""
    billions = QWEN2_7B.weights
    step = {name: held(name).moments[2] for name in ("ddp", "zero1", "zero2", "zero3", "fsdp")}
    parts = {name: (one.weights, one.gradients, one.optimizer) for name, one in step.items()}
    assert parts["ddp"] == tuple(pytest.approx(n * billions) for n in (4, 4, 8))
    assert step["ddp"].buffers == pytest.approx(4 * billions)
    assert parts["zero1"] == tuple(pytest.approx(n * billions) for n in (2, 2, 12 / 8))
    assert parts["zero2"] == tuple(pytest.approx(n * billions) for n in (2, 2 / 8, 12 / 8))
    assert parts["zero3"] == tuple(pytest.approx(n * billions / 8) for n in (2, 2, 12))
    assert parts["fsdp"] == tuple(pytest.approx(n * billions / 8) for n in (4, 4, 8))


def test_offload_moves_to_the_host():
    plain, offloaded = held("zero2"), held("zero2_offload")
    assert offloaded.moments[2].optimizer == 0 and offloaded.host == pytest.approx(16 * QWEN2_7B.weights / 8)
    assert plain.host == 0 and offloaded.peak.total < plain.peak.total
    assert held("zero3_offload").moments[0].weights == 0


def test_accumulated_gradients_are_there_in_the_forward_pass():
    once, twice = held("single", processes=1), held("single", "train.accumulation=2", processes=1)
    assert (once.moments[0].gradients, twice.moments[0].gradients) == (0, pytest.approx(4 * QWEN2_7B.weights))


def test_the_logits_of_a_long_answer_are_those_of_a_chunk():
    cfg = compose_cell("train", ("compressor=full_context", "backbone=qwen2_7b"))
    short, long = (
        estimate_training(cfg, QWEN2_7B, TextLengths(8192, 64, n)).memory.moments[0].logits for n in (64, 8192)
    )
    assert short < 0.3e9 and long < 1.9e9  # all 65,536 rows: 60e9


def test_a_pipeline_of_comet_shards_activations():
    command = "torchrun --nproc_per_node 8 train.py experiment=comet_scrolls engine=zero2 engine.ranks={}"
    one, eight = (command_estimate(command.format(ranks), [32768, 64, 64]).memory.moments[0] for ranks in (1, 8))
    assert eight.activations < one.activations / 4 and eight.optimizer == one.optimizer
