"""Language models from scratch: they learn their texts, are trained once, and are backbones like any other."""

import json

import pytest
import torch

from breviary.backbones.pretrained import Backbone
from breviary.studies.entropy import EntropyMeter
from breviary.studies.small_models import TRAINING_RECORD, SmallModel, train_language_model, train_tokenizer

SHAPE = SmallModel(layers=1, width=16, heads=2, positions=64, steps=40, batch_size=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def tokenizer_of_two():
    return train_tokenizer(["red green " * 50, "one two " * 50], 270)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_of_two):
    tok, home = tokenizer_of_two, tmp_path_factory.mktemp("models")
    row = tok("red green " * 6, add_special_tokens=False)["input_ids"][:8]
    return train_language_model(
        SHAPE, torch.tensor([[tok.bos_token_id, *row, tok.eos_token_id]] * 16), tok, home, "colours", 0
    )


def test_a_model_learns_its_texts(made, tokenizer_of_two):
    log = json.loads((made / TRAINING_RECORD).read_text())
    assert log["tokens_read"] == 40 * 8 * 10 and log["log"][-1]["loss"] < 0.5 * log["log"][0]["loss"]
    backbone = Backbone(str(made), "float32")
    assert backbone.problems() == []
    known, other = EntropyMeter(backbone).measure(["red green red green", "one two one two"])
    assert known["nll"] < 0.6 * other["nll"]


def test_the_same_model_is_not_trained_twice(made, tokenizer_of_two, monkeypatch):
    tok = tokenizer_of_two
    ids = torch.tensor([[tok.bos_token_id, 5, 6, tok.eos_token_id]] * 4)
    shape = SmallModel(layers=1, width=16, heads=2, positions=8, steps=1, batch_size=2)
    first = train_language_model(shape, ids, tok, made.parent, "other", 0)
    with monkeypatch.context() as patch:
        patch.setattr("breviary.studies.small_models._train", None)
        assert train_language_model(shape, ids, tok, made.parent, "other", 0) == first
    assert train_language_model(shape, ids, tok, made.parent, "other", 1) != first
    (first / TRAINING_RECORD).unlink()  # the state after a killed call
    assert (
        train_language_model(shape, ids, tok, made.parent, "other", 0) == first and (first / TRAINING_RECORD).is_file()
    )


def test_wrong_settings_are_reported():
    assert problems(width=15)[0].endswith("multiple of 2 * heads, e.g. 192, 6")
    assert len(problems(steps=0, learning_rate=0, dtype="half")) == 3 and problems() == []
    with pytest.raises(ValueError, match="no text"):
        train_language_model(SHAPE, torch.zeros(0, 4, dtype=torch.long), None, None, "empty", 0)


def problems(**changed):
    return SmallModel(**changed).problems("model")


def test_every_text_round_trips(tokenizer_of_two):
    for text in ("red green", "naïve ☃ \U0001f600\n\tx", "</s> is text"):
        ids = tokenizer_of_two(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer_of_two.decode(ids) == text and tokenizer_of_two.eos_token_id not in ids
