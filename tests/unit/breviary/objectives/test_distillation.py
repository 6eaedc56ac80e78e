"""Distillation from the same backbone, adapters disabled, with the whole context."""

import math

import pytest
import torch
from transformers import TrainerState

from breviary.backbones.trainable import teacher_adapters
from breviary.config.build import build_backbone
from breviary.memory.assembly import Layout, take_columns
from breviary.objectives.distillation import teacher_rows, topk_kl_divergence
from breviary.runs.checkpoints import save_trained
from breviary.runs.folders import write_run_metadata
from breviary.training.teacher import load_teacher, teacher_problems
from tests.tiny import disturb, row_ids

DEPTH = ["compressor=mean_pool", "compressor.join=depth"]
DISTILL = ["objective=distill", "objective.hint_tokens=2"]
ANSWERS = ["objective=distill", "objective.context_share=null"]


def logits(*probabilities):
    return torch.tensor([[probabilities]]).log() + 3.0  # a constant changes no probability


def test_topk_kl_divergence_equals_values_by_hand():
    teacher, reader_logits = logits(0.5, 0.25, 0.125, 0.125), logits(0.25, 0.25, 0.25, 0.25)
    # Top 2: .5 and .25, the rest .25 together: .5 ln 2 + .25 ln 1 + .25 ln (1/2)
    torch.testing.assert_close(topk_kl_divergence(reader_logits, teacher, top=2), torch.tensor([[0.25 * math.log(2)]]))
    # All four: .5 ln 2 + 0 + 2 * .125 ln (1/2)
    torch.testing.assert_close(topk_kl_divergence(reader_logits, teacher, top=4), torch.tensor([[0.25 * math.log(2)]]))
    assert torch.equal(
        topk_kl_divergence(reader_logits, teacher, top=99), topk_kl_divergence(reader_logits, teacher, top=4)
    )
    # Top 1: .5 ln 2 + .5 ln (2/3)
    torch.testing.assert_close(
        topk_kl_divergence(reader_logits, teacher, top=1), torch.tensor([[0.5 * math.log(4 / 3)]])
    )
    # At T = 2 the odds 4 : 1 become 2 : 1, uniform stays: 4 (2/3 ln (4/3) + 1/3 ln (2/3))
    torch.testing.assert_close(
        topk_kl_divergence(logits(0.5, 0.5), logits(0.8, 0.2), top=1, temperature=2.0),
        torch.tensor([[4 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))]]),
    )


def test_probability_of_tokens_outside_the_top_is_penalised():
    """Renormalised over the top tokens, the two distributions would be equal."""
    teacher, reader_logits = logits(0.6, 0.3, 0.06, 0.04), logits(0.06, 0.03, 0.9, 0.01)
    assert topk_kl_divergence(reader_logits, teacher, top=2) > 1


def test_divergence_grows_with_top_and_its_gradient_is_that_of_the_full_kl():
    torch.manual_seed(0)
    teacher, reader_logits = 3 * torch.randn(2, 3, 50), (3 * torch.randn(2, 3, 50)).requires_grad_()
    losses = [topk_kl_divergence(reader_logits, teacher, top) for top in (1, 5, 20, 50)]
    assert all((few <= many + 1e-6).all() for few, many in zip(losses, losses[1:]))
    losses[-1].sum().backward()
    torch.testing.assert_close(
        reader_logits.grad, (reader_logits.softmax(-1) - teacher.softmax(-1)).detach(), rtol=1e-4, atol=1e-6
    )
    sure = torch.tensor([[[200.0, 0.0, 0.0, 0.0]]]).requires_grad_()
    topk_kl_divergence(sure, sure.detach(), top=1).sum().backward()  # a bucket of probability e^-200
    assert torch.isfinite(sure.grad).all()


@pytest.mark.parametrize("words", [DISTILL, ANSWERS], ids=["continuation", "answer"])
def test_the_loss_of_the_teacher_itself_is_zero(build, ragged, words):
    reader = build(["compressor=full_context", *words])
    torch.testing.assert_close(reader.loss(ragged).nll, torch.zeros(len(ragged)), rtol=0, atol=1e-5)
    disturb(reader)
    assert reader.loss(ragged).nll.sum() > 0.1


@pytest.mark.parametrize("words", [DISTILL, ANSWERS], ids=["continuation", "answer"])
def test_the_teacher_is_the_plain_backbone_independent_of_the_adapters(build, ragged, words):
    reader, plain = build([*DEPTH, *words]), build(["compressor=full_context", "decoder.train=frozen"])
    before = teacher_rows(reader.decoder, ragged)
    disturb(reader, scale=1.0)
    after = teacher_rows(reader.decoder, ragged)
    assert torch.equal(before, after) and not after.requires_grad
    after = reader.decoder.head(after)
    for b in range(len(ragged)):
        prompt, answer = row_ids(ragged, b, "prefix", "context", "prompt"), row_ids(ragged, b, "answer")
        states = plain.decoder.embed(torch.cat([prompt, answer])[None])
        states = plain.decoder.run(states, range(len(plain.decoder)), torch.arange(states.shape[1])[None])
        expected = plain.decoder.head(plain.decoder.norm(states))[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(after[b, : len(answer)], expected, rtol=1e-4, atol=1e-4)


def test_teacher_adapters_restores_adapters_and_trained_weights(build, ragged):
    reader = build([*DEPTH, *ANSWERS])
    disturb(reader)
    trained = {name for name, parameter in reader.named_parameters() if parameter.requires_grad}
    ids = ragged.prompt.ids
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    states = reader.decoder.embed(ids)
    layers = range(len(reader.decoder))
    on = reader.decoder.run(states, layers, positions)
    with pytest.raises(KeyError), torch.no_grad(), teacher_adapters(reader.decoder):
        assert not torch.allclose(reader.decoder.run(states, layers, positions), on)
        raise KeyError
    assert torch.equal(reader.decoder.run(states, layers, positions), on)
    assert {name for name, parameter in reader.named_parameters() if parameter.requires_grad} == trained


def test_evaluation_reports_the_negative_log_likelihood(build, ragged):
    distilled, plain = build([*DEPTH, *ANSWERS]), build(DEPTH)
    assert torch.equal(distilled.eval().loss(ragged).nll, plain.eval().loss(ragged).nll)
    assert not torch.equal(distilled.train().loss(ragged).nll, plain.train().loss(ragged).nll)


def test_distillation_training_reduces_the_loss(build, ragged):
    reader = build([*DEPTH, *ANSWERS])
    optimizer = torch.optim.Adam([p for p in reader.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        output = reader.loss(ragged)
        loss = output.nll.sum() / output.tokens.sum()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0], losses


def test_an_equally_trained_run_teaches(build, compose, ragged, tmp_path):
    """The teacher's logits are those of full context with the run's adapters, and training leaves them alone."""
    full = build(["compressor=full_context", "decoder.lora_rank=4"])
    disturb(full, scale=1.0)
    run = tmp_path / "run"
    cfg = compose(["compressor=full_context", "decoder.lora_rank=4"])
    write_run_metadata(run, cfg)
    checkpoint = run / "checkpoints" / "checkpoint-1"
    save_trained(checkpoint, full, build_backbone(cfg).fingerprint)
    TrainerState().save_to_json(str(checkpoint / "trainer_state.json"))
    cfg = compose([*DEPTH, *ANSWERS, f"objective.teacher={run}"])
    assert teacher_problems(cfg, build_backbone(cfg)) == []
    reader = build([*DEPTH, *ANSWERS])
    trained = {name for name, p in reader.named_parameters() if p.requires_grad}
    before = reader.loss(ragged).nll.detach()
    load_teacher(cfg, reader)
    assert {name for name, p in reader.named_parameters() if p.requires_grad} == trained
    positions = [ragged.prefix, ragged.context, ragged.prompt, ragged.answer]
    layout = Layout.of([part.mask for part in positions])
    with torch.no_grad():
        states = full.decoder.embed(layout.pack([part.ids for part in positions]))
        states = full.decoder.run(states, range(len(full.decoder)), layout.positions())
        expected = full.decoder.head(full.decoder.norm(take_columns(states, (layout.columns_of(3) - 1).clamp(min=0))))
    taught = reader.decoder.head(teacher_rows(reader.decoder, ragged))
    torch.testing.assert_close(taught[ragged.answer.mask], expected[ragged.answer.mask].float(), rtol=1e-4, atol=1e-4)
    loss = reader.loss(ragged).nll
    assert not torch.allclose(loss.detach(), before)
    loss.sum().backward()
    assert all(p.grad is None for name, p in reader.named_parameters() if name not in trained)


def test_a_teacher_that_is_no_run_is_refused(compose, tmp_path):
    cfg = compose([*DEPTH, *ANSWERS, f"objective.teacher={tmp_path}"])
    assert any("objective.teacher" in problem for problem in teacher_problems(cfg, build_backbone(cfg)))
