"""Objectives: answer and copied passage, reconstruction, continuation."""

from dataclasses import replace

import pytest
import torch

from breviary.objectives.answer import Answer, AnswerAndCopy
from breviary.objectives.text import Continue, Reconstruct
from tests.forms import representative_forms
from tests.tiny import disturb

COPY = ["objective=answer_and_copy", "objective.hint_tokens=3", "objective.copy_tokens=6"]


def passages(objective, batch):
    [(name, (weight, other))] = objective.auxiliary(batch).items()
    assert name == "copy" and weight == objective.copy_weight
    rows = []
    for b in range(len(batch)):
        hint, rest = other.prompt.ids[b][other.prompt.mask[b]], other.answer.ids[b][other.answer.mask[b]]
        assert torch.equal(other.query.ids, other.prompt.ids)
        rows.append((hint.tolist(), rest.tolist()))
    return rows


@pytest.mark.parametrize("side", ["right", "left"])
def test_hint_and_passage_are_consecutive_tokens_of_the_context(ragged_examples, collate, side):
    batch = collate(ragged_examples, side)
    for b, (hint, rest) in enumerate(passages(AnswerAndCopy(hint_tokens=3, copy_tokens=6), batch)):
        context = batch.context.ids[b][batch.context.mask[b]].tolist()
        assert len(hint) == min(3, len(context)) and len(rest) == min(6, max(len(context) - 3, 0))
        assert any(context[i : i + len(hint + rest)] == hint + rest for i in range(len(context) + 1))


def test_a_passage_depends_on_seed_step_and_example_only(ragged_examples, collate):
    objective = AnswerAndCopy(hint_tokens=2, copy_tokens=3)
    batch, alone = collate(ragged_examples), collate(ragged_examples[2:3])
    drawn = []
    for seed, step in ((1, 0), (1, 1), (2, 0), (1, 0)):
        objective.begin_step(step, seed)
        drawn.append(passages(objective, batch))
        assert passages(objective, alone) == drawn[-1][2:3]
    assert drawn[0] == drawn[3] and drawn[0] != drawn[1] and drawn[0] != drawn[2]


@pytest.mark.parametrize(
    "form", [["compressor=comi", "compressor.join=depth"], ["compressor=ram"], ["compressor=full_context"]]
)
def test_losses_are_counted_and_independent_of_the_batch(build, ragged_examples, collate, form):
    reader = build([*form, *COPY])
    reader.begin_step(3, seed=5)
    batch = collate(ragged_examples)
    terms, counts = reader.loss(batch).terms(), reader.counts(batch)
    assert "copy" in terms and {name: int(count) for name, (_, count) in terms.items()} == {
        name: int(count) for name, count in counts.items()
    }
    alone = [reader.loss(collate([example])).terms()["copy"] for example in ragged_examples]
    torch.testing.assert_close(sum(value for value, _ in alone), terms["copy"][0], rtol=1e-5, atol=1e-6)
    assert sum(count for _, count in alone) == terms["copy"][1] > 0


def test_the_passage_leaves_the_answer_loss_unchanged(build, ragged):
    plain, both = build(["compressor=comi"]), build(["compressor=comi", *COPY])
    assert torch.equal(plain.loss(ragged).nll, both.loss(ragged).nll)


def test_evaluation_supervises_the_answer_only(build, ragged):
    reader = build(["compressor=comi", *COPY]).eval()
    assert set(reader.loss(ragged).terms()) == set(reader.counts(ragged)) == {"answer"}


def test_an_empty_context_supervises_no_passage(collate, ragged_examples):
    batch = collate([ragged_examples[1]])
    assert passages(AnswerAndCopy(), batch) == [([], [])] and Answer().auxiliary(batch) == {}


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_reconstruction_is_the_context_and_an_end_token(ragged_examples, collate, tokenizer, side):
    batch = collate(ragged_examples, side)
    supervised_batch = Reconstruct().primary(batch)
    for b in range(len(batch)):
        context = batch.context.ids[b][batch.context.mask[b]].tolist()
        assert supervised_batch.answer.ids[b][supervised_batch.answer.mask[b]].tolist() == [
            *context,
            tokenizer.eos_token_id,
        ]
    assert supervised_batch.context is batch.context and supervised_batch.prompt is batch.prompt


def test_a_reconstruction_loss_depends_on_the_slots_and_not_on_labels(build, ragged_examples, collate):
    reader = build(["compressor=mean_pool", "compressor.join=depth", "objective=reconstruct"]).eval()
    batch, other = collate(ragged_examples), collate([replace(e, answers=("other",)) for e in ragged_examples])
    nll = reader.loss(batch).nll
    assert torch.equal(nll, reader.loss(other).nll)
    assert int(reader.counts(batch)["answer"]) == int(batch.context.mask.sum()) + len(batch)
    nothing = build(["compressor=no_context", "objective=reconstruct"]).eval().loss(batch).nll
    assert not torch.isclose(nll[0], nothing[0], rtol=1e-3)


# ------------------------------------------------------------------ continuation


@pytest.mark.parametrize("share, hint", [(0.5, 3), (0.8, 1), (0.1, 20)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_continuation_follows_the_first_part_and_the_hint(ragged_examples, collate, side, share, hint):
    batch = collate(ragged_examples, side)
    batch = replace(batch, evidence=torch.ones_like(batch.context.mask))
    supervised_batch = Continue(share, hint).primary(batch)
    for b in range(len(batch)):
        text = batch.context.ids[b][batch.context.mask[b]].tolist()
        first = int(len(text) * share)
        start = first + max(min(hint, len(text) - first - 1), 0)
        hint_ids, rest = text[first:start], text[start:]
        assert rest or not text
        parts = [
            part.ids[b][part.mask[b]].tolist()
            for part in (
                supervised_batch.context,
                supervised_batch.query,
                supervised_batch.prompt,
                supervised_batch.answer,
            )
        ]
        assert parts == [text[:first], hint_ids, hint_ids, rest]
        assert int(supervised_batch.evidence[b].sum()) == first
    assert supervised_batch.prefix is batch.prefix


def supervised(length, first, hint=2):
    """Number of tokens after the first `first` and the hint, which leaves at least one."""
    return length - first - max(min(hint, length - first - 1), 0)


VECTOR = representative_forms(only_compressors=True)


@pytest.mark.parametrize("form", VECTOR.values(), ids=VECTOR.keys())
@pytest.mark.parametrize("objective", ["continue", "distill"])
def test_every_compressor_learns_continuations_independent_of_the_batch(
    build, ragged_examples, collate, form, objective
):
    words = [f"objective={objective}", "objective.hint_tokens=2", "objective.context_share=0.6"]
    reader = build([*form, *words, "decoder.lora_rank=2"])
    disturb(reader)
    for module in reader.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # dropout depends on the batch
    batch, alone = collate(ragged_examples), [collate([example]) for example in ragged_examples]
    output, single = reader.loss(batch), [reader.loss(one) for one in alone]
    torch.testing.assert_close(output.nll, torch.cat([one.nll for one in single]), rtol=1e-5, atol=1e-6)
    assert output.context_tokens.tolist() == [int(0.6 * n) for n in batch.context.lengths.tolist()]
    assert output.tokens.tolist() == [supervised(n, int(0.6 * n)) for n in batch.context.lengths.tolist()]
    assert int(reader.counts(batch)["answer"]) == int(output.tokens.sum()) > 0
    trained = {name for name, parameter in reader.named_parameters() if parameter.requires_grad}
    sum(value for value, _ in output.terms().values()).backward()
    assert {name for name, parameter in reader.named_parameters() if parameter.grad is not None} == trained


def test_a_continuation_ignores_labels_and_its_footprint_is_that_of_the_first_part(build, ragged_examples, collate):
    reader = build(
        ["compressor=mean_pool", "compressor.join=depth", "objective=continue", "objective.hint_tokens=2"]
    ).eval()
    batch = collate(ragged_examples)
    other = collate([replace(e, answers=("other",), question="Else?") for e in ragged_examples])
    assert torch.equal(reader.loss(batch).nll, reader.loss(other).nll)
    footprint = reader.footprint(batch)
    assert footprint.context_tokens.tolist() == [n // 2 for n in batch.context.lengths.tolist()]
    assert footprint.memory_slots.tolist() == [-(-(n // 2) // 4) for n in batch.context.lengths.tolist()]


def test_comet_continues_the_first_part(build, ragged_examples, collate):
    reader = build(["compressor=comet", "objective=continue", "objective.hint_tokens=2"]).eval()
    batch = collate(ragged_examples)
    output = reader.loss(batch)
    assert output.tokens.tolist() == [supervised(n, n // 2) for n in batch.context.lengths.tolist()]
    assert (
        output.context_tokens.tolist()
        == reader.footprint(batch).context_tokens.tolist()
        == [n // 2 for n in batch.context.lengths.tolist()]
    )
