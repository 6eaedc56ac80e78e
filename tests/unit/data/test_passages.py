"""Passages of running text: cut from contexts, selected by the seed; the answer is the passage."""

import json
import re
from pathlib import Path

import pytest

from data.jsonl import join_passages
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


# ------------------------------------------------------------------ splits share no document


def documents(start, stop, title="Title {}"):
    """Documents of 20 words each, in the order of their numbers."""
    return [
        {"title": title.format(i), "text": " ".join(f"d{i}w{j}" for j in range(20)), "is_gold": False}
        for i in range(start, stop)
    ]


def written(file, name, *groups):
    """The path of a file with one context of each group of documents."""
    rows = [
        {"context": join_passages(group)[0], "question": "Q?", "answers": ["A"], "documents": group} for group in groups
    ]
    path = file(name)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbers(train, validation=None, test=None, split="train", **arguments):
    """The numbers of the documents that the passages of `split` hold words of."""
    data = Passages(train, validation, test, **{"min_words": 5, "max_words": 8, **arguments})
    text = " ".join(example.context for example in data.examples(split))
    return {int(number) for number in re.findall(r"\bd(\d+)w", text)}


def test_documents_of_later_splits_are_left_out(file):
    train = written(file, "train.jsonl", documents(0, 8), documents(6, 16), documents(16, 24))
    validation = written(file, "validation.jsonl", documents(12, 20))
    test = written(file, "test.jsonl", documents(2, 6), documents(18, 22))
    assert numbers(train, validation, test) == {0, 1, *range(6, 12), 22, 23}
    assert numbers(train, validation, test, "validation") == set(range(12, 18))
    assert numbers(train, validation, test, "test") == {*range(2, 6), *range(18, 22)}
    with pytest.raises(ValueError, match="documents of later splits are left out"):
        numbers(train, None, train)


def test_no_passage_crosses_a_document_that_was_left_out(file):
    train, test = written(file, "train.jsonl", documents(0, 5)), written(file, "test.jsonl", documents(2, 3))
    data = Passages(train, None, test, min_words=30, max_words=30)
    for example in data.examples("train"):
        found = {int(number) for number in re.findall(r"\bd(\d+)w", example.context)}
        assert found <= {0, 1} or found <= {3, 4}
        assert "Title 2" not in example.context


@pytest.mark.parametrize("title", ["", " ", "Another {}"])
def test_a_document_is_known_by_its_text_where_titles_differ_or_lack(file, title):
    train = written(file, "train.jsonl", documents(0, 6, title))
    test = written(file, "test.jsonl", documents(4, 9, "" if title else "Title {}"))
    assert numbers(train, None, test) == {0, 1, 2, 3}


def test_whole_contexts_are_left_out_where_there_are_no_documents(file):
    one, two = " ".join(f"d1w{i}" for i in range(60)), " ".join(f"d2w{i}" for i in range(60))
    train, test = file("train.jsonl", one, two), file("test.jsonl", two.replace(" ", "\n", 3) + "\n")
    assert numbers(train, None, test) == {1}
    # A context may name its documents in one split only.
    named = written(file, "named.jsonl", documents(3, 5))
    [context] = [json.loads(line)["context"] for line in Path(named).read_text().splitlines()]
    assert numbers([file("plain.jsonl", context), train], None, named) == {1, 2}
    assert numbers([named, train], None, file("plain.jsonl", context)) == {1, 2}


def test_nothing_changes_where_splits_share_no_document(file):
    train, test = written(file, "train.jsonl", documents(0, 9)), written(file, "test.jsonl", documents(9, 12))
    arguments = {"min_words": 5, "max_words": 8}
    alone = Passages(train, None, None, **arguments).examples("train")
    assert Passages(train, None, test, **arguments).examples("train") == alone


def test_files_of_later_splits_must_exist(file):
    [message] = Passages(file("a.jsonl", " ".join(WORDS)), None, "nowhere.jsonl").problems(["train"])
    assert message.startswith("dataset.test is 'nowhere.jsonl'")
