"""Every metric that a data set can name, against values computed by hand or by the suite's own code."""

import math
import sys
from types import SimpleNamespace

import pytest

from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Example
from breviary.evaluation.table import TITLES, metric_title
from data.metrics import METRICS, Scorer, longbench, normalise, registry

CLASSES = ("animal", "other animal", "number")
SPLIT = {"北京大学": ["北京大学"], "北京": ["北京"], "三天": ["三天"], "3天": ["3", "天"]}
SPLIT["他在北京大学学习。"] = ["他", "在", "北京大学", "学习", "。"]


def value(name, prediction, references, choices=(), question=""):
    references = [references] if isinstance(references, str) else references
    example = Example("1", "", question, tuple(references), choices=tuple(choices))
    return Scorer([name])(prediction, references, example)[name]


@pytest.mark.parametrize(
    ("text", "plain"), [("The U.S.A.'s  answer!", "usas answer"), ("An apple-pie", "applepie"), ("the", "")]
)
def test_normalisation(text, plain):
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("name", "prediction", "references", "expected"),
    [
        ("em", "The Beatles!", "beatles", 1),
        ("em", "Beatles band", "beatles", 0),
        ("em", "twenty one", "21", 0),
        ("em_contains", "It was Marie Curie, in 1903.", "curie", 1),
        ("em_contains", "cars", "car", 1),
        ("em_contains", "Curie", "Marie Curie", 0),
        ("f1", "the cat sat on the mat", "a cat sat", 2 / 3),
        ("f1", "paris paris", "paris", 2 / 3),
        ("f1", "yes it is", "yes", 0.5),
        ("string_match_all", "12 and 7", ["12", "7", "9"], 2 / 3),
        ("string_match_part", "12 and 7", ["12", "7", "9"], 1),
        ("string_match_all", "it is 127", "12", 1),
        ("string_match_part", "it is 127", "12", 1),
        ("string_match_all", "no", ["yes", "Yes"], 0),
        ("string_match_part", "no", ["yes", "Yes"], 0),
        ("string_match_all", "12\x0034", "1234", 0),  # a control character does not join numbers
        ("count", "5", "5", 1),
        ("count", "between 5 and 7", "5", 0.5),
        ("count", "five", "5", 0),
        ("retrieval", "Paragraph 12, or 3", "Paragraph 12", 0.5),
        ("retrieval", "段落7", "段落7", 1),
        ("edit_similarity", "```python\nreturn x", "return x", 1),
        ("edit_similarity", "\n\nreturn y", "return x", 0.88),
        ("edit_similarity", "  \nreturn x", "return x", 0.2),
        ("edit_similarity", "foo(bar, baz)", "bar(baz, foo)", 0.31),
        ("exponential_similarity", "60%", "60", 1),
        ("exponential_similarity", "60", "50", 0.5),
        ("exponential_similarity", "60", "35", 0.5**2.5),
        ("exponential_similarity", "most", "60", 0),
        ("concordance", "1, 2, 3", "1, 2, 3", 1),
        ("concordance", "2, 1, 3", "1, 2, 3", 2 / 3),
        ("concordance", "3, 2, 1", "1, 2, 3", 0),
        ("concordance", "1, 2, 2", "1, 2, 3", 0),
        ("ndcg10", "a > b > c", ["a:3", "b:1", "c:0"], 1),
        ("ndcg10", "[b] > [a] > [c]", ["a:3", "b:1", "c:0"], 0.797),
        ("ndcg10", "c, a", ["a:3", "b:1", "c:0"], 0.521),
        ("first_number", "The key is 71432.", "71432", 1),
        ("first_number", "1. 71432", "71432", 0),
        ("first_number", "none", "71432", 0),
        ("kv_word", 'It is "ab-1".', "ab-1", 1),
        ("kv_word", "ab-1x", "ab-1", 0),
        ("kv_word", "value=ab-1", "ab-1", 0),
        ("math_find", "It is 12.5, not 3", "12.5", 1),
        ("math_find", "no number", "3", 0),
        ("math_calc", "[1, 2, 9]", ["1", "2", "3", "4"], 0.5),
        ("math_calc", "1 2 3", ["1", "2"], 1),
        ("code_run", "The result is -7.", "-7", 1),
        ("code_run", "7 or so", "7", 0),
        ("code_debug", "B. foo", ["foo", "B"], 1),
        ("code_debug", "The answer is: foo", ["foo", "B"], 1),
        ("code_debug", "The answer is: C", ["foo", "B"], 0),
        ("code_debug", "foo", ["foo", "B"], 0),
        ("name_word", "It is Anna.", "ANNA", 1),
        ("book_choice", "B", "B", 1),
        ("book_choice", "The answer is B, Anna", ["B", "Anna"], 1),
        ("book_choice", "It could be C.", "C", 1),
        ("book_choice", "", "C", 0),
    ],
)
def test_text_metrics(name, prediction, references, expected):
    assert value(name, prediction, references) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("prediction", "reference", "unstemmed", "stemmed", "longbench"),
    [
        ("the cat sat on the mat", "the cat lay on the mat", 5 / 6, 5 / 6, 0.8),
        ("the dogs barked", "the dog barks", 1 / 3, 1, 1 / 3),
        ("the the the cat", "the cat", 2 / 3, 2 / 3, 1),
        ("A b. C d.", "C d. A b.", 0.5, 0.5, 1),
        ("", "a", 0, 0, 0),
    ],
)
def test_rouge_l_of_three_packages(prediction, reference, unstemmed, stemmed, longbench):
    found = [value(name, prediction, reference) for name in ("rougeL", "rouge_l", "rougeL_longbench")]
    assert found == pytest.approx([unstemmed, stemmed, longbench], abs=1e-6)


def test_rouge_l_of_longbench_as_package_rouge_computes_it():
    prediction, reference = "d c the a . d x. y. x. c .", "z, z, a a A z, d c the a"
    assert value("rougeL_longbench", prediction, reference) == pytest.approx(0.6666666616666668, abs=1e-12)


def test_rouge_lsum_takes_lines_as_sentences():
    assert value("rougeLsum", "A b.\nC d.", "C d.\nA b.") == 1
    assert value("rougeLsum", "A b. C d.", "C d. A b.") == 0.5


@pytest.mark.parametrize(
    ("prediction", "reference", "words", "characters", "rouge"),
    [
        ("北京大学", "北京", 0, 2 / 3, 0),
        ("他在北京大学学习。", "北京大学", 0.4, 2 / 3, 1 / 3),
        ("三天", "3天", 0, 0.5, 0),
    ],
)
def test_chinese(monkeypatch, prediction, reference, words, characters, rouge):
    # The words of jieba 0.42.1, which is optional.
    monkeypatch.setattr(longbench, "segmenter", lambda: SimpleNamespace(lcut=SPLIT.__getitem__))
    found = [value(name, prediction, reference) for name in ("zh_f1", "zh_f1_characters", "zh_rougeL")]
    assert found == pytest.approx([words, characters, rouge], abs=1e-6)
    assert value("rougeL", prediction, reference) == (0.0 if reference != "3天" else value("rougeL", "三天", "3天"))


def test_chinese_words_without_jieba(monkeypatch):
    longbench.segmenter.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ValueError, match="zh_f1 and zh_rougeL need the package jieba"):
        Scorer(["zh_f1"])


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [("other animal", "other animal", 1), ("other animal", "animal", 0.5), ("animal number", "number", 0.5)],
)
def test_classification(prediction, reference, expected):
    assert value("classification", prediction, reference, CLASSES) == expected


@pytest.mark.parametrize(
    ("prediction", "target", "question", "expected"),
    [
        ("The most recent location of Mary is kitchen.", "kitchen", "Where is Mary? ", 1),
        ("kitchen or garden", "kitchen", "Where is Mary? ", 0),
        ("I think. It is the kitchen", "kitchen", "Where is Mary? ", 0),
        ("The Garden<context>kitchen", "garden", "What is north of the kitchen?", 1),
        ("The kitchen is south of the garden", "garden", "What is north of the kitchen?", 1),
        ("Fred", "Fred", "Who gave the apple to Mary?", 1),
        ("Fred gave the apple", "apple", "What did Fred give to Mary?", 1),
    ],
)
def test_babilong(prediction, target, question, expected):
    assert value("babilong", prediction, target, question=question) == expected


@pytest.mark.parametrize(
    ("name", "prediction", "letter"),
    [
        ("choice_letter_v2", "**The correct answer is (B)**", "B"),
        ("choice_letter_v2", "the correct answer is (B)", None),
        ("choice_letter_v2", "The correct answer is Apples", "A"),
        ("choice_letter", "A dog: (B)", "A"),
        ("choice_letter", "B)", "B"),
        ("choice_letter", "Option b", None),
    ],
)
def test_letters(name, prediction, letter):
    assert [value(name, prediction, gold) for gold in "ABCD"] == [float(gold == letter) for gold in "ABCD"]


def test_a_reference_may_be_the_text_of_a_choice():
    options = ("a dog", "B movie", "a car", "a tree")
    assert value("choice_letter", "(B)", "B movie", options) == 1 and value("choice_letter", "A", "(A) a dog") == 1
    with pytest.raises(ValueError, match="neither a letter nor one of the choices"):
        value("choice_letter", "A", "a cat", options)


def test_likelihood_of_choices():
    scorer = Scorer(["choice_likelihood", "choice_likelihood_norm"])
    example = Example("1", "", "?", ("no",), choices=("no", "not mentioned", "yes"))
    assert scorer.of_choices([4, 6, 5], example) == {"choice_likelihood": 1, "choice_likelihood_norm": 0}
    other = Example("1", "", "?", ("not mentioned",), choices=example.choices)
    assert scorer.of_choices([4, 6, 5], other) == {"choice_likelihood": 0, "choice_likelihood_norm": 1}
    assert scorer.likelihood and "choice_likelihood" not in scorer("no", ["no"])
    with pytest.raises(ValueError, match="no reference of"):
        scorer.of_choices([4, 6, 5], Example("1", "", "?", ("maybe",), choices=example.choices))


def test_views():
    assert value("f1@first_line", "\n\nParis\nor Rome", "Paris") == 1 and value("f1", "\n\nParis\nor Rome", "Paris") < 1
    assert value("em@answer_line", "I think so. Answer: Paris\nRome", "Paris") == 1
    assert value("em@answer_line", "Paris", "Paris") == 1  # the better one of both counts
    assert metric_title("f1@first_line") == "F1 (first line)"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["concordence"], "unknown metric concordence; the nearest right one is concordance; allowed are em, "),
        (["f1", "f1"], "f1 occurs twice"),
        ([], r"dataset.metrics is empty; name at least one, e.g. dataset.metrics=\[f1,em\]"),
        (["bertscore"], "bertscore needs a model in a local folder, e.g. dataset.metrics="),
        (["bertscore:nowhere"], "nowhere holds no config.json of a model"),
        (["f1:folder"], "f1 takes no folder"),
        (["rouge_geometric@first_line"], "rouge_geometric takes no view"),
    ],
)
def test_wrong_names(names, message):
    with pytest.raises(ValueError, match=message):
        Scorer(names)


def test_without_names_what_was_always_computed():
    scorer = Scorer()
    assert scorer.names == ("em", "em_contains", "f1", "rouge_l") == tuple(scorer("a", ["a"]))
    assert scorer.further == {} and scorer.aggregates == {} and not scorer.likelihood and not scorer.perplexity


def test_the_record_of_a_scorer_states_rule_version_and_library():
    record = Scorer(["rouge_geometric", "f1"]).record()
    assert record["names"] == ["rouge_geometric", "f1"]
    assert record["aggregates"] == {"rouge_geometric": ["rouge1", "rouge2", "rougeL"]}
    assert record["details"]["rouge1"]["library"].startswith("rouge-score 0.")
    assert record["details"]["f1"]["version"] == registry.METRICS_VERSION
    assert all(metric.source for metric in METRICS.values()) and METRICS.keys() <= TITLES.keys()


def test_choices_that_a_metric_needs():
    scorer = Scorer(["classification"])
    with_choices = Example("1", "", "?", ("number",), choices=CLASSES)
    assert scorer.example_problems([with_choices]) == []
    [problem] = scorer.example_problems([with_choices, Example("2", "", "?", ("number",))])
    assert "classification needs the choices of every example, which example '2'" in problem


@pytest.mark.parametrize(
    "name", [name for name, metric in METRICS.items() if metric.score and metric.library != "jieba"]
)
def test_every_metric_of_a_right_answer_is_one_and_of_an_empty_answer_not(name):
    gold = {"ndcg10": ["7:3"], "babilong": ["kitchen"], "code_debug": ["foo", "B"], "classification": ["number"]}
    gold |= dict.fromkeys(
        ("em", "em_contains", "f1", "rouge_l", "rougeL_longbench", "edit_similarity"), ["the cat sat"]
    )
    references = gold.get(name, ["A"] if "choice" in name else ["cat"] if "rouge" in name else ["12"])
    text = {"ndcg10": "7", "code_debug": "B.", "choice_letter_v2": "The correct answer is A"}.get(name, references[0])
    text = "a b cat" if name == "rouge2" else text
    references = ["a b cat"] if name == "rouge2" else references
    options = () if name == "babilong" else CLASSES
    assert value(name, text, references, options) == pytest.approx(1, abs=1e-6)
    assert value(name, "", references, options) == 0


def test_geometric_mean_of_the_set_as_the_official_check():
    """SCROLLS: 72.2222, 33.3333, 72.2222, together 55.8136; the best reference for each variant, then the mean."""
    pairs = [
        ("exact match example", ["exact match example"]),
        ("hello there", ["hello", "hi there"]),
        ("general kenobi", ["commander kenobi"]),
    ]
    scorer = Scorer(["rouge_geometric"])
    rows = [scorer(prediction, references) for prediction, references in pairs]
    means = [sum(row[name] for row in rows) / 3 for name in ("rouge1", "rouge2", "rougeL")]
    assert [100 * mean for mean in means] == pytest.approx([72.2222, 33.3333, 72.2222], abs=1e-4)
    assert 100 * math.prod(means) ** (1 / 3) == pytest.approx(55.8136, abs=1e-4)
    assert 100 * sum(row["f1"] for row in rows) / 3 == pytest.approx(72.2222, abs=1e-4)
    assert 100 * sum(row["em"] for row in rows) / 3 == pytest.approx(33.3333, abs=1e-4)


def test_bertscore_with_a_local_model(tmp_path):
    """Greedy matching by cosine of token states: 1 for equal texts, symmetric, the best over the references."""
    backbone = TinyBackbone(layers=2)
    backbone.load().save_pretrained(tmp_path)
    backbone.tokenizer().save_pretrained(tmp_path)
    name = f"bertscore:{tmp_path}:1"
    assert value(name, "the cat", "the cat") == pytest.approx(1) and value(name, "", "the cat") == 0
    one, other = value(name, "the cat", "cat sat"), value(name, "cat sat", "the cat")
    assert one == pytest.approx(other, abs=1e-5) and -1 < one < 1
    assert value(name, "the cat", ["cat sat", "the cat"]) == pytest.approx(1)
    scorer = Scorer([name])
    assert scorer.further[name].startswith("1 ") and metric_title(name) == "BERTScore"
    assert scorer.further[name] != Scorer([f"bertscore:{tmp_path}"]).further[f"bertscore:{tmp_path}"]  # another layer
    with pytest.raises(ValueError, match="layer 3 of a model with 2 layers"):
        Scorer([f"bertscore:{tmp_path}:3"])
