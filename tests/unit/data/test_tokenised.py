"""Tokenised splits: truncation, its statistics, and the cache on disk."""

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from breviary.backbones.tiny import tiny_tokenizer
from breviary.contract import Document, Example
from data.collate import Collator
from data.prompts import Prompt
from data.store.examples import examples_hash
from data.tokenised import _sha256, _truncate, tokenise_split, tokenizer_hash


class Words:
    """Enough of a tokenizer for `_truncate`: token i of a context is its i-th word."""

    def __init__(self, context: str) -> None:
        self.words = context.split()

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)


def truncate(
    context: str, limit: int | None, truncation: str, answers: tuple[str, ...] = ("?",), evidence: str | None = None
) -> dict:
    ids = list(range(len(context.split())))
    marks = None if evidence is None else [mark == "x" for mark in evidence]
    pieces = {"context": ids, "evidence": marks, "starts": ids, "ends": ids, "prompt": [1, 2, 3], "answer": [4]}
    return _truncate(pieces, Example("a", context, "q", answers), Words(context), limit, truncation)


@pytest.mark.parametrize(
    ("limit", "truncation", "remaining"),
    [
        (4, "head", [0, 1, 2, 3]),
        (4, "tail", [6, 7, 8, 9]),
        (4, "middle", [0, 1, 8, 9]),
        (5, "middle", [0, 1, 2, 8, 9]),
        (1, "middle", [0]),
        (1, "tail", [9]),
        (9, "middle", [0, 1, 2, 3, 4, 6, 7, 8, 9]),
    ],
)
def test_truncation_keeps_head_tail_or_both_ends(limit, truncation, remaining):
    out = truncate("a b c d e f g h i j", limit, truncation, evidence="x.x.x.x.x.")
    assert out["context"] == remaining and out["evidence"] == [i % 2 == 0 for i in remaining]
    assert out["starts"] == out["ends"] == remaining
    assert out["length"] == limit and out["cut"]
    assert out["prompt"] == [1, 2, 3] and out["answer"] == [4]


@pytest.mark.parametrize("limit", [10, 11, None])
def test_a_context_within_the_limit_is_not_truncated(limit):
    out = truncate("a b c d e f g h i j", limit, "middle", evidence="xxxxxxxxxx")
    assert out["context"] == list(range(10)) and out["length"] == 10 and not out["cut"] and not out["gold_lost"]


@pytest.mark.parametrize(
    ("evidence", "limit", "truncation", "lost"),
    [
        ("....xx....", 4, "middle", True),
        ("xx........", 4, "middle", False),
        ("........xx", 4, "middle", False),
        ("..xx......", 3, "head", False),  # one token of the passage remains
        ("..xx......", 2, "head", True),
        ("xx..xx....", 4, "middle", True),  # one passage of two is removed
        ("xx......xx", 4, "middle", False),
        ("......xx..", 4, "tail", False),
        (".....xx...", 4, "tail", False),
        ("....xx....", 4, "tail", True),
        ("..........", 4, "tail", False),
        ("xxxxxxxxxx", 1, "tail", False),
    ],
)
def test_gold_is_lost_where_a_whole_passage_is_removed(evidence, limit, truncation, lost):
    assert truncate("a b c d e f g h i j", limit, truncation, evidence=evidence)["gold_lost"] == lost


@pytest.mark.parametrize(
    ("answers", "lost"),
    [
        (("E",), True),  # in the removed middle, in any case
        (("a",), False),
        (("e", "j"), False),  # one reference remains
        (("b i",), False),  # adjacent only after truncation: not in the context
        (("b c",), True),  # split by truncation
        (("z",), False),  # not in the context, so it cannot be lost
    ],
)
def test_without_gold_marks_every_occurrence_of_an_answer_counts(answers, lost):
    assert truncate("a b c d e f g h i j", 4, "middle", answers=answers)["gold_lost"] == lost


def test_an_answer_that_truncation_creates_does_not_count():
    assert truncate("a su q sun r t n b", 4, "middle", answers=("sun",))["gold_lost"]  # "a su" and "n b" remain


def examples() -> list[Example]:
    fact = "The sun is yellow."
    filler = " The moon is white." * 20
    return [
        Example("short", fact, "What is the sun?", ("yellow",), (Document("Sun", 0, len(fact), True),)),
        Example("first", fact + filler, "What is the sun?", ("yellow",), (Document("Sun", 0, len(fact), True),)),
        Example(
            "last",
            filler + fact,
            "What is the sun?",
            ("yellow",),
            (Document("Sun", len(filler), len(filler) + len(fact), True),),
        ),
        Example("mid", filler + fact + filler, "What is the sun?", ("yellow",)),
        Example("unmarked", filler, "What is the moon?", ("white",)),
    ]


@pytest.mark.parametrize(("truncation", "gold_lost"), [("head", 2), ("tail", 2), ("middle", 1)])
def test_statistics_of_a_split(truncation, gold_lost):
    data = tokenise_split(examples(), tiny_tokenizer(), Prompt(), 20, None, truncation)
    assert (data.num_truncated, data.num_gold_lost) == (4, gold_lost)
    assert data.lengths == [len(data[i]["context"]) for i in range(5)] and max(data.lengths) == 20 > data.lengths[0]
    assert data.report().endswith(
        f"20 at most; 4 contexts truncated, {gold_lost} lost their gold; data {data.data_hash[:12]}"
    )
    assert "\n" not in data.report() and data.report().startswith("5 examples, ")


def test_an_item_is_the_pieces_and_the_example():
    tokenizer, prompt = tiny_tokenizer(), Prompt(instruction="Read. ")
    data = tokenise_split(examples(), tokenizer, prompt, None, None)
    assert len(data) == 5 and data.num_truncated == data.num_gold_lost == 0
    for i, example in enumerate(examples()):
        assert data[i] == {**prompt.tokenise(example, tokenizer), "example": example}
    assert data[0]["evidence"] == [True] * data.lengths[0] and data[4]["evidence"] is None


def test_questions_and_answers_are_never_truncated():
    tokenizer = tiny_tokenizer()
    complete, truncated = (tokenise_split(examples(), tokenizer, Prompt(), limit, None) for limit in (None, 1))
    for i in range(5):
        assert len(truncated[i]["context"]) == 1
        assert all(complete[i][k] == truncated[i][k] for k in ("prefix", "query", "prompt", "answer"))


@pytest.mark.parametrize(
    ("limit", "truncation", "message"),
    [
        (0, "middle", "max_context_tokens is 0; it must be 1 or more, or null"),
        (-5, "middle", "max_context_tokens is -5"),
        (5, "left", "truncation is 'left'; allowed: head, tail, middle"),
    ],
)
def test_wrong_limits_and_truncations(limit, truncation, message):
    with pytest.raises(ValueError, match=message):
        tokenise_split(examples(), tiny_tokenizer(), Prompt(), limit, None, truncation)


def folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.name.startswith("tokenised-") and p.is_dir())


class Fails(Prompt):
    """A prompt that must not be used."""

    def tokenise(self, example, tokenizer):
        raise AssertionError(f"tokenised again: {example.id}")


def test_a_cached_split_is_loaded_and_not_tokenised_again(tmp_path):
    cache = tmp_path / "not" / "there" / "yet"
    made = tokenise_split(examples(), tiny_tokenizer(), Prompt(), 20, str(cache))
    assert len(folders(cache)) == 1 and folders(cache)[0].startswith("tokenised-")
    with pytest.raises(AssertionError, match="tokenised again: short"):
        tokenise_split(examples(), tiny_tokenizer(), Fails(), 20, None)
    read = tokenise_split(examples(), tiny_tokenizer(), Fails(), 20, str(cache))
    assert [read[i] for i in range(5)] == [made[i] for i in range(5)]
    assert (read.lengths, read.num_truncated, read.num_gold_lost, read.report()) == (
        made.lengths,
        made.num_truncated,
        made.num_gold_lost,
        made.report(),
    )


def test_every_input_that_changes_the_result_changes_the_folder(tmp_path):
    def save(items=None, tokenizer=None, prompt=None, limit=20, truncation="middle"):
        prompt = prompt or Prompt()
        tokenise_split(items or examples(), tokenizer or tiny_tokenizer(), prompt, limit, str(tmp_path), truncation)
        return len(folders(tmp_path))

    chatty = tiny_tokenizer()
    chatty.chat_template = "{{ messages[0].content }}"
    changed = [replace(examples()[0], question="Why?"), *examples()[1:]]
    assert [
        save(),
        save(),
        save(limit=21),
        save(limit=None),
        save(limit=None, truncation="head"),
        save(truncation="head"),
        save(prompt=Prompt(bos=False)),
        save(items=changed),
        save(tokenizer=chatty),
    ] == [1, 1, 2, 3, 3, 4, 5, 6, 7]


def test_data_hash_depends_on_the_examples_only():
    tokenizer = tiny_tokenizer()
    one = tokenise_split(examples(), tokenizer, Prompt(), 20, None).data_hash
    assert one == tokenise_split(examples(), tokenizer, Prompt(bos=False), None, None).data_hash
    assert one == examples_hash(examples()) and len(one) == 64
    assert one != examples_hash(examples()[::-1])
    assert one != examples_hash([replace(e, id=e.id + "x") for e in examples()])


def test_a_compressed_context_is_tokenised_and_counts_in_the_hash_only_where_it_is_set(tmp_path):
    """The hashes of data without the field are those of earlier versions."""
    plain, tokenizer = examples(), tiny_tokenizer()
    rows = [asdict(example) for example in plain]
    for row in rows:
        for name in ("compressed_context", "answer_prefix", "choices", "messages"):
            row.pop(name, None)
    assert examples_hash(plain) == _sha256(rows)
    some = [replace(plain[0], compressed_context="red blue"), *plain[1:]]
    assert examples_hash(some) != examples_hash(plain)
    for _ in range(2):  # the second time from the cache
        items = tokenise_split(some, tokenizer, Prompt(), None, str(tmp_path))
        ids = tokenizer("red blue", add_special_tokens=False)["input_ids"]
        assert items.compressed_lengths == [len(ids)] + [0] * (len(plain) - 1)
        batch = Collator(0)([items[0], items[1]])
        assert batch.compressed.ids[0].tolist() == ids and batch.compressed.mask.sum(1).tolist() == [len(ids), 0]
    assert tokenise_split(plain, tokenizer, Prompt(), None, None).compressed_lengths == [0] * len(plain)
    assert Collator(0)([tokenise_split(plain, tokenizer, Prompt(), None, None)[0]]).compressed is None


def test_options_and_answer_prefixes_are_stored_and_count_in_the_hash(tmp_path):
    plain, tokenizer = examples(), tiny_tokenizer()
    prefixed = [replace(plain[0], answer_prefix="So:"), *plain[1:]]
    some = [replace(plain[0], choices=("yellow", "blue and white")), *plain[1:]]
    assert len({examples_hash(data) for data in (plain, prefixed, some)}) == 3
    for _ in range(2):  # the second time from the cache
        items = tokenise_split(some, tokenizer, Prompt(), None, str(tmp_path))
        ids = [tokenizer(f" {choice}", add_special_tokens=False)["input_ids"] for choice in some[0].choices]
        assert items.choice_lengths == [len(ids[1])] + [0] * (len(plain) - 1)
        batch = Collator(0)([items[1], items[0]]).rows([1, 0])
        assert [option.ids[0][option.mask[0]].tolist() for option in batch.choices] == ids
        assert [option.lengths.tolist() for option in batch.choices] == [[len(ids[0]), 0], [len(ids[1]), 0]]
    without = tokenise_split(prefixed, tokenizer, Prompt(), None, None)
    assert without.choice_lengths == [0] * len(plain) and Collator(0)([without[0]]).choices is None
    row = items[0]
    assert items.other_lengths[0] == len(row["prefix"]) + len(row["prompt"]) + max(len(row["answer"]), len(ids[1]))


def test_tokenizer_hash_is_independent_of_earlier_calls():
    tokenizer = tiny_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=5)
    assert tokenizer_hash(tokenizer) == before == tokenizer_hash(tiny_tokenizer())
    tokenizer.add_tokens(["zebra"])
    assert tokenizer_hash(tokenizer) != before


def test_a_folder_of_a_concurrent_process_is_used(tmp_path, monkeypatch):
    rename = os.rename

    def late(source, target):
        shutil.copytree(source, target)  # another process was faster
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    data = tokenise_split(examples(), tiny_tokenizer(), Prompt(), 20, str(tmp_path))
    assert len(data) == 5 and len(folders(tmp_path)) == 1


def test_a_failed_rename_is_an_error_and_leaves_no_folder(tmp_path, monkeypatch):
    def fail(source, target):
        raise PermissionError(f"no: {target}")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ValueError, match=f"^{tmp_path}: tokenised data cannot be written there .*set paths.cache"):
        tokenise_split(examples(), tiny_tokenizer(), Prompt(), 20, str(tmp_path))
    assert folders(tmp_path) == []
