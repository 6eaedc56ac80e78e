"""Units of text, the budget rule, and the relevances that need no language model: hand cases and slow twins."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Question
from breviary.memory.hashing import HASH_RANGE
from breviary.selection import reference
from breviary.selection.attention import Attention
from breviary.selection.bm25 import bm25_scores, words
from breviary.selection.gold import Gold
from breviary.selection.named import NAMED, build_relevance, relevance_problems
from breviary.selection.random import Random
from breviary.selection.relevance import Candidates, fill_budget
from breviary.selection.units import pad_lists, text_with_offsets, unit_of_tokens, unit_starts

NONE = torch.zeros(1, 0, dtype=torch.int64)


def candidates(tokenizer, texts, questions=None, units="sentences", evidence=None, segment_size=3):
    """Candidates of texts, padded on the right."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    asked = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in questions or [""] * len(texts)]
    lengths, asked_lengths = (torch.tensor([[len(row)] for row in rows]) for rows in (ids, asked))
    ids, asked = pad_lists(ids), pad_lists(asked)
    mask = torch.arange(ids.shape[1]) < lengths
    question = Question(asked, torch.arange(asked.shape[1]) < asked_lengths, None, None, evidence=evidence)
    return Candidates(ids, mask, question, units, segment_size, lambda: tokenizer)


# ------------------------------------------------------------------ units


@pytest.mark.parametrize(
    ("kind", "text", "parts"),
    [
        ("sentences", "J. Smith sat. He ran!  Did he?\nYes", ["J. Smith sat. ", "He ran!  ", "Did he?\n", "Yes"]),
        ("sentences", "太阳是黄的。月亮是白的。", ["太阳是黄的。", "月亮是白的。"]),
        ("passages", "One.\ntwo\n\nThree.\n \nfour", ["One.\ntwo\n\n", "Three.\n \n", "four"]),
        ("passages", "no blank\nline here\n", ["no blank\n", "line here\n"]),
        ("words", "a  bc d", ["a  ", "bc ", "d"]),
        ("words", "", [""]),
    ],
)
def test_units_of_a_text(kind, text, parts):
    starts = [*unit_starts(text, kind), len(text)]
    assert [text[a:b] for a, b in zip(starts, starts[1:])] == parts


def test_an_unknown_kind_of_unit_is_refused():
    with pytest.raises(ValueError, match="units='lines': allowed are segments, sentences, passages, words"):
        unit_starts("text", "lines")


def test_a_token_belongs_to_the_unit_of_its_first_letter(tokenizer):
    text = "The moon is white. The sun is yellow.\n\nThe dog"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found, offsets = text_with_offsets(ids, tokenizer)
    assert found == text
    units = unit_of_tokens(text, offsets, "sentences")
    pieces = ["".join(tokenizer.decode([id]) for id, unit in zip(ids, units) if unit == u) for u in range(3)]
    assert [piece.split() for piece in pieces] == [
        ["The", "moon", "is", "white."],
        ["The", "sun", "is", "yellow."],
        ["The", "dog"],
    ]


def test_texts_that_tokenise_differently_are_joined_from_single_tokens(tokenizer):
    """A context whose middle was cut: letters of "moon" as single tokens are merged when the text is read again."""
    ids = [tokenizer.convert_tokens_to_ids(letter) for letter in "moon"]
    assert tokenizer("moon", add_special_tokens=False)["input_ids"] != ids
    assert text_with_offsets(ids, tokenizer) == ("moon", [(0, 1), (1, 2), (2, 3), (3, 4)])


# ------------------------------------------------------------------ the budget


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_budgets_are_filled_to_the_token_as_by_the_slow_twin(sizes, data):
    scores = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    units = [unit for unit, size in enumerate(sizes) for _ in range(size)]
    row, last = torch.tensor([[*units, -1, -1]]), set()
    for slots in range(len(units) + 2):
        places = fill_budget(torch.tensor([scores]).float(), row, torch.tensor([slots]))[0]
        kept = [column for column, place in enumerate(places.tolist()) if place >= 0]
        assert kept == reference.fill_budget(scores, units, slots)
        assert len(kept) == min(slots, len(units)) and last <= set(kept)
        last = set(kept)


# ------------------------------------------------------------------ BM25


def test_bm25_hand_case():
    units = [["cat", "sat", "mat"], ["cat", "cat", "dog"], ["bird", "flew"]]
    expected = [0.4450, 1.5741, 0.0]
    assert bm25_scores(units, ["cat", "dog"]).tolist() == pytest.approx(expected, abs=1e-4)
    assert reference.bm25(units, ["cat", "dog"], 1.5, 0.75) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=5), min_size=1, max_size=5).filter(any),
    st.lists(st.sampled_from("abcdx"), max_size=4),
    st.sampled_from([0.0, 0.75, 1.0]),
)
def test_bm25_is_the_slow_twin(units, question, b):
    ours = bm25_scores(units, question, 1.2, b).tolist()
    assert ours == pytest.approx(reference.bm25(units, question, 1.2, b), abs=1e-5)


def test_words_are_lower_cased_and_letters_of_scripts_without_spaces():
    assert words("The U.S. x_1, 太阳abc") == ["the", "u", "s", "x_1", "太", "阳", "abc"]


def test_bm25_finds_the_sentence_of_the_question(tokenizer):
    found = candidates(tokenizer, ["The moon is white. The sun is yellow.", "The dog."], ["Which sun?", ""])
    scores = build_relevance("bm25").scores(found)
    assert scores.shape == (2, 2) and scores[0, 1] > scores[0, 0] == 0 and not scores[1].any()


# ------------------------------------------------------------------ bounds


def test_gold_comes_first_and_a_truncated_row_keeps_its_beginning(tokenizer):
    texts = ["One two. Three four. Five six."] * 2
    plain = candidates(tokenizer, texts)
    evidence = plain.numbers == 1
    evidence[1] = False
    found = candidates(tokenizer, texts, evidence=evidence)
    assert Gold().scores(found).tolist() == [[0, 1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="no marked gold passages"):
        Gold().scores(plain)


def test_random_units_depend_on_the_context_alone(tokenizer):
    texts = ["One two. Three four. Five six.", "One. Two."]
    both, alone = candidates(tokenizer, texts), candidates(tokenizer, texts[1:])
    scores = Random().scores(both)
    assert torch.equal(scores[1:, :2], Random().scores(alone))
    assert not torch.equal(scores, Random(seed=1).scores(both)) and (scores >= 0).all() and (scores < 1).all()
    many = SimpleNamespace(ids=torch.arange(4000)[:, None], mask=torch.ones(4000, 1, dtype=torch.bool), count=3)
    means = Random().scores(many).mean(0)
    torch.testing.assert_close(means, torch.full((3,), 0.5, dtype=torch.float64), atol=0.03, rtol=0)
    assert HASH_RANGE > 4000


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("value", ["bm26", None, 3, {"k1": 1}, {"_target_": "torch.nn.Linear"}])
def test_other_relevances_are_refused(value):
    [problem] = relevance_problems(value, None)
    assert f"allowed are {', '.join(NAMED)}" in problem


def test_arguments_of_a_relevance_are_checked():
    section = {"_target_": "breviary.selection.bm25.BM25", "k1": -1.0, "b": 2.0}
    assert relevance_problems(section, None) == [
        "compressor.relevance.k1=-1.0: must be 0 or more, e.g. 1.5",
        "compressor.relevance.b=2.0: must be in 0..1, e.g. 0.75",
    ]


def test_attention_of_the_question_is_that_of_the_plain_model(tokenizer):
    backbone = TinyBackbone("llama", attn_implementation="eager")
    model = backbone.load().eval()
    relevance = Attention(layer=2, window=2, heads="max")
    relevance.prepare(backbone, Stack(backbone.load()).eval())
    relevance.tokenizer = tokenizer
    texts, questions = ["one red fox. two blue cats. three", "a dog"], ["where is the fox?", "who"]
    seen = candidates(tokenizer, texts, questions, "segments")
    scores = relevance.scores(seen)
    for b, (context, question) in enumerate(zip(seen.rows(), seen.question_rows())):
        with torch.no_grad():
            ids = torch.tensor([[relevance.start_id, *context, *question]])
            attentions = model(ids, output_attentions=True).attentions
        T = len(context)
        mass = torch.stack([attentions[layer][0, :, 1 + T :, 1 : 1 + T].mean(1).amax(0) for layer in (0, 1)]).mean(0)
        expected = torch.stack([piece.mean() for piece in mass.split(3)])
        torch.testing.assert_close(scores[b, : len(expected)], expected, rtol=1e-4, atol=1e-6)


def test_arguments_of_attention_are_checked():
    backbone = TinyBackbone("llama")
    target = "breviary.selection.attention.Attention"
    for changes, message in (({"layer": 9}, "relevance.layer=9"), ({"heads": "linear"}, "heads=linear")):
        [problem] = relevance_problems({"_target_": target, **changes}, backbone)
        assert message in problem
