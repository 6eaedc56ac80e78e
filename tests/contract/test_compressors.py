"""Requirements that every reader of configs/compressor meets, with every join it supports."""

from dataclasses import replace

import pytest
import torch

from breviary.contract import Context, Generation, Question, Tokens
from breviary.readers.cache import ContextCache
from breviary.readers.compressed import CompressedReader
from breviary.runs.checkpoints import load_trained, save_trained
from tests.forms import FROZEN, each, representative_forms
from tests.tiny import disturb, greedy_ids

ALL, VECTOR = representative_forms(), representative_forms(only_compressors=True)
MERGING = {name: overrides for name, overrides in VECTOR.items() if name.split("-")[0] in ("comi", "mean_pool")}
VARIANTS = {
    "comi-quirks": ["compressor=comi", "compressor.quirks=true"],
    "comi-learned": ["compressor=comi", "compressor.join=depth", "compressor.learned_weights=merge"],
    "comi-slots-segments": [
        "compressor=comi",
        "compressor.join=depth",
        "compressor.ratio=null",
        "compressor.slots=3",
        "compressor.segment_size=16",
    ],
    "mean-segments": ["compressor=mean_pool", "compressor.segment_size=16"],
    "mean-consecutive": ["compressor=mean_pool", "compressor.join=depth", "compressor.slot_positions=consecutive"],
    "truncate-slots": ["compressor=truncate", "compressor.ratio=null", "compressor.slots=3"],
}
ANY = {**ALL, **VARIANTS}


def context_of(batch):
    return Context(batch.context.ids, batch.context.mask, batch.prefix)


def encoded_states(reader, batch):
    """States (B, S, L, D); where there are none, the last layer's keys of the context, or the tokens of a text."""
    with torch.no_grad():
        encoded = reader.compressor.encode(context_of(batch))
    if not reader.compressor.keeps_cache:
        return encoded.states if encoded.states.shape[-1] else encoded.ids[..., None]
    [prefix] = batch.prefix.lengths.unique().tolist()
    return encoded.keys_values[-1][0].transpose(2, 3).flatten(3)[:, :, prefix:]


# ------------------------------------------------------------------ batches


@each(ANY)
def test_a_batch_of_n_equals_n_batches_of_one(build, overrides, ragged_examples, collate):
    reader = build(overrides).eval()
    disturb(reader)
    alone = [collate([example]) for example in ragged_examples]
    with torch.no_grad():
        single = [reader.loss(batch) for batch in alone]
        ids = [greedy_ids(reader, batch, tokens=3)[0] for batch in alone]
        for batch in (
            collate(ragged_examples),
            collate(ragged_examples, side="left"),
            *(collate(ragged_examples, pad_id=pad_id) for pad_id in (0, 511)),
        ):
            together = reader.loss(batch)
            torch.testing.assert_close(together.nll, torch.cat([one.nll for one in single]), rtol=1e-5, atol=0)
            for counted in ("tokens", "slots", "context_tokens"):
                assert getattr(together, counted).tolist() == [getattr(one, counted).item() for one in single]
            assert greedy_ids(reader, batch, tokens=3) == ids


@each(ANY)
def test_losses_are_finite_and_counted(build, overrides, ragged):
    reader = build(overrides)
    output = reader.loss(ragged)
    assert torch.isfinite(output.nll).all() and (output.nll > 0).all()
    terms, counts = output.terms(), reader.counts(ragged)
    assert terms.keys() == counts.keys()
    for name, (value, count) in terms.items():
        assert torch.isfinite(value) and int(count) == int(counts[name])
    assert output.tokens.tolist() == ragged.answer.mask.sum(1).tolist()


@each(ALL)
def test_sampling_depends_on_seed_and_example_alone(build, overrides, ragged_examples, collate):
    """Batch size, order, batch-mates and streaming change no sampled answer."""
    reader = build([*overrides, *FROZEN]).eval()
    generation = Generation(max_new_tokens=4, temperature=1.0, top_p=0.9, seed=3)
    single = [reader.answer(collate([example]), generation)[0] for example in ragged_examples]
    assert reader.answer(collate(ragged_examples), generation) == single
    order = [3, 0, 4, 2, 1]
    assert reader.answer(collate([ragged_examples[i] for i in order]), generation) == [single[i] for i in order]
    assert reader.answer(collate(ragged_examples), replace(generation, seed=4)) != single
    for example, text in list(zip(ragged_examples, single))[2:4]:
        batch = collate([example])
        [context] = reader.encode_contexts(batch)
        assert "".join(context.stream(batch, generation)) == text == context.answer(batch, generation)[0]


# ------------------------------------------------------------------ pieces of width zero

PIECES = ("prefix", "context", "query", "prompt")
EMPTY = [("context",), ("query",), ("prefix", "prompt"), PIECES]  # every piece, alone or with others


def without(batch, pieces):
    """The batch with pieces of width zero, as the collator makes them where every row lacks them."""
    none = torch.zeros(len(batch), 0, dtype=torch.int64)
    changes = {piece: Tokens(none, none.bool()) for piece in pieces}
    if "context" in pieces:
        changes |= {name: None if (x := getattr(batch, name)) is None else x[:, :0] for name in ("evidence", "offsets")}
    return replace(batch, **changes)


@each(ALL)
def test_pieces_of_width_zero(build, overrides, ragged_examples, collate):
    """Losses are finite; a batch, a cache and an encoded context equal batches of one."""
    reader = build([*overrides, *FROZEN])
    disturb(reader)
    generation, examples = Generation(max_new_tokens=2), ragged_examples[:2]
    for pieces in EMPTY:
        batch = without(collate(examples), pieces)
        alone = [without(collate([example]), pieces) for example in examples]
        assert all(torch.isfinite(value).all() for value, _ in reader.train().loss(batch).terms().values()), pieces
        reader.eval()
        with torch.no_grad():
            nll = torch.cat([reader.loss(one).nll for one in alone])
            answers = [reader.decode(one, generation)[0] for one in alone]
            together = reader.loss(batch)
            assert reader.decode(batch, generation) == answers, pieces
            reader.context_cache = reader.context_cache_class(len(batch))
            assert reader.answer_with_loss(batch, generation)[0] == answers, pieces
            for output in (together, reader.loss(batch)):  # without the cache, and from it
                torch.testing.assert_close(output.nll, nll, rtol=1e-5, atol=1e-6, msg=str(pieces))
            reader.context_cache = None
            assert torch.equal(reader.footprint(batch).memory_slots, together.slots)
        [context] = reader.encode_contexts(alone[0])
        if pieces == PIECES and not isinstance(reader, CompressedReader):  # a session needs a first token
            with pytest.raises(ValueError, match="no text was read"):
                context.answer(alone[0], generation)
            continue
        assert context.answer(alone[0], generation) == [answers[0].text], pieces
        assert "".join(context.stream(alone[0], generation)) == answers[0].text, pieces


# ------------------------------------------------------------------ gradients


def declared(reader, mode):
    """Names of the decoder's weights that `decoder.train` declares as trained."""
    names = [name for name, _ in reader.named_parameters() if name.startswith("decoder.")]
    rule = {
        "lora": lambda name: "lora_" in name,
        "attention": lambda name: any(f".self_attn.{p}_proj." in name for p in "qkvo"),
        "frozen": lambda name: False,
        "full": lambda name: True,
    }[mode]
    return {name for name in names if rule(name)}


@pytest.mark.parametrize("mode", ["lora", "attention", "frozen", "full"])
@each({**ALL, "comi-learned": VARIANTS["comi-learned"]})
def test_gradients_reach_exactly_the_declared_weights(build, overrides, mode, ragged):
    reader = build([*overrides, f"decoder.train={mode}"])
    disturb(reader)
    trained = {name for name, parameter in reader.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if name.startswith("decoder.")} == declared(reader, mode)
    total = sum(value for value, _ in reader.loss(ragged).terms().values())
    assert total.requires_grad == bool(trained)
    if trained:
        total.backward()
    reached = {name for name, parameter in reader.named_parameters() if parameter.grad is not None}
    assert reached == trained
    zero = [name for name, parameter in reader.named_parameters() if name in trained and not parameter.grad.any()]
    assert not zero


@pytest.mark.parametrize("name", ["mean_pool", "comi"])
@pytest.mark.parametrize("mode", ["full", "lora", "frozen"])
def test_encoder_train_selects_the_trained_weights(build, name, mode, ragged):
    reader = build([f"compressor={name}", f"compressor.encoder_train={mode}", "decoder.train=frozen"])
    context_encoder = reader.compressor.context_encoder
    encoder = {name: parameter.requires_grad for name, parameter in context_encoder.encoder.named_parameters()}
    assert encoder and any(encoder.values()) == (mode != "frozen")
    assert all(on == (mode == "full" or (mode == "lora" and "lora_" in name)) for name, on in encoder.items())
    assert all(parameter.requires_grad for parameter in context_encoder.lsa.parameters())


# ------------------------------------------------------------------ checkpoints


@each(ANY)
def test_saved_and_loaded_is_the_same_reader(build, overrides, ragged, tmp_path):
    reader, fresh = build(overrides).eval(), build([*overrides, "seed=7"]).eval()
    disturb(reader)
    fingerprint = {"name": "tiny", "sha256": "0"}
    save_trained(tmp_path, reader, fingerprint)
    load_trained(tmp_path, fresh, fingerprint)
    with torch.no_grad():
        assert torch.equal(fresh.loss(ragged).nll, reader.loss(ragged).nll)
    assert greedy_ids(fresh, ragged) == greedy_ids(reader, ragged)


# ------------------------------------------------------------------ encoding


@each(VECTOR)
def test_states_of_a_context_do_not_depend_on_the_question(build, overrides, ragged_examples, collate):
    reader = build(overrides).eval()
    others = [replace(example, question="Which bell?") for example in ragged_examples]
    assert torch.equal(encoded_states(reader, collate(ragged_examples)), encoded_states(reader, collate(others)))


@each(VECTOR)
def test_states_before_a_changed_token_do_not_change(build, overrides, ragged):
    reader = build(overrides).eval()
    before = encoded_states(reader, ragged)
    t = 9
    assert ragged.context.lengths[0] > t + 1
    ragged.context.ids[0, t] += 1
    after = encoded_states(reader, ragged)
    assert torch.equal(before[0, 0, :t], after[0, 0, :t])
    assert not torch.equal(before[0, 0, t], after[0, 0, t])
    assert torch.equal(before[1:], after[1:])


@each({name: overrides for name, overrides in MERGING.items() if name.startswith("comi")})
def test_comi_depends_on_the_question(build, overrides, ragged_examples, collate):
    reader = build(overrides).eval()
    memories = []
    for text in ("Which bell of the ship?", "What is yellow?"):
        batch = collate([replace(example, question=text) for example in ragged_examples])
        with torch.no_grad():
            states = reader.decoder.embed(batch.prompt.ids)
            question = Question(batch.query.ids, batch.query.mask, states, batch.prompt.mask)
            memories.append(reader.compressor.compress(reader.compressor.encode(context_of(batch)), question))
    assert not torch.allclose(memories[0].embeds[0], memories[1].embeds[0], rtol=1e-3)


@each(VECTOR | VARIANTS)
def test_cached_contexts_equal_newly_encoded_ones(build, overrides, ragged_examples, collate):
    """With mixed lengths, a context that occurs twice in a batch, and batches with some, all or no contexts cached."""
    reader = build(overrides).eval()
    disturb(reader)
    rows = [ragged_examples[i] for i in (3, 0, 3, 4)], [ragged_examples[i] for i in (0, 1, 2)], ragged_examples
    with torch.no_grad():
        plain = [reader.loss(collate(examples)).nll for examples in rows]
        answers = [greedy_ids(reader, collate(examples), tokens=3) for examples in rows]
        reader.context_cache = ContextCache(capacity=4)
        reused = []
        for examples, nll, ids in zip(rows, plain, answers):
            torch.testing.assert_close(reader.loss(collate(examples)).nll, nll, rtol=1e-5, atol=1e-6)
            reused.append(reader.context_cache.reused)
            assert greedy_ids(reader, collate(examples), tokens=3) == ids
    assert reused[0] == [False, False, True, False]
    assert reused[1] == [True, False, False]


@each(ANY)
def test_answer_with_loss_equals_decode_and_loss(build, overrides, ragged_examples, collate):
    """With both padding sides, with and without a context cache. The loss is None for readers of other kinds."""
    reader = build(overrides).eval()
    disturb(reader)
    generation = Generation(max_new_tokens=3)
    for side in ("right", "left"):
        batch = collate(ragged_examples, side=side)
        with torch.no_grad():
            expected, ids = reader.loss(batch), [one.ids for one in reader.decode(batch, generation)]
            for cache in (None, reader.context_cache_class and reader.context_cache_class(len(batch))):
                reader.context_cache = cache
                decoded, loss = reader.answer_with_loss(batch, generation)
                assert [one.ids for one in decoded] == ids
                assert (loss is None) != isinstance(reader, CompressedReader)
                if loss is not None:
                    torch.testing.assert_close(loss.nll, expected.nll, rtol=1e-5, atol=1e-6)
                    torch.testing.assert_close(loss.token_nll, expected.token_nll, rtol=1e-4, atol=1e-5)
                    for name in ("tokens", "slots", "context_tokens", "token_hits"):
                        assert torch.equal(getattr(loss, name), getattr(expected, name)), name
            reader.context_cache = None


# ------------------------------------------------------------------ arguments that encoding depends on

# A different value for every argument that some compressor declares in `compress_only_keys`.
OTHER_VALUES = {
    "relevance_size": 7,
    "ratio": "2",
    "slots": "3",
    "ratio_choices": "[2,8]",
    "ratio_draw": "sample",
    "slot_positions": "consecutive",
    "keep": "random",
    "budget": "strict",
    "skim": "mean",
    "skim_temperature": "0.5",
    "skim_ratio": "5",
    "uniform_keep": "false",
    "contrastive_weight": "0",
    "contrastive_temperature": "0.5",
    "positives": "answers",
    "relevance": "random",
    "ignore_case": "false",
    "coarse": "false",
    "fine": "false",
    "redundancy_coarse": "false",
    "redundancy_fine": "false",
    "alpha": "2.0",
    "beta": "0.5",
    "temperature": "2.0",
    "min_group_size": "1",
}
REQUIRED_WITH = {"slots": ["compressor.ratio=null"], "ratio_draw": ["compressor.ratio_choices=[2,8]"]}


@each({name: words for name, words in VECTOR.items() if name.split("-")[0] in ("comi", "mean_pool", "ram")})
def test_compress_only_keys_do_not_change_encoded_states(build, overrides, ragged):
    plain = build([*overrides, *FROZEN]).eval()
    expected = encoded_states(plain, ragged)
    declared = type(plain.compressor).compress_only_keys
    assert declared
    for key in sorted(declared):
        changed = [f"compressor.{key}={OTHER_VALUES[key]}", *REQUIRED_WITH.get(key, [])]
        other = build([*overrides, *FROZEN, *changed]).eval()
        other.load_state_dict(plain.state_dict())
        assert torch.equal(encoded_states(other, ragged), expected), key
