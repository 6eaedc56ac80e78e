"""What is asked: a passage beside the answer, the context again, what comes after its first part."""

from dataclasses import replace

import pytest
import torch

from breviary.config.build import compressor_forms
from breviary.objectives.answer import Answer, AnswerAndCopy
from breviary.objectives.text import Continue, Reconstruct
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
def test_a_passage_stands_in_its_context(ragged_examples, collate, side):
    batch = collate(ragged_examples, side)
    for b, (hint, rest) in enumerate(passages(AnswerAndCopy(hint_tokens=3, copy_tokens=6), batch)):
        context = batch.context.ids[b][batch.context.mask[b]].tolist()
        assert len(hint) == min(3, len(context)) and len(rest) == min(6, max(len(context) - 3, 0))
        assert any(context[i : i + len(hint + rest)] == hint + rest for i in range(len(context) + 1))


def test_it_is_drawn_from_seed_step_and_example_alone(ragged_examples, collate):
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
def test_losses_are_counted_and_do_not_depend_on_batch_mates(build, ragged_examples, collate, form):
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


def test_the_answer_s_loss_is_the_same_beside_it(build, ragged):
    plain, both = build(["compressor=comi"]), build(["compressor=comi", *COPY])
    assert torch.equal(plain.loss(ragged).nll, both.loss(ragged).nll)


def test_evaluation_asks_for_the_answer_alone(build, ragged):
    reader = build(["compressor=comi", *COPY]).eval()
    assert set(reader.loss(ragged).terms()) == set(reader.counts(ragged)) == {"answer"}


def test_a_batch_without_any_context(collate, ragged_examples):
    batch = collate([ragged_examples[1]])
    assert passages(AnswerAndCopy(), batch) == [([], [])] and Answer().auxiliary(batch) == {}


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_reconstruction_is_the_context_and_an_end_token(ragged_examples, collate, tokenizer, side):
    batch = collate(ragged_examples, side)
    asked = Reconstruct().primary(batch)
    for b in range(len(batch)):
        context = batch.context.ids[b][batch.context.mask[b]].tolist()
        assert asked.answer.ids[b][asked.answer.mask[b]].tolist() == [*context, tokenizer.eos_token_id]
    assert asked.context is batch.context and asked.prompt is batch.prompt


def test_a_reconstruction_loss_looks_at_the_slots_and_at_no_label(build, ragged_examples, collate):
    reader = build(["compressor=mean_pool", "compressor.join=depth", "objective=reconstruct"]).eval()
    batch, other = collate(ragged_examples), collate([replace(e, answers=("other",)) for e in ragged_examples])
    nll = reader.loss(batch).nll
    assert torch.equal(nll, reader.loss(other).nll)
    assert int(reader.counts(batch)["answer"]) == int(batch.context.mask.sum()) + len(batch)
    nothing = build(["compressor=no_context", "objective=reconstruct"]).eval().loss(batch).nll
    assert not torch.isclose(nll[0], nothing[0], rtol=1e-3)


# ------------------------------------------------------------------ what comes next


@pytest.mark.parametrize("share, hint", [(0.5, 3), (0.8, 1), (0.1, 20)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_continuation_is_what_follows_first_part_and_hint(ragged_examples, collate, side, share, hint):
    batch = collate(ragged_examples, side)
    batch = replace(batch, evidence=torch.ones_like(batch.context.mask))
    asked = Continue(share, hint).primary(batch)
    for b in range(len(batch)):
        text = batch.context.ids[b][batch.context.mask[b]].tolist()
        kept = int(len(text) * share)
        start = kept + max(min(hint, len(text) - kept - 1), 0)
        given, rest = text[kept:start], text[start:]
        assert rest or not text
        parts = [
            part.ids[b][part.mask[b]].tolist() for part in (asked.context, asked.query, asked.prompt, asked.answer)
        ]
        assert parts == [text[:kept], given, given, rest]
        assert int(asked.evidence[b].sum()) == kept
    assert asked.prefix is batch.prefix


def supervised(length, kept, hint=2):
    """Tokens left behind the first `kept` and the hint, which leaves one."""
    return length - kept - max(min(hint, length - kept - 1), 0)


VECTOR = compressor_forms(only_compressors=True)


@pytest.mark.parametrize("form", VECTOR.values(), ids=VECTOR.keys())
@pytest.mark.parametrize("objective", ["continue", "distill"])
def test_what_follows_is_learned_by_every_compressor_whatever_its_batch_mates(
    build, ragged_examples, collate, form, objective
):
    words = [f"objective={objective}", "objective.hint_tokens=2", "objective.context_share=0.6"]
    reader = build([*form, *words, "decoder.lora_rank=2"])
    disturb(reader)
    for module in reader.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # drawn for each batch
    batch, alone = collate(ragged_examples), [collate([example]) for example in ragged_examples]
    output, single = reader.loss(batch), [reader.loss(one) for one in alone]
    torch.testing.assert_close(output.nll, torch.cat([one.nll for one in single]), rtol=1e-5, atol=1e-6)
    assert output.context_tokens.tolist() == [int(0.6 * n) for n in batch.context.lengths.tolist()]
    assert output.tokens.tolist() == [supervised(n, int(0.6 * n)) for n in batch.context.lengths.tolist()]
    assert int(reader.counts(batch)["answer"]) == int(output.tokens.sum()) > 0
    trained = {name for name, parameter in reader.named_parameters() if parameter.requires_grad}
    sum(value for value, _ in output.terms().values()).backward()
    assert {name for name, parameter in reader.named_parameters() if parameter.grad is not None} == trained


def test_a_continuation_looks_at_no_label_and_has_the_first_part_as_its_footprint(build, ragged_examples, collate):
    reader = build(
        ["compressor=mean_pool", "compressor.join=depth", "objective=continue", "objective.hint_tokens=2"]
    ).eval()
    batch = collate(ragged_examples)
    other = collate([replace(e, answers=("other",), question="Else?") for e in ragged_examples])
    assert torch.equal(reader.loss(batch).nll, reader.loss(other).nll)
    footprint = reader.footprint(batch)
    assert footprint.context_tokens.tolist() == [n // 2 for n in batch.context.lengths.tolist()]
    assert footprint.memory_slots.tolist() == [-(-(n // 2) // 4) for n in batch.context.lengths.tolist()]


def test_comet_reads_on_from_the_first_part(build, ragged_examples, collate):
    reader = build(["compressor=comet", "objective=continue", "objective.hint_tokens=2"]).eval()
    batch = collate(ragged_examples)
    output = reader.loss(batch)
    assert output.tokens.tolist() == [supervised(n, n // 2) for n in batch.context.lengths.tolist()]
    assert (
        output.context_tokens.tolist()
        == reader.footprint(batch).context_tokens.tolist()
        == [n // 2 for n in batch.context.lengths.tolist()]
    )
