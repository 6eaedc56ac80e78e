"""The encoder of join: input: adapters, freezing, random ratios, an encoder of another width, initialisation."""

import pytest
import torch

from breviary.backbones.trainable import learned_parameters
from tests.tiny import disturb

STAGE_2 = [
    "compressor=mean_pool",
    "compressor.encoder_train=lora",
    "compressor.encoder_lora_dropout=0.5",
    "compressor.frozen=true",
    "decoder.train=qkv",
]


def test_a_frozen_encoder_is_not_trained_and_has_no_dropout(build, ragged):
    reader = build(STAGE_2).train()
    disturb(reader.compressor.context_encoder)  # no effect, as no weight is trainable
    names = [name for name, _ in reader.named_parameters() if name.startswith("compressor.")]
    assert names and not any(reader.get_parameter(name).requires_grad for name in names)
    encoder = reader.compressor.context_encoder
    assert reader.training and not any(module.training for module in encoder.modules())
    assert (
        not reader.eval().compressor.context_encoder.training and not reader.train().compressor.context_encoder.training
    )
    with torch.no_grad():
        encoder.encoder.layers[0].self_attn.q_proj.lora_B["default"].weight.normal_()
    assert torch.equal(reader.loss(ragged).nll, reader.loss(ragged).nll)
    learned = {name for name in learned_parameters(reader) if name.startswith("compressor.")}
    assert learned == {name for name in names if "lora_" in name or ".lsa." in name}


def test_a_frozen_encoder_still_draws_ratios(build, ragged):
    reader = build([*STAGE_2, "compressor.ratio_choices=[16]"])
    reader.begin_step(0, 0)
    assert reader.loss(ragged).slots.sum() < reader.eval().loss(ragged).slots.sum()


def test_adapter_settings_of_the_encoder(build):
    reader = build(
        [
            "compressor=mean_pool",
            "compressor.encoder_train=lora",
            "compressor.encoder_lora_rank=3",
            "compressor.encoder_lora_alpha=12",
            "compressor.encoder_lora_dropout=0.25",
        ]
    )
    layer = reader.compressor.context_encoder.encoder.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape[0] == 3 and layer.scaling["default"] == 4
    assert layer.lora_dropout["default"].p == 0.25


@pytest.mark.parametrize("compressor", ["mean_pool", "comi"])
def test_ratios_drawn_for_every_context_do_not_depend_on_batch_mates(build, ragged_examples, collate, compressor):
    reader = build([f"compressor={compressor}", "compressor.ratio_choices=[2,8]", "compressor.ratio_draw=sample"])
    seen = set()
    for step in range(4):
        reader.begin_step(step, 0)
        output = reader.loss(collate(ragged_examples))
        alone = [reader.loss(collate([example])) for example in ragged_examples]
        assert output.slots.tolist() == [one.slots.item() for one in alone]
        torch.testing.assert_close(output.nll, torch.cat([one.nll for one in alone]), rtol=1e-5, atol=1e-5)
        seen.add(output.slots[0].item())
    assert len(seen) == 2 or compressor == "comi"  # COMI may drop groups


def test_a_linear_map_bridges_an_encoder_of_another_width(build, tmp_path, ragged):
    from breviary.backbones.tiny import TinyBackbone

    TinyBackbone(layers=2, width=32, seed=3, device="cpu").load().save_pretrained(tmp_path)
    TinyBackbone().tokenizer().save_pretrained(tmp_path)
    reader = build(
        [
            "compressor=mean_pool",
            f"compressor.encoder={tmp_path}",
            "compressor.alignment=linear_lsa",
            "decoder.train=frozen",
            "backbone.dtype=float32",
        ]
    )
    encoder = reader.compressor.context_encoder
    assert encoder.encoder.width == 32 and encoder.linear.weight.shape == (64, 32) and encoder.lsa.width == 64
    reader.loss(ragged).nll.sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.any()
        for parameter in encoder.parameters()
        if parameter.requires_grad
    )


def test_random_initialisation_of_the_alignment(build, ragged):
    words = ["compressor=mean_pool", "decoder.train=frozen", "backbone.dtype=float32"]
    pretrained, drawn = (build([*words, f"compressor.lsa_init={init}"]) for init in ("pretrained", "random"))
    std = drawn.decoder.config.initializer_range
    others = dict(pretrained.named_parameters())
    for name, weight in drawn.named_parameters():
        if "context_encoder.lsa.layers" not in name or "norm" in name:
            assert torch.equal(weight, others[name]), name  # norms are 1 in an untrained backbone too
            continue
        assert not torch.equal(weight, others[name]), name
        assert weight.std().item() == pytest.approx(std, rel=0.1), name
    drawn.loss(ragged).nll.sum().backward()
    assert all(
        weight.grad.any() for weight in drawn.compressor.context_encoder.lsa.parameters() if weight.requires_grad
    )
