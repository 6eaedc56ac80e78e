"""objective=reconstruct with every kind of compressor and every decoder.train; rejected lengths and settings."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from breviary.config.answer_limits import answer_notes
from breviary.config.build import ReaderSpec, build_backbone
from breviary.config.checks import check_config
from breviary.config.context_lengths import ContextLimits
from breviary.contract import TASKS, Example, Generation
from breviary.objectives.text import Reconstruct
from data.prompts import Prompt
from data.tokenised import tokenise_split
from tests.tiny import disturb

FORMS = {
    "mean_pool": ["compressor=mean_pool", "compressor.encoder_train=lora"],
    "icae": ["compressor=icae", "compressor.memory_tokens=4", "compressor.lora_dropout=0"],
    "comi": ["compressor=comi", "compressor.query_free=true"],
    "ram": ["compressor=ram", "compressor.keep=none", "compressor.skim=mean", "compressor.contrastive_weight=0"],
}
AUTOENCODER = ["objective=reconstruct"]


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("mode", ["frozen", "lora", "full", "attention"])
@pytest.mark.parametrize("form", FORMS)
def test_a_step_changes_exactly_the_trained_weights(build, ragged, form, mode):
    reader = build([*AUTOENCODER, *FORMS[form], f"decoder.train={mode}"])
    disturb(reader)  # a new adapter has zero gradient
    before = weights(reader)
    optimizer = torch.optim.SGD([p for p in reader.parameters() if p.requires_grad], lr=1e-2)
    output = reader.loss(ragged)
    assert output.tokens.tolist() == [n + 1 for n in ragged.context.lengths.tolist()]  # the text and an end token
    assert int(reader.counts(ragged)["answer"]) == int(output.tokens.sum())
    (output.nll.sum() / output.tokens.sum()).backward()
    optimizer.step()
    changed = {name for name, now in weights(reader).items() if not torch.equal(now, before[name])}
    trained = {name for name, parameter in reader.named_parameters() if parameter.requires_grad}
    assert changed == trained and any(name.startswith("compressor.") for name in changed)
    assert any(name.startswith("decoder.") for name in changed) == (mode != "frozen")


@pytest.mark.parametrize("form", FORMS)
def test_the_memory_depends_on_neither_question_nor_label(build, ragged_examples, collate, form):
    reader = build([*AUTOENCODER, *FORMS[form]]).eval()
    changed = [replace(example, question=f"Say it, {i}.", answers=("x",)) for i, example in enumerate(ragged_examples)]
    memories = [reader.memory(collate(examples)) for examples in (ragged_examples, changed)]
    assert torch.equal(memories[0].embeds, memories[1].embeds)


def test_a_query_free_gain_is_redundancy_only(build, ragged):
    free = build([*AUTOENCODER, *FORMS["comi"]]).eval()
    plain = build([*AUTOENCODER, "compressor=comi"]).eval()
    plain.compressor.context_encoder.query = lambda encoded, question: torch.zeros_like(encoded.states[:, :, 0])
    assert torch.equal(free.memory(ragged).embeds, plain.memory(ragged).embeds)


# ------------------------------------------------------------------ continuation


MIXED = [*AUTOENCODER, "objective.continuation_weight=0.5", "objective.continuation_hint=2"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_continuation_is_the_second_half_of_the_context(ragged_examples, collate, side):
    batch = collate(ragged_examples, side)
    [(weight, other)] = Reconstruct(None, 0.5, 2).auxiliary(batch).values()
    assert weight == 0.5 and other.task == "continue" and Reconstruct().auxiliary(batch) == {}
    for b in range(len(batch)):
        text = batch.context.ids[b][batch.context.mask[b]].tolist()
        half = len(text) // 2
        hint_end = half + max(min(2, len(text) - half - 1), 0)  # at least one token is predicted
        parts = [
            part.ids[b][part.mask[b]].tolist() for part in (other.context, other.query, other.prompt, other.answer)
        ]
        assert parts == [text[:half], text[half:hint_end], text[half:hint_end], text[hint_end:]]


@pytest.mark.parametrize("form", FORMS)
def test_both_losses_are_counted_and_independent_of_the_batch(build, ragged_examples, collate, form):
    reader = build([*MIXED, *FORMS[form]])
    batch, alone = collate(ragged_examples), [collate([example]) for example in ragged_examples]
    terms = reader.loss(batch).terms()
    assert terms.keys() == {"answer", "continue"}
    assert {name: int(count) for name, (_, count) in terms.items()} == {
        name: int(count) for name, count in reader.counts(batch).items()
    }
    for name in terms:
        actual = sum(reader.loss(one).terms()[name][0] for one in alone)
        torch.testing.assert_close(actual, terms[name][0], rtol=1e-5, atol=1e-5)
    assert set(reader.eval().loss(batch).terms()) == {"answer"}


def test_icae_has_a_task_token_for_each_loss(build, ragged):
    reader = build([*MIXED, *FORMS["icae"]])
    sum(value for value, _ in reader.loss(ragged).terms().values()).backward()
    used = reader.compressor.task_embeds.grad.any(1).tolist()
    assert used == [task in ("reconstruct", "continue") for task in TASKS]


# ------------------------------------------------------------------ lengths and user errors


def limits_of(cfg):
    return ContextLimits(ReaderSpec.of(cfg), build_backbone(cfg), cfg.generation.max_new_tokens)


def items_of(tokenizer, *words):
    text = "red blue green pink gold iron lion wolf dog cat " * 30
    examples = [Example(str(n), " ".join(text.split()[:n]), "Again.", ("x",)) for n in words]
    return tokenise_split(examples, tokenizer, Prompt(), None, None)


@pytest.mark.parametrize("join", ["input", "depth"])
def test_the_suggested_length_limit_is_the_largest_that_fits(compose, tokenizer, join):
    """The error message suggests a limit; with it no text is rejected, with one token more some are."""
    cfg = compose([*AUTOENCODER, "compressor=mean_pool", f"compressor.join={join}", "backbone.positions=100"])
    items = items_of(tokenizer, 20, 90)
    [message] = limits_of(cfg).check({"train": items})
    assert "which include the context itself as the answer" in message and "100 positions" in message
    limit = int(message.split("limits.max_context_tokens=")[1].split(" ")[0])
    for tokens, is_fitting in ((limit, True), (limit + 1, False)):
        cut = tokenise_split(items.examples, tokenizer, Prompt(), tokens, None)
        assert (limits_of(cfg).check({"train": cut}) == []) == is_fitting
    other_tokens = max(items.other_lengths) - max(items.answer_lengths) + cfg.generation.max_new_tokens + 1
    slots = -(-limit // 4) if join == "input" else limit
    assert limit > 20 and other_tokens + limit + slots <= 100


def test_empty_texts_and_texts_shorter_than_a_group_are_rejected(compose, tokenizer):
    cfg = compose([*AUTOENCODER, "compressor=mean_pool", "compressor.ratio_choices=[4,8]"])
    assert limits_of(cfg).check({"train": items_of(tokenizer, 9, 12)}) == []
    empty, short = limits_of(cfg).check({"train": items_of(tokenizer, 0, 4, 12)})
    assert empty.startswith("dataset train: 1 contexts of fewer than 1 tokens")
    assert short.startswith("dataset train: 1 texts, the shortest of 6 tokens, are shorter than a group of 8 tokens")
    cfg.objective = OmegaConf.create({"_target_": "breviary.objectives.answer.Answer"})
    assert limits_of(cfg).check({"train": items_of(tokenizer, 0, 5, 12)}) == []


def test_generation_settings_that_cut_reconstructions_are_reported(compose, tokenizer):
    cfg, items = (
        compose([*AUTOENCODER, "generation.max_new_tokens=15", 'generation.stop=["lion"]']),
        items_of(tokenizer, 5, 11, 13),
    )
    assert [note.split(" and ")[0].split(", where")[0] for note in answer_notes(items, cfg, True)] == [
        "1 of 3 texts are longer than generation.max_new_tokens=15 tokens",
        "2 of 3 texts contain one of generation.stop=['lion']",
    ]
    cfg.generation.max_new_tokens, cfg.generation.stop = 18, []
    assert answer_notes(items, cfg, True) == []


def test_invalid_settings_of_the_objective_are_reported(compose):
    settings = {"measures": None, "continuation_weight": -1, "continuation_hint": 0}
    assert Reconstruct.problems(settings, object, "full") == [
        "objective.continuation_weight=-1: must be at least 0, e.g. 0.5",
        "objective.continuation_hint=0: must be at least 1, e.g. 8",
    ]


# ------------------------------------------------------------------ ICAE as published


@pytest.mark.parametrize("above", [0, 14, 20])
def test_short_continuations_have_no_second_loss(build, ragged, above):
    """ICAE continues a text only where more than 64 tokens, its hint among them, follow the compressed part."""
    reader = build([*MIXED, *FORMS["icae"], f"objective.continuation_above={above}"])
    halves = [n - n // 2 for n in ragged.context.lengths.tolist()]
    expected = sum(max(half - 2, 1) for half in halves if half > above)  # a hint of 2 tokens
    output, counts = reader.loss(ragged), reader.counts(ragged)
    assert int(output.parts["continue"][1]) == int(counts["continue"]) == expected
    assert bool(output.parts["continue"][0] > 0) == bool(expected)


def test_without_question_and_template_the_text_follows_the_memory(build, collate, ragged_examples):
    """ICAE's published prompt: memory, task vector, text, end token. Nothing precedes the memory."""
    examples = [replace(example, question="") for example in ragged_examples if example.context]
    batch = collate(examples, bos=False, template="", answer_template="{answer}")
    assert batch.prefix.ids.shape[1] == batch.query.ids.shape[1] == batch.prompt.ids.shape[1] == 0
    reader = build([*AUTOENCODER, *FORMS["icae"]]).eval()
    decoder = reader.decoder
    with torch.no_grad():
        memory, output = reader.memory(batch), reader.loss(batch)
        for row in range(len(examples)):
            text = batch.context.ids[row][batch.context.mask[row]]
            slots = memory.embeds[row][memory.mask[row]]
            embeds = torch.cat([slots, decoder.embed(text)])[None]
            states = decoder.run(embeds, range(len(decoder)), torch.arange(embeds.shape[1])[None])
            logits = decoder.head(decoder.norm(states))[0, len(slots) - 1 :]
            targets = torch.cat([text, batch.answer.ids[row][batch.answer.mask[row]][-1:]])
            expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            torch.testing.assert_close(output.nll[row], expected, rtol=1e-5, atol=1e-5)
    assert len(reader.answer(batch, Generation(max_new_tokens=3))) == len(examples)


@pytest.mark.parametrize(
    "objective, refused", [("answer", True), ("answer_and_copy", True), ("reconstruct", False), ("continue", False)]
)
def test_an_empty_template_suits_objectives_that_ask_nothing(compose, objective, refused):
    cfg = compose(["compressor=icae", f"objective={objective}"])
    cfg.prompt.template = ""
    problems = check_config(cfg, ReaderSpec.of(cfg), build_backbone(cfg))
    assert any("prompt.template is empty, so the decoder would not see the question" in p for p in problems) == refused


def test_the_baseline_without_memory_begins_with_the_start_token(build, collate, ragged_examples, tokenizer):
    """Without memory, prefix and prompt there is no token to predict the first one from."""
    examples = [replace(example, question="") for example in ragged_examples if example.context]
    reader = build(["compressor=no_context", *AUTOENCODER]).eval()
    prompts = [dict(bos=bos, template="", answer_template="{answer}") for bos in (False, True)]
    with torch.no_grad():
        bare, with_bos = (reader.loss(collate(examples, **prompt)).nll for prompt in prompts)
    assert tokenizer.bos_token_id is not None
    torch.testing.assert_close(bare, with_bos, rtol=1e-6, atol=0)
    answers = [reader.answer(collate(examples, **prompt), Generation(max_new_tokens=3)) for prompt in prompts]
    assert answers[0] == answers[1]
