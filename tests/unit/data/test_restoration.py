"""Reconstruction metrics against values computed by hand."""

import math

import pytest

from data.restoration import Restoration, bleu, corpus_bleu, edit_similarity, prefix_exact_match, rouge_n, words

EVEN = list(range(512))


@pytest.mark.parametrize(
    ("ids", "target", "value"),
    [
        (EVEN, EVEN, 1),
        (EVEN[:128] + [-1] + EVEN[129:], EVEN, 0.25),  # the first wrong token is number 128 of 512
        (EVEN[:128], EVEN, 0.25),  # stopped early
        (EVEN + [7], EVEN, 1),  # tokens beyond the target do not count
        ([-1] + EVEN[1:], EVEN, 0),
        ([], EVEN, 0),
        ([], [], 1),
        ([1], [], 0),
    ],
)
def test_prefix_exact_match(ids, target, value):
    assert prefix_exact_match(ids, target) == value


@pytest.mark.parametrize(
    ("text", "target", "value"),
    [
        ("kitten", "sitting", 1 - 3 / 7),  # two substitutions, one insertion
        ("abc", "abc", 1),
        ("abc", "xyz", 0),
        ("", "", 1),
        ("", "ab", 0),
        ("ab", "", 0),
        ("bcd", "abcd", 0.75),
        ("abcd", "bcd", 0.75),
        ("ab", "ba", 0),
        ("aaXaa", "aaaa", 0.8),
    ],
)
def test_edit_similarity(text, target, value):
    assert edit_similarity(text, target) == pytest.approx(value)


def test_bleu_by_hand():
    assert words("It's red, isn't it?") == ["It", "'", "s", "red", ",", "isn", "'", "t", "it", "?"]
    assert bleu("a b c d e", "a b c d e") == pytest.approx(1)
    assert bleu("red", "red") == pytest.approx(1)  # shorter than four words
    assert bleu("p q r s", "a b c d") == 0
    assert bleu("", "") == 1 and bleu("", "a") == bleu("a", "") == 0
    # Precisions 5/6, 3/5, 1/4; no 4-gram of 3 agrees: smoothed to 1 / 2^1 / 3. Equal lengths.
    value = bleu("the cat sat on a mat", "the cat sat by a mat")
    assert value == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)
    # All n-grams agree, 5 words of 7: the brevity penalty alone.
    assert bleu("a b c d e", "a b c d e f g") == pytest.approx(math.exp(1 - 7 / 5))


def test_corpus_bleu_counts_n_grams_over_all_texts():
    rows = [
        {"prediction": "a b c d e", "references": ["a b c d e"]},
        {"prediction": "p q x s t", "references": ["p q r s t"]},
    ]
    # 9 of 10 words agree, 6 of 8 pairs, 3 of 6 triples, 2 of 4 quadruples. Equal lengths.
    value = Restoration().corpus(rows)["corpus_bleu"]
    assert value == pytest.approx((9 / 10 * 6 / 8 * 3 / 6 * 2 / 4) ** 0.25)
    assert Restoration().corpus(rows[1:]) == {"corpus_bleu": 0}  # no triple agrees


def test_a_text_of_few_words_counts_as_one_wrong_n_gram_of_each_longer_order():
    # "x" has one word: it adds 1 to the pairs, triples and quadruples, 4 + 1, 3 + 1 and 2 + 1.
    assert corpus_bleu(["a b c d e", "x"], ["a b c d e", "x"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    assert corpus_bleu(["a", ""], ["a", "b"]) == corpus_bleu([""], [""]) == 0


def test_rouge_by_hand():
    rouge = rouge_n("a cat sat here", "the cat sat down now")
    assert rouge["rouge_1"] == pytest.approx(2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5))
    assert rouge["rouge_2"] == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))
    assert rouge_n("same words", "same words") == {"rouge_1": 1, "rouge_2": 1}


def test_all_metrics_of_one_example():
    parts = Restoration()(
        "ab cx",
        [5, 6, 9],
        True,
        "ab cd",
        [5, 6, 7, 8],
        [0.5, 0.25, 1.0, 0.25, 3.0],
        [True, True, False, True, False],
        8.0,
        5.0,
    )
    scores, ratios = parts["scores"], parts["ratios"]
    assert scores["prefix_em"] == 0.5 and scores["sequence_em"] == 0 and scores["end_rate"] == 1
    assert scores["accuracy_macro"] == 0.75 and scores["end_accuracy"] == 0  # the end token is reported separately
    assert scores["edit_similarity"] == pytest.approx(0.8)
    assert ratios["accuracy"] == [3, 4] and ratios["free_accuracy"] == [2, 4] and ratios["length_ratio"] == [3, 4]
    assert ratios["ce"] == [2.0, 4] and ratios["ce_unconditional"] == [8.0, 4]
    assert ratios["gain"] == [6.0, 4] and ratios["normalised_gain"] == [6.0, 8.0]
    assert ratios["ce_other"] == [5.0, 4] and ratios["own_gain"] == [3.0, 4]
    assert ratios["bits_per_byte"] == [pytest.approx(2.0 / math.log(2)), 5]
    assert parts["by_position"] == {"0-31": [2, 4]}


def test_accuracy_by_position_is_binned():
    target = list(range(70))
    parts = Restoration()("", target[:33] + [-1] * 10, False, "", target, None, None, None)
    assert parts["by_position"] == {"0-31": [32, 32], "32-63": [1, 32], "64-95": [0, 6]}
    assert parts["scores"]["end_rate"] == 0
    assert not {"accuracy", "ce", "gain", "own_gain"} & (parts["ratios"].keys() | parts["scores"].keys())


def test_empty_target_and_empty_text():
    parts = Restoration()("", [], True, "", [], [1.5], [True], 0.0)
    assert parts["scores"]["prefix_em"] == parts["scores"]["bleu"] == parts["scores"]["edit_similarity"] == 1
    assert parts["scores"]["accuracy_macro"] == 1 and parts["by_position"] == {}
