"""Answer metrics against values computed by hand."""

import pytest

from data import metrics
from data.metrics import contains, exact_match, normalise, rouge_l, token_f1


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat, a dog\tand an owl!", "cat dog and owl"),
        ("U.S.A.", "usa"),
        ("theatre Ann another", "theatre ann another"),  # articles are whole words
        ("a-the", "athe"),  # punctuation goes first, as in SQuAD's script
        ("The.", ""),
        ("Äpfel – ÖL", "äpfel – öl"),  # only ASCII punctuation
        ("", ""),
    ],
)
def test_normalise(text, plain):
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("prediction", "references", "value"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], 1),
        ("Paris", ["London", "paris!"], 1),
        ("in Paris", ["Paris"], 0),
        ("", [""], 1),
        ("the", ["."], 0),
        ("", ["x"], 0),
    ],
)
def test_exact_match(prediction, references, value):
    assert exact_match(prediction, references) == value


@pytest.mark.parametrize(
    ("prediction", "references", "value"),
    [
        ("It is the Eiffel Tower, I think", ["Eiffel Tower"], 1),
        ("Parisian", ["Paris"], 1),  # a substring of characters, as in lost-in-the-middle
        ("London", ["Paris", "london"], 1),
        ("London", ["Paris"], 0),
        ("anything", [""], 0),
        ("anything", ["the", "thing"], 1),
        ("", ["x"], 0),
    ],
)
def test_contains(prediction, references, value):
    assert contains(prediction, references) == value


@pytest.mark.parametrize(
    ("prediction", "references", "value"),
    [
        ("the quick brown fox", ["quick red fox"], 2 / 3),  # 2 of 3 and 2 of 3 words
        ("red", ["red red red"], 2 * 1 * (1 / 3) / (1 + 1 / 3)),  # precision 1, recall 1/3
        ("red red red red", ["red red"], 2 * 0.5 * 1 / 1.5),  # repeated words count as often as both have them
        ("x y", ["a b", "y z w"], 2 * 0.5 * (1 / 3) / (0.5 + 1 / 3)),  # the best reference
        ("x", ["y"], 0),
        ("", [""], 1),
        ("the", ["a"], 0),
        ("", ["x"], 0),
        ("x", [""], 0),
    ],
)
def test_token_f1(prediction, references, value):
    assert token_f1(prediction, references) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "references", "value"),
    [
        ("police killed the gunman", ["police kill the gunman"], 1),  # stemmed
        ("the gunman kill police", ["police kill the gunman"], 0.5),  # longest common: "the gunman", 2 of 4 both ways
        ("police dogs", ["police the dogs ran away"], 2 * 1 * 0.4 / 1.4),  # precision 1, recall 2/5
        ("cat", ["dog", "cat"], 1),
        ("", ["cat"], 0),
    ],
)
def test_rouge_l(prediction, references, value):
    assert rouge_l(prediction, references) == pytest.approx(value, abs=1e-12)


def test_scores_has_every_metric_by_name():
    assert metrics.scores("The green cats.", ["green cat"]) == {
        "em": 0.0,
        "em_contains": 1.0,
        "f1": 0.5,
        "rouge_l": pytest.approx(0.8),
    }


@pytest.mark.parametrize("score", [exact_match, contains, token_f1, rouge_l])
def test_an_answer_without_references_is_an_assertion_error(score):
    with pytest.raises(AssertionError):
        score("x", [])
