"""Passages of running text: cut from contexts, selected by the seed; the answer is the passage."""

import json

import pytest

from data.passages import Passages

WORDS = [f"w{i}" for i in range(1000)]


@pytest.fixture
def file(tmp_path):
    """file(name, *contexts) -> the path of a JSONL file with these contexts."""

    def write(name, *contexts):
        rows = [{"context": context, "question": "Q?", "answers": ["A"]} for context in contexts]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def passages(train, **arguments):
    return Passages(train, None, None, **{"min_words": 10, "max_words": 30, **arguments}).examples("train")


def test_passages_are_disjoint_pieces_of_the_text(file):
    text = " \n".join(WORDS)
    examples = passages(file("a.jsonl", text))
    assert all(10 <= len(example.context.split()) <= 30 for example in examples)
    assert all(example.context in text and example.context == example.context.strip() for example in examples)
    words = [word for example in examples for word in example.context.split()]
    assert len(words) == len(set(words)) > 1000 - 30
    assert all(example.answers == (example.context,) and example.question for example in examples)
    assert len({example.id for example in examples}) == len(examples)


def test_duplicate_contexts_are_used_once(file):
    one, two = " ".join(WORDS[:500]), " ".join(WORDS[500:])
    files = [file("a.jsonl", one, one), file("b.jsonl", two, one)]
    words = [word for example in passages(files) for word in example.context.split()]
    assert len(words) == len(set(words)) > 900


def test_examples_depend_on_the_seed_only(file):
    name = file("a.jsonl", " ".join(WORDS))
    assert passages(name) == passages(name) != passages(name, seed=1)
    assert passages(name, train_size=3) == passages(name)[:3]


@pytest.mark.parametrize(
    "arguments, key",
    [
        ({"min_words": 0}, "dataset.min_words"),
        ({"min_words": 40}, "dataset.max_words"),
        ({"train_size": 0}, "dataset.train_size"),
        ({"question": " "}, "dataset.question"),
        ({"seed": -1}, "dataset.seed"),
    ],
)
def test_wrong_arguments_are_reported_with_their_key(file, arguments, key):
    name = file("a.jsonl", " ".join(WORDS))
    settings = {"min_words": 10, "max_words": 30, **arguments}
    [message] = Passages(name, None, None, **settings).problems(["train"])
    assert message.startswith(key) and "for example" in message


def test_missing_files_and_short_texts_are_reported(file):
    assert Passages(["nowhere.jsonl", "gone.jsonl"], None, None).problems(["train"]) == [
        message
        for name in ("nowhere.jsonl", "gone.jsonl")
        for message in Passages(name, None, None).problems(["train"])
    ]
    with pytest.raises(ValueError, match="dataset.min_words=10"):
        passages(file("a.jsonl", "too short"))
