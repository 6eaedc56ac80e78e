"""An encoder whose tokenizer differs from the decoder's encodes the same text in its own tokens."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train
from breviary import load_reader
from breviary.backbones.pretrained import Backbone
from breviary.backbones.tiny import TinyBackbone, tiny_tokenizer
from breviary.backbones.translation import Translation, same_tokenizer
from breviary.contract import Context, Tokens
from breviary.studies.small_models import train_tokenizer
from tests.tiny import evaluate_tiny

OURS = tiny_tokenizer()
THEIRS = train_tokenizer(["Seen from the tower, the river is a thread of tin; the town sleeps."] * 3, 300)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A model folder: two layers of width 32, and a vocabulary of 300 that differs from the decoder's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("encoder")
    config = TinyBackbone(layers=2, width=32).config.to_dict() | {"vocab_size": len(THEIRS)}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    THEIRS.save_pretrained(folder)
    return folder


@pytest.fixture
def settings(encoder):
    return [
        "compressor=comi",
        f"compressor.encoder={encoder}",
        "compressor.alignment=linear_lsa",
        "backbone.dtype=float32",
    ]


def rows_of(tokens):
    return [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.mask)]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4), st.booleans())
def test_translation_preserves_the_text(texts, left):
    ids = [OURS(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts]
    width = max(map(len, ids))
    pads = [[7] * (width - len(row)) for row in ids]
    padded = [pad + row if left else row + pad for row, pad in zip(ids, pads)]
    mask = [
        [token < 0 for token in pad] + [True] * len(row) if left else [True] * len(row) + [False] * len(pad)
        for row, pad in zip(ids, pads)
    ]
    actual = Translation(OURS, THEIRS)(
        Tokens(
            torch.tensor(padded, dtype=torch.int64).view(len(ids), width),
            torch.tensor(mask, dtype=torch.bool).view(len(ids), width),
        )
    )
    assert [THEIRS.decode(row, clean_up_tokenization_spaces=False) for row in rows_of(actual)] == texts
    assert actual.ids.shape[1] == max(map(len, rows_of(actual)))  # as wide as the longest row
    assert torch.equal(actual.mask, torch.arange(actual.ids.shape[1]) < actual.lengths[:, None])


def test_same_tokenizer_ignores_the_settings_of_the_last_call():
    assert same_tokenizer(OURS, tiny_tokenizer()) and not same_tokenizer(OURS, THEIRS)
    used = tiny_tokenizer()
    used(["a text", "b"], padding=True, truncation=True, max_length=4)  # the tokenizer stores these settings
    assert same_tokenizer(OURS, used)


def test_the_encoder_encodes_its_own_tokens(build, settings, encoder, ragged_examples, collate):
    """The states equal those of the encoder's model on its own tokens of the text."""
    reader = build(settings).eval()
    batch = collate(ragged_examples, "left")
    encoded = reader.compressor.encode(Context(batch.context.ids, batch.context.mask, batch.prefix))
    model = Backbone(str(encoder), "float32", "cpu").load(head=False)
    for row, example in enumerate(ragged_examples):
        ids = THEIRS(example.context, add_special_tokens=False)["input_ids"]
        assert encoded.ids[row][encoded.mask[row]].tolist() == ids
        if ids:
            expected = model(torch.tensor([ids])).last_hidden_state[0]
            torch.testing.assert_close(encoded.states[row, 0, : len(ids)], expected, rtol=1e-4, atol=1e-4)


def test_batch_invariance_question_independence_and_gradients(build, settings, ragged_examples, collate):
    """The contract holds with two tokenizers, too; tests/contract uses one."""
    reader = build(settings)
    batch = collate(ragged_examples)
    output = reader.loss(batch)
    alone = torch.cat([reader.loss(collate([example], "left")).nll for example in ragged_examples])
    torch.testing.assert_close(output.nll, alone, rtol=1e-5, atol=1e-5)
    assert output.context_tokens.tolist() == batch.context.lengths.tolist()  # counted in the decoder's tokens
    output.nll.sum().backward()
    encoder = reader.compressor.context_encoder
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters() if p.requires_grad)
    other = replace(batch, query=collate(ragged_examples[::-1]).query)
    context = Context(batch.context.ids, batch.context.mask, batch.prefix)
    assert torch.equal(reader.compressor.encode(context).states, reader._encode(other).states)


def test_training_evaluation_and_a_saved_document(compose, settings, tmp_path):
    """With objective=reconstruct, evaluation reports bits per byte; the token spans of a document join to its text."""
    small = [
        "reader=translated",
        "train.steps=2",
        "train.batch_size=2",
        "train.eval_examples=0",
        "dataset.train_size=4",
        "dataset.facts=2",
        "dataset.test_size=2",
        "generation.max_new_tokens=4",
    ]
    run = train.train(compose([*settings, "objective=reconstruct", *small]))
    words = [f"run={run}", f"paths.outputs={tmp_path}", f"paths.cache={tmp_path}", "baselines=[]"]
    [results] = evaluate_tiny(words)
    assert results["metrics"]["bits_per_byte"]["value"] > 0
    reader = load_reader(run)
    text = "Seen from the tower, the town sleeps."
    document = reader.read(text)
    spans = reader.memory(document, "Who sleeps?").token_spans()
    assert "".join(words for _, words in spans) == text
    assert sum(span.tokens for span, _ in spans) == len(THEIRS(text)["input_ids"])
    document.save(tmp_path / "saved.document")
    assert reader.answer_from(reader.load(tmp_path / "saved.document"), "Who?") == reader.answer_from(document, "Who?")
