"""Entropy measures: by hand, against the Hugging Face model, and cached on disk."""

import math
import zlib

import pytest
import torch

from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Tokens
from breviary.studies.entropy import (
    EntropyMeter,
    document_summary,
    predictive_entropy,
    surprisal,
    text_measures,
    token_surprisal_and_entropy,
    unigram_entropy,
    zlib_ratio,
)
from tests.tiny import plain_nll

LONG, SHORT = "The moon is white and the sun is yellow. The ship Quiloth has violin.", "red"


@pytest.fixture(scope="module")
def backbone():
    return TinyBackbone(layers=3, device="cpu")


def test_uniform_logits_have_the_entropy_of_the_vocabulary():
    logits, ids = torch.zeros(2, 3, 512), torch.tensor([[0, 1, 2], [3, 4, 511]])
    torch.testing.assert_close(surprisal(logits, ids), torch.full((2, 3), math.log(512)))
    torch.testing.assert_close(predictive_entropy(logits), torch.full((2, 3), math.log(512)))


def test_measures_by_hand():
    logits = torch.tensor([[math.log(0.5), math.log(0.25), math.log(0.25), -math.inf]])
    assert surprisal(logits, torch.tensor([1])).item() == pytest.approx(math.log(4))
    assert predictive_entropy(logits).item() == pytest.approx(1.5 * math.log(2))  # a logit of -inf is not nan
    assert unigram_entropy([7, 7, 8, 9]) == 1.5 and unigram_entropy([1, 2, 3, 4]) == 2
    assert unigram_entropy([5, 5, 5]) == unigram_entropy([]) == 0
    assert zlib_ratio("") == 1 and zlib_ratio("ä" * 50) == len(zlib.compress("ä".encode() * 50, 9)) / 100
    assert text_measures("äb", [1, 2]) == {
        "unigram_entropy": 1,
        "zlib_ratio": zlib_ratio("äb"),
        "tokens": 2,
        "bytes": 3,
    }


def test_document_summary_by_hand():
    result = document_summary(torch.tensor([1.0, 3.0]) * math.log(2), torch.tensor([0.5, 1.5]), 4)
    assert result == {
        "nll": pytest.approx(2 * math.log(2)),
        "nll_std": pytest.approx(math.log(2)),
        "H": 1.0,
        "nll_max": pytest.approx(3 * math.log(2)),
        "bits_per_token": pytest.approx(2),
        "bits_per_byte": pytest.approx(1),
    }
    with pytest.raises(ValueError, match="0 tokens"):
        document_summary(torch.zeros(0), torch.zeros(0), 4)


def test_measures_without_a_model_are_higher_for_varied_than_for_repeated_text():
    text, repeated = " ".join(map(str, range(1000, 1040))), "1000 " * 40
    assert zlib_ratio(text) > zlib_ratio(repeated)
    assert unigram_entropy(text.encode()) > unigram_entropy(repeated.encode())


@pytest.mark.parametrize("side", ["left", "right"])
def test_token_entropies_equal_the_model_s_on_any_padding(backbone, side):
    tokenizer, model = backbone.tokenizer(), backbone.load()
    rows = [tokenizer(text)["input_ids"] for text in (LONG, SHORT)]
    width = max(map(len, rows)) + 2
    pad = [[0] * (width - len(row)) for row in rows]
    on = [[True] * len(row) for row in rows]
    joined = (lambda pad, row: pad + row) if side == "left" else (lambda pad, row: row + pad)
    ids = torch.tensor([joined(p, row) for p, row in zip(pad, rows)])
    mask = torch.tensor([joined([False] * len(p), row) for p, row in zip(pad, on)])
    nll, entropy = token_surprisal_and_entropy(Stack(model), Tokens(ids, mask), [0])
    for b, row in enumerate(rows):
        torch.testing.assert_close(
            nll[b].sum(), plain_nll(model, torch.tensor([0]), torch.tensor(row)), rtol=1e-5, atol=1e-5
        )
        with torch.no_grad():
            logits = model(torch.tensor([[0, *row]])).logits[0, :-1]
        torch.testing.assert_close(
            entropy[b][mask[b]], torch.distributions.Categorical(logits=logits).entropy(), rtol=1e-5, atol=1e-5
        )
    assert not nll[~mask].any() and not entropy[~mask].any()
    with pytest.raises(ValueError, match="prefix is empty"):
        token_surprisal_and_entropy(Stack(model), Tokens(ids, mask), [])


def test_results_are_cached_and_do_not_depend_on_the_batch(backbone, tmp_path, monkeypatch):
    [alone], [other] = (EntropyMeter(backbone).measure([text]) for text in (LONG, SHORT))
    meter = EntropyMeter(backbone, cache=tmp_path)
    long, short, again = meter.measure([LONG, SHORT, LONG])
    assert long == again and long["tokens"] > short["tokens"] == other["tokens"]
    assert long == pytest.approx(alone, rel=1e-5) and short == pytest.approx(other, rel=1e-5)
    [file] = tmp_path.iterdir()
    monkeypatch.setattr(TinyBackbone, "load", None)
    assert EntropyMeter(backbone, cache=tmp_path).measure([SHORT, LONG]) == [short, long]
    with pytest.raises(TypeError):  # other settings have their own file, so the model is loaded
        EntropyMeter(backbone, layers=2, cache=tmp_path).measure([LONG])


def test_fewer_layers_and_cut_documents(backbone):
    [whole], [shallow] = EntropyMeter(backbone).measure([LONG]), EntropyMeter(backbone, layers=1).measure([LONG])
    assert whole["nll"] != pytest.approx(shallow["nll"], rel=1e-3) and whole["zlib_ratio"] == shallow["zlib_ratio"]
    [cut] = EntropyMeter(backbone, max_tokens=4).measure([LONG])
    ids = backbone.tokenizer()(LONG)["input_ids"][:4]
    text = backbone.tokenizer().decode(ids)
    [same] = EntropyMeter(backbone).measure([text])
    assert LONG.startswith(text) and cut == pytest.approx(same, rel=1e-6) and cut["tokens"] == 4


def test_wrong_documents_and_settings_are_reported(backbone):
    meter = EntropyMeter(backbone)
    with pytest.raises(ValueError, match="document 1 is empty; document 2: bytes is no text"):
        meter.measure(["a", "", b"c"])
    with pytest.raises(ValueError, match="layers=4: must be from 1 to 3"):
        EntropyMeter(backbone, layers=4)
    with pytest.raises(ValueError, match="max_tokens=0"):
        EntropyMeter(backbone, max_tokens=0)
    with pytest.raises(ValueError, match="does not fit the backbone's 16 positions; give max_tokens=15"):
        EntropyMeter(TinyBackbone(layers=1, positions=16, device="cpu")).measure([LONG * 3])
