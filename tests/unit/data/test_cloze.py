"""Cloze questions: the answer is a span of one passage and occurs nowhere else."""

import json
import re

import pytest

from data.cloze import BLANK, Cloze
from data.cloze_spans import count_occurrences
from data.jsonl import join_passages

SYLLABLES = ["Ka", "Ve", "Dru", "Qui", "Zor", "Mel", "Tas", "Bri", "Non", "Pel"]


def name(i):
    return SYLLABLES[i // 100 % 10] + (SYLLABLES[i // 10 % 10] + SYLLABLES[i % 10]).lower()


def document(i):
    """Document i: two sentences with names that no other document has."""
    text = (
        f"The river {name(3 * i)} flows past the old town of {name(3 * i + 1)} and then on to the sea, "
        "as all rivers do. "
        f"In those days it was crossed by a wooden bridge that {name(3 * i + 2)} had built for the miller."
    )
    return {"title": f"River {i}", "text": text, "is_gold": i % 3 == 0}


def row(numbers, **changed):
    documents = [document(i) for i in numbers]
    context = "\n\n".join(f"Document [{n}](Title: {d['title']}) {d['text']}" for n, d in enumerate(documents, 1))
    return {"context": context, "question": "Q?", "answers": ["A"], "documents": documents, **changed}


@pytest.fixture
def file(tmp_path):
    """file(name, *rows) -> the path of a JSONL file with these rows."""

    def write(name, *rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


@pytest.fixture
def train(file):
    return file("train.jsonl", row(range(0, 8)), row(range(6, 16)), row(range(16, 24)))


def cloze(train, validation=None, test=None, split="train", **arguments):
    settings = {"passages": 4, "min_words": 10, "rarity": 0.0, **arguments}
    return Cloze(train, validation, test, **settings).examples(split)


def passages(example):
    return {d.title: example.context[d.start : d.end] for d in example.documents}


def test_the_answer_occurs_once_in_the_context_where_the_question_quotes_it(train):
    examples = cloze(train)
    assert len(examples) == 24 and len({e.id for e in examples}) == 24
    for example in examples:
        [gold] = [d for d in example.documents if d.is_gold]
        [answer] = example.answers
        assert len(example.documents) == len(passages(example)) == 4
        assert count_occurrences(answer, example.context) == 1 and answer not in example.question
        quoted = example.question.removeprefix("which words are missing: ")
        assert quoted.count(BLANK) == 1 and quoted.replace(BLANK, answer) in example.context[gold.start : gold.end]
    assert {[d.is_gold for d in e.documents].index(True) for e in examples} == {0, 1, 2, 3}  # random order


def test_number_of_quoted_words_is_in_range_unless_the_sentence_ends(train):
    for example in cloze(train, min_window=2, max_window=3):
        before, after = example.question.removeprefix("which words are missing: ").split(BLANK)
        [passage] = [text for text in passages(example).values() if example.answers[0] in text]
        for words, at_the_end in (
            (before.split(), re.search(rf"(^|\. ){re.escape(before)}{example.answers[0]}", passage)),
            (re.sub(r"^\W+", "", after).split(), after.endswith(".")),
        ):
            assert len(words) <= 3 and (len(words) >= 2 or at_the_end)


def test_answers_of_several_words_and_rare_words(file):
    text = "the red King Karl August of Velkeld and his quiet brother had never seen a harbour before that very day"
    texts = file(
        "a.jsonl", *[row([], context=f"{text.replace('Karl', name(i))} {name(i + 50)}", documents=[]) for i in range(4)]
    )
    assert {len(e.answers[0].split()) for e in cloze(texts)} <= {1, 3}
    lower = file(
        "b.jsonl",
        *[
            row(
                [],
                context=f"a {'x' * (7 + i)} sat on the old and very long bank of our small and old river",
                documents=[],
            )
            for i in range(4)
        ],
    )
    assert sorted(e.answers[0] for e in cloze(lower)) == ["x" * (7 + i) for i in range(4)]


def test_near_distractors_come_from_the_same_context(train):
    def near(example):  # number of distractors from the first context that has the gold passage
        [gold] = [int(d.title.split()[1]) for d in example.documents if d.is_gold]
        group = next(group for group in (range(0, 8), range(8, 16), range(16, 24)) if gold in group)
        return sum(int(d.title.split()[1]) in group for d in example.documents) - 1

    assert {near(e) for e in cloze(train, near=3)} == {3}
    assert min(near(e) for e in cloze(train, near=1)) == 1
    assert sum(near(e) for e in cloze(train, near=0)) < 24 * 2


def test_examples_depend_on_the_seed_only(train):
    assert cloze(train) == cloze(train) != cloze(train, seed=1)
    assert cloze(train, train_size=5) == cloze(train)[:5]


def test_splits_share_no_document(file, train):
    validation = file("validation.jsonl", row(range(12, 20)))
    test = file("test.jsonl", row(range(2, 6)), row(range(18, 22)))
    titles = {
        split: {d.title for e in cloze(train, validation, test, split) for d in e.documents}
        for split in ("train", "validation", "test")
    }
    assert titles["test"] == {f"River {i}" for i in (*range(2, 6), *range(18, 22))}
    assert titles["validation"] == {f"River {i}" for i in range(12, 18)}
    assert titles["train"] == {f"River {i}" for i in (0, 1, *range(6, 12), 22, 23)}
    with pytest.raises(ValueError, match="documents of later splits are left out"):
        cloze(train, None, train)


def test_documents_without_titles_are_known_by_their_text(file):
    def untitled(numbers):
        return row(numbers, documents=[document(i) | {"title": ""} for i in numbers], context="")

    rows = [untitled(range(0, 12)), untitled(range(8, 16))]
    for one in rows:
        one["context"] = join_passages(one["documents"])[0]
    examples = cloze(file("train.jsonl", rows[0]), None, file("test.jsonl", rows[1]))
    texts = {text for e in examples for text in passages(e).values()}
    assert texts and texts <= {document(i)["text"] for i in range(8)}


def test_texts_without_documents_are_cut_into_passages(file):
    texts = [" ".join(document(i)["text"] for i in range(at, at + 5)) for at in (0, 5)]
    examples = cloze(
        file("a.jsonl", *[row([], context=text, documents=[]) for text in texts]), max_words=20, passages=3
    )
    assert {len(text.split()) for e in examples for text in passages(e).values()} <= set(range(10, 21))
    assert all(re.fullmatch(r"part \d+", d.title) for e in examples for d in e.documents)
    assert all(text in " ".join(texts) for e in examples for text in passages(e).values())


@pytest.mark.parametrize(
    "arguments, key",
    [
        ({"passages": 0}, "passages"),
        ({"near": -1}, "near"),
        ({"min_words": 0}, "min_words"),
        ({"max_words": 5}, "max_words"),
        ({"max_span": 0}, "max_span"),
        ({"min_window": 0}, "min_window"),
        ({"max_window": 1}, "max_window"),
        ({"rarity": 1.5}, "rarity"),
        ({"train_size": 0}, "train_size"),
        ({"question": "Which?"}, "question"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_arguments_are_reported_with_their_key(train, arguments, key):
    [message] = Cloze(train, None, None, **{"min_words": 10, **arguments}).problems(["train"])
    assert message.startswith(f"dataset.{key} is ") and "for example" in message


def test_files_of_later_splits_must_exist(train):
    [message] = Cloze(train, None, "nowhere.jsonl").problems(["train"])
    assert message.startswith("dataset.test is 'nowhere.jsonl'")


def test_texts_without_a_question_are_an_error(file):
    with pytest.raises(ValueError, match="dataset.passages=4"):
        cloze(file("a.jsonl", row(range(3))))
