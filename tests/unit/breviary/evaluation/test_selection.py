"""Which examples are asked: hand cases, and an evaluation by its command."""

import json

import pytest

from breviary.config.errors import ConfigError
from breviary.contract import Example
from breviary.evaluation.resolve import compose_evaluation
from breviary.evaluation.selection import first_questions
from breviary.evaluation.session import EvaluationSession
from data.text_pipeline import TEXT


def question(id, context):
    return Example(id, context, "Who?", ("Ada",))


ROWS = [question("a1", "A"), question("a2", "A"), question("b1", "B"), question("a3", "A"), question("b2", "B")]


@pytest.mark.parametrize(
    ("count", "per_context", "ids"),
    [
        (None, None, "a1 a2 b1 a3 b2"),
        (3, None, "a1 a2 b1"),
        (None, 1, "a1 b1"),
        (None, 2, "a1 a2 b1 b2"),
        (3, 2, "a1 a2 b1"),
        (9, 9, "a1 a2 b1 a3 b2"),
    ],
)
def test_first_questions(count, per_context, ids):
    assert [example.id for example in first_questions(ROWS, count, per_context)] == ids.split()


@pytest.fixture
def words(tmp_path):
    file = tmp_path / "test.jsonl"
    rows = [{"id": e.id, "context": e.context * 9, "question": e.question, "answers": ["Ada"]} for e in ROWS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["compressor=truncate", "backbone=tiny", "dataset=jsonl", f"dataset.test={file}", "baselines=[]"]


def test_an_evaluation_asks_the_chosen_questions(words):
    _, examples = EvaluationSession(TEXT).check(compose_evaluation([*words, "questions_per_context=1"]))
    assert [example.id for example in examples] == ["a1", "b1"]


@pytest.mark.parametrize("value", [0, -1])
def test_less_than_one_is_refused(words, value):
    with pytest.raises(ConfigError, match=f"questions_per_context={value}: must be at least 1, or null for all"):
        EvaluationSession(TEXT).check(compose_evaluation([*words, f"questions_per_context={value}"]))
