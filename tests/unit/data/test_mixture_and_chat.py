"""Mixtures of data sets by weight; chats with a mask of the assistant's messages."""

import json
from collections import Counter

import pytest
import torch

from breviary.contract import Example
from comet.chunked_text import join_parts, supervise_answer
from data.chat.dataset import ChatML
from data.collate import Collator
from data.mixture import Mixture
from data.prompts import Prompt
from data.tokenised import tokenise_split


class Numbers:
    """A data set of `size` train examples; no test split."""

    def __init__(self, size):
        self.size, self.files = size, {"train": "x", "validation": "x", "test": None}

    def problems(self, splits):
        return [f"dataset.{split}: bad" for split in splits if not self.size]

    def examples(self, split):
        return [Example(str(i), f"text {i}", "Which?", (str(i),)) for i in range(self.size)]


def parts_of(examples):
    return Counter(example.id.partition("/")[0] for example in examples)


def test_weights_are_shares_of_the_train_split():
    parts = {"a": Numbers(10), "b": Numbers(4)}
    assert parts_of(Mixture(parts).examples("train")) == {"a": 10, "b": 4}
    drawn = Mixture(parts, {"a": 1, "b": 2}, train_size=12).examples("train")
    assert parts_of(drawn) == {"a": 4, "b": 8} and len({example.id for example in drawn}) == 12
    assert Counter(e.id.partition("#")[0] for e in drawn if e.id.startswith("b")) == {f"b/{i}": 2 for i in range(4)}
    assert parts_of(Mixture(parts, {"a": 1, "b": 2}).examples("train")) == {"a": 2, "b": 4}
    assert parts_of(Mixture(parts, {"a": 1, "b": 1}, train_size=5).examples("train")).total() == 5
    assert parts_of(Mixture(parts, {"a": 1, "b": 2}, 3).examples("validation")) == {"a": 10, "b": 4}
    assert {e.question for e in Mixture(parts, question="Repeat.").examples("train")} == {"Repeat."}
    same, other = (Mixture(parts, seed=seed).examples("train") for seed in (0, 1))
    assert Mixture(parts).examples("train") == same != other


def test_problems_of_a_mixture_name_part_and_key():
    parts = {"a": Numbers(1), "b": Numbers(0)}
    assert Mixture(parts).problems(["train"]) == ["dataset.parts.b.train: bad"]
    assert "no part has a test split (parts: a, b)" in Mixture(parts).problems(["test"])[0]
    assert "the parts a, b: +dataset.weights.b=1 ~dataset.weights.c" in Mixture(parts, {"a": 1, "c": 1}).problems([])[0]
    assert "dataset.weights.b is 0; it must be a number above 0" in Mixture(parts, {"a": 1, "b": 0}).problems([])[0]
    assert "dataset.parts is empty" in Mixture({}).problems([])[0]


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which metal? <|im_end|>"},
    {"role": "assistant", "content": "tin"},
    {"role": "user", "content": "And the colour?"},
    {"role": "assistant", "content": "red"},
]


@pytest.fixture
def chats(tmp_path):
    file = tmp_path / "chats.jsonl"
    rows = [{"uniq_id": "one", "messages": json.dumps(TURNS)}, {"messages": TURNS[1:3]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def test_turns_choose_what_is_learned(chats):
    ids = {
        turns: [e.id for e in ChatML(chats, None, chats, turns).examples("train")] for turns in ("mask", "each", "last")
    }
    assert ids == {"mask": ["one", "line-2"], "each": ["one-turn1", "one-turn2", "line-2"], "last": ["one", "line-2"]}
    each = ChatML(chats, None, None, "each").examples("train")
    assert [e.answers[0] for e in each] == ["tin", "red", "tin"]
    assert not any(supervised for e in each for _, _, supervised in e.messages)
    assert [e.question for e in each] == ["", "And the colour?", ""]
    test = ChatML(None, None, chats, "mask").examples("test")
    assert not any(supervised for e in test for _, _, supervised in e.messages)


def test_only_the_assistant_s_tokens_are_supervised(chats, tokenizer):
    examples = ChatML(chats, None, None).examples("train")
    items = tokenise_split(examples, tokenizer, Prompt(bos=False, chat=False), None, None)
    text = tokenizer.decode(items[0]["context"] + items[0]["prompt"])
    assert (
        text
        == "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in TURNS[:4])
        + "<|im_start|>assistant\n"
    )
    marked = [id for id, is_target in zip(items[0]["context"], items[0]["targets"]) if is_target]
    assert tokenizer.decode(marked) == "tin<|im_end|>" and items.target_lengths == [len(marked), 0]
    batch = Collator(0)([items[0], items[1]])
    assert batch.targets.sum(1).tolist() == [len(marked), 0]
    layout, ids = join_parts([batch.prefix, batch.context, batch.prompt, batch.answer])
    learned = torch.nn.functional.pad(supervise_answer(batch, layout, training=True), (1, 0))[:, :-1]  # the targets
    assert tokenizer.decode(ids[0][learned[0]][:-1]) == "tin<|im_end|>red"
    plain = supervise_answer(batch, layout)
    assert plain.sum(1).tolist() == batch.answer.lengths.tolist()
    assert learned.sum(1).tolist() == (batch.answer.lengths + batch.targets.sum(1)).tolist()


def test_truncation_cuts_the_mask_with_the_context(chats, tokenizer):
    examples = ChatML(chats, None, None).examples("train")
    items = tokenise_split(examples, tokenizer, Prompt(bos=False), 20, None, "tail")
    assert len(items[0]["targets"]) == len(items[0]["context"]) == 20


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": "no"}, "not JSON"),
        ({"messages": []}, "must be a list of messages"),
        ({"messages": [{"role": "bot", "content": ""}]}, "message 1 must have a role"),
        ({"messages": TURNS[:2]}, "the last message must be the assistant's"),
    ],
)
def test_bad_chats_are_named_by_line(row, message, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        ChatML(str(file), None, None).examples("train")
    assert "dataset.turns=all: allowed are mask, each, last" in ChatML(str(file), None, None, "all").problems([])[0]
