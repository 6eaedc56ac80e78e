"""Estimates of memory and time against counts made by hand, and against the weights of built readers."""

from __future__ import annotations

import pytest

from breviary.backbones.shape import KNOWN_SHAPES, BackboneShape
from breviary.config.build import ReaderSpec
from breviary.report.tables.cells import command_estimate, compose_cell
from breviary.training.cost.devices import SUSTAINED
from breviary.training.cost.estimate import estimate_training, reader_weights
from breviary.training.cost.layer import Training
from breviary.training.cost.memory import part_bytes
from breviary.training.cost.parts import Part, TextLengths, reader_parts
from tests.tiny import compose_tiny, tiny_reader

TINY = BackboneShape(layers=2, width=8, inner=16, heads=2, kv_heads=1, head=4, vocabulary=100, tied=True)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", 6.74),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03),
        ("meta-llama/Llama-3.2-1B-Instruct", 1.24),
        ("meta-llama/Llama-3.2-3B-Instruct", 3.21),
        ("Qwen/Qwen2-7B-Instruct", 7.62),
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("Qwen/Qwen3-4B-Instruct-2507", 4.02),
    ],
)
def test_known_shapes_have_the_published_numbers_of_weights(name, billions):
    assert KNOWN_SHAPES[name].weights / 1e9 == pytest.approx(billions, abs=0.005)


def test_the_cost_of_a_stack_by_hand():
    """A layer: q and o 8 x 8, k and v 8 x 4, three matrices 8 x 16; 10 tokens, each attending to 10."""
    assert TINY.layer_weights == 2 * 64 + 2 * 32 + 3 * 128 == 576
    part = Part(layers=2, tokens=10, span=10, training=Training("full"), passes=True, own=1)
    forward = 2 * (10 * 576 + 10 * 10 * 8)
    assert part.multiplications(TINY) == forward
    assert part.flops(TINY, checkpointing=False) == 2 * 3 * forward
    assert part.flops(TINY, checkpointing=True) == 2 * 4 * forward
    frozen = Part(layers=2, tokens=10, span=10, training=Training("frozen"), passes=False, own=1)
    assert frozen.flops(TINY, checkpointing=False) == 2 * forward
    assert part_bytes(frozen, TINY, 2, False) == (0, 0)


def test_checkpointing_saves_memory_and_costs_time():
    command = "torchrun --nproc_per_node 2 train.py experiment=comi_nq backbone=qwen2_7b engine=zero2"
    plain, saved = (
        command_estimate(f"{command} {more}", [3253, 12, 6]) for more in ("", "train.gradient_checkpointing=true")
    )
    assert saved.memory.moments[1].activations < plain.memory.moments[1].activations / 2 and saved.flops > plain.flops


def test_hours_follow_processes_and_steps():
    command = "torchrun --nproc_per_node {} train.py experiment=ram_nq engine=zero2 train.steps={}"
    one, two = (command_estimate(command.format(n, steps), [3253, 12, 6]) for n, steps in ((1, 1000), (2, 2000)))
    assert (one.global_batch, two.global_batch) == (1, 2)
    assert two.hours == pytest.approx(2 * one.hours) and one.hours == pytest.approx(one.flops / SUSTAINED / 3600)
    assert two.bytes < one.bytes  # ZeRO shards the optimizer


@pytest.mark.parametrize(
    "overrides",
    [
        ["compressor=comi", "compressor.join=input", "decoder.train=full"],
        ["compressor=mean_pool", "compressor.join=input", "decoder.train=attention"],
        ["compressor=full_context", "decoder.train=qkv"],
        ["compressor=ram", "compressor.encoder_train=lora"],
        ["compressor=icae", "compressor.memory_tokens=8"],
    ],
    ids=lambda overrides: overrides[0].partition("=")[2],
)
def test_counted_weights_are_those_of_the_reader(overrides):
    """Weights, gradients and optimizer, without norms: within two percent of a built reader's."""
    cfg = compose_tiny(overrides)
    reader, spec = tiny_reader(cfg), ReaderSpec.of(cfg)
    shape = BackboneShape.from_config(reader.decoder.config)
    weights = reader_weights(cfg, spec, shape, reader_parts(cfg, spec, shape, TextLengths(100, 10, 10)), 1)
    held = sum(p.numel() for p in reader.parameters())
    trained = sum(p.numel() for p in reader.parameters() if p.requires_grad)
    assert weights.bytes == pytest.approx(4 * held, rel=0.02)
    assert weights.gradients == pytest.approx(4 * trained, rel=0.02) and weights.optimizer == 2 * weights.gradients


def test_a_run_states_its_global_batch():
    cfg = compose_cell(
        "train", ("experiment=gmsa_stage1", "train.batch_size=4", "train.accumulation=2", "engine=zero2")
    )
    estimate = estimate_training(cfg, KNOWN_SHAPES[cfg.backbone.path], TextLengths(300, 8, 300), 2)
    assert str(estimate).startswith("global batch 16; estimated ") and str(estimate).endswith(" hours")
