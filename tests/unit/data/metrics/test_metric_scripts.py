"""Metrics of answers that SQuAD's normalisation empties, and of scripts other than Latin."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from data.metrics import METRICS_VERSION, RULES, contains, exact_match, rouge_l, rules, scores, token_f1
from data.restoration import bleu, rouge_n
from data.text_pipeline import TEXT

ALL = {"em": 1.0, "em_contains": 1.0, "f1": 1.0, "rouge_l": 1.0}
NONE = dict.fromkeys(ALL, 0.0)

# ------------------------------------------------------------------ answers without words


@pytest.mark.parametrize("answer", ["A", "The", "an", "The The", "+", "!", "...", "(a)", "👍", "👍🏽 ✅", "—", "£"])
def test_an_answer_of_articles_or_symbols_matches_itself_alone(answer):
    assert scores(answer, [answer]) == scores(f" {answer.lower()}\n", [answer]) == ALL
    for other in ("", "B", "-", "the", "??"):
        if other != answer.lower():
            assert scores(other, [answer])["em"] == scores(other, [answer])["em_contains"] == 0, other
    assert scores("", [answer]) == NONE


@pytest.mark.parametrize(
    ("prediction", "references", "em", "contained", "f1"),
    [
        ("A.", ["A"], 1, 1, 1),  # punctuation around a letter of multiple choice
        ("(A)", ["a"], 1, 1, 1),
        ("The answer is A", ["A"], 0, 1, 0.4),
        ("banana", ["A"], 0, 0, 0),  # an article is contained as a word only
        ("+", ["-"], 0, 0, 0),
        ("a+b", ["+"], 0, 1, 0),
        ("the", ["The The"], 0, 0, 2 / 3),
        ("", ["A", "an apple"], 0, 0, 0),
        ("apple", ["A", "an apple"], 1, 1, 1),  # each reference by its own rule
        ("A", ["apple", "A"], 1, 1, 1),
        ("the", ["apple"], 0, 0, 0),
        ("", [""], 1, 0, 1),
    ],
)
def test_the_unstripped_form_is_compared_where_nothing_is_left(prediction, references, em, contained, f1):
    found = scores(prediction, references)
    assert (found["em"], found["em_contains"], found["f1"]) == (em, contained, pytest.approx(f1))


# ------------------------------------------------------------------ other scripts


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("红色。", "红色"),
        ("《红色》！", "红色"),
        ("一九零四年", "一九零四年"),
        ("托拉 桥\n", "托拉桥"),
        ("１９０４年", "1904年"),
        ("1904", "１９０４"),  # full-width digits alone
        ("Paris。", "paris"),  # East Asian punctuation around Latin words
        ("ＡＢＣ", "abc"),
        ("カード・ゲーム", "カードゲーム"),
        ("ｶｰﾄﾞ", "カード"),  # half-width
        ("สวัสดี", "สวัสดี"),
        ("서울 LG전자。", "서울 lg전자"),
        ("\u1109\u1165\u110b\u116e\u11af", "서울"),  # decomposed
        ("«Москва»", "москва"),
        ("Αθήνα;", "αθήνα"),
        ("ما اسمك؟", "ما اسمك"),
        ("١٩٠٤", "١٩٠٤"),
        ("दिल्ली।", "दिल्ली"),
        ("选项A", "选项 A"),
    ],
)
def test_equal_answers_in_any_script_score_one(prediction, reference):
    assert scores(prediction, [reference]) == ALL
    assert scores(reference, ["something else", prediction]) == ALL
    assert scores("", [reference]) == NONE


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "rouge"),
    [
        ("红色的桥", "红色", 2 * 0.5 * 1 / 1.5, 2 * 0.5 * 1 / 1.5),  # 2 of 4 characters, 2 of 2
        ("色红", "红色", 1, 0.5),
        ("蓝色", "红色", 0.5, 0.5),
        ("选项A", "选项B", 2 / 3, 2 / 3),
        ("选项", "选项A", 0.8, 0.8),  # an article in English is a letter here
        ("iPhone 手机", "手机", 0.8, 0.8),
        ("서울 부산", "서울", 2 / 3, 2 / 3),  # Korean is written with spaces
        ("the 서울 타워", "서울 타워", 1, 0.8),
        ("the cat 猫", "a cat", 2 / 3, 0.4),  # a reference in Latin script loses its articles in any case
    ],
)
def test_characters_are_words_where_words_have_no_spaces(prediction, reference, f1, rouge):
    assert token_f1(prediction, [reference]) == pytest.approx(f1)
    assert rouge_l(prediction, [reference]) == pytest.approx(rouge)
    assert exact_match(prediction, [reference]) == (f1 == 1 and prediction != "色红")


def test_containing_in_other_scripts():
    assert contains("托拉桥是红色的。", ["红色"]) == contains("托拉桥是红 色的。", ["红色"]) == 1
    assert contains("Tokyo（东京）", ["Tokyo"]) == contains("Tokyo（东京）", ["东京"]) == 1
    assert contains("蓝色", ["红色"]) == 0


def test_reconstruction_metrics_see_every_script():
    text, near = "托拉桥是红色的大桥", "托拉桥是蓝色的大桥"
    assert rouge_n(text, text) == {"rouge_1": 1, "rouge_2": 1} and bleu(text, text) == pytest.approx(1)
    assert rouge_n(near, text) == {"rouge_1": pytest.approx(8 / 9), "rouge_2": pytest.approx(6 / 8)}
    assert 0.3 < bleu(near, text) < 1
    assert rouge_n("Москва река", "Москва") == {"rouge_1": pytest.approx(2 / 3), "rouge_2": 0}


# ------------------------------------------------------------------ which rule was used


def test_the_rule_of_each_example_is_named():
    assert rules("Paris", ["Paris", "The city"]) == ["squad"]
    assert rules("", ["A"]) == ["articles"] and rules("", ["+"]) == rules("+", ["?!"]) == ["unstripped"]
    assert rules("Москва", ["Москва"]) == ["unicode"] and rules("x", ["红色"]) == ["characters"]
    assert rules("x", ["A", "apple", "an"]) == ["articles", "squad"]
    rows = [{"prediction": "x", "references": [text]} for text in ("red", "blue", "A", "红色")]
    scorer = TEXT.scorer(None)
    assert TEXT.scoring(rows, scorer) == {
        "metrics_version": METRICS_VERSION,
        "normalisation": {"articles": 1, "characters": 1, "squad": 2},
        "scoring": scorer.record(),
    }
    assert set(RULES) == {"squad", "unicode", "characters", "articles", "unstripped"}


# ------------------------------------------------------------------ Latin script: as ever

LATIN = st.text(
    st.sampled_from(string.ascii_letters + string.digits + string.punctuation + " \n\téÉßøñçœÄ–—“”’…°µ²½ €£\u0301")
)
WORDS = st.lists(
    st.sampled_from(["the", "a", "An", "Paris", "running", "1904", "U.S.", "co-op", "don’t", "Ärger", "“x”", "+"])
).map(" ".join)
TEXTS = LATIN | WORDS


def old_normalise(text):
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def old_scores(prediction, reference):
    own, gold = old_normalise(prediction), old_normalise(reference)
    common = (Counter(own.split()) & Counter(gold.split())).total()
    scorer = rouge_scorer.RougeScorer(["rougeL", "rouge1", "rouge2"], use_stemmer=True).score(reference, prediction)
    return {
        "em": float(own == gold),
        "em_contains": float(gold in own),
        "f1": 2 * common / (len(own.split()) + len(gold.split())),
        "rouge_l": scorer["rougeL"].fmeasure,
    }, {"rouge_1": scorer["rouge1"].fmeasure, "rouge_2": scorer["rouge2"].fmeasure}


@given(TEXTS, TEXTS.filter(old_normalise))
def test_scores_of_latin_texts_are_those_of_the_former_implementation(prediction, reference):
    expected, expected_n = old_scores(prediction, reference)
    if not re.search("[a-z0-9]", reference.lower()):  # ROUGE's own tokenizer sees nothing
        expected["rouge_l"] = rouge_l(prediction, [reference])
        expected_n = rouge_n(prediction, reference)
    assert scores(prediction, [reference]) == expected
    assert rouge_n(prediction, reference) == expected_n
