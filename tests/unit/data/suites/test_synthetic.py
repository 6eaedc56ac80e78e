"""What generated suites share: search for a length, words, free text, layout; and key-value retrieval."""

import json
import random

import pytest
from omegaconf import OmegaConf

from breviary.config.compose import load_choice
from breviary.config.keys import CONFIGS
from data.synthetic.haystack import Haystack, haystack_problems
from data.synthetic.key_values import KeyValues
from data.synthetic.layout import Piece, behind, insert, join_pieces
from data.synthetic.tokens import most_units
from data.synthetic.words import distinct, random_number, sample, words_of
from tests.unit.data.suites.words import Counter, words


def suite(name, **changes):
    settings = OmegaConf.to_container(load_choice(CONFIGS / f"dataset/{name}.yaml"))
    del settings["_target_"]
    return KeyValues(**{**settings, "test_size": 3, "train_size": 20, "counter": Counter(), **changes})


@pytest.mark.parametrize(
    "least, most, largest, expected", [(1, None, 37, 37), (5, 20, 90, 20), (5, 20, 5, 5), (6, 20, 5, None)]
)
def test_the_largest_number_of_units(least, most, largest, expected):
    asked = []
    assert most_units(lambda n: asked.append(n) or n <= largest, least, most) == expected
    assert len(asked) <= 14 and all(n >= least and (most is None or n <= most) for n in asked)


def test_words_are_those_of_ruler():
    assert len(words_of("noun")) == 6782 and len(words_of("noun", "adjective", "verb")) == 8166
    assert all(len(random_number(random.Random(i))) == 7 for i in range(50))
    draws = [sample(random.Random(i), range(6), 3) for i in range(200)]
    assert all(len(set(draw)) == 3 for draw in draws) and {n for draw in draws for n in draw} == set(range(6))
    assert (
        distinct(random.Random(0), lambda rng: str(int(rng.random() * 3)), 3) and sample(random.Random(0), [], 0) == []
    )


def test_pieces_and_their_places():
    pieces = insert([Piece("a"), Piece("b")], [0, 2], [Piece("N", "n", True), Piece("M", "m")])
    text, documents = join_pieces(pieces, " ")
    assert text == "N a b M" and [(d.title, d.start, d.end, d.is_gold) for d in documents] == [
        ("n", 0, 1, True),
        ("m", 6, 7, False),
    ]
    text, documents = behind("head ", text, documents)
    assert [text[d.start : d.end] for d in documents] == ["N", "M"]


def test_free_text(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("Mr. Smith saw a cat, e.g. a tabby. It ran! " * 200)
    text = Haystack(str(file))
    assert text.sentences(20) == ["Mr. Smith saw a cat, e.g. a tabby.", "It ran!"] * 2
    assert len(" ".join(text.sentences(5000)).split()) == 5000  # repeated
    assert haystack_problems("haystack", str(file)) == haystack_problems("haystack", "alice") == []
    file.write_text("too short")
    assert "has 2 words; it must have 1000 or more" in haystack_problems("haystack", str(file))[0]
    file.write_bytes(b"\xff" * 9000)
    assert "must be UTF-8 text" in haystack_problems("haystack", str(file))[0]


@pytest.mark.parametrize("position, asked", [(0, 0), (0.5, 37), (1, 74)])
def test_key_values_at_a_position(position, asked):
    data = suite("key_values", position=position)
    for example in data.examples("test"):
        records = json.loads(example.context.removeprefix("JSON data:\n"))
        assert len(records) == 75 and list(records).index(example.question) == asked
        assert records[example.question] == example.answers[0]
        assert [d.is_gold for d in example.documents].index(True) == asked
        lines = example.context.split("\n")
        assert len(lines) == 76 and lines[1] == f'{{"{example.documents[0].title}": "{list(records.values())[0]}",'
        text = data.instruction + example.context + data.template.replace("{question}", example.question)
        end = f'}}\n\nKey: "{example.question}"\nCorresponding value:'
        assert text.startswith("Extract the value corresponding to the specified key in the JSON object below.\n\nJSON")
        assert (text + example.answer_prefix).endswith(end)
    assert len({list(json.loads(e.context[11:])).index(e.question) for e in suite("key_values").examples("train")}) > 5


def test_key_values_of_a_length_with_worked_examples():
    data = suite("helmet_json_kv", length=800)
    for example in data.examples("test"):
        prompt = data.template.replace("{question}", example.question) + example.answer_prefix
        length = words(data.instruction, example.context, prompt) + data.max_new_tokens
        assert 790 < length <= 800
        text, *worked = example.context.split("\n\nKey: ")
        records = json.loads(text.split("\n\n")[0].removeprefix("JSON data:\n"))
        shown = [one.split("\nCorresponding value: ") for one in worked]
        assert len(shown) == 2 and all(records[json.loads(key)] == value for key, value in shown)
        assert example.question not in "".join(worked)
    with pytest.raises(ValueError, match="dataset.length is 256, which holds fewer than 6 pairs"):
        suite("helmet_json_kv", length=256, worked=5, max_new_tokens=250).examples("test")


@pytest.mark.parametrize(
    "changes, start",
    [
        ({"pairs": None}, "dataset.pairs is None, dataset.length is None; one must be set"),
        ({"length": 900}, "dataset.pairs is 75, dataset.length is 900; one must be set"),
        ({"pairs": 0}, "dataset.pairs is 0"),
        ({"position": 2}, "dataset.position is 2"),
        ({"worked": 9}, "dataset.worked is 9"),
    ],
)
def test_wrong_keys(changes, start):
    [message] = suite("key_values", **changes).problems(["test"])
    assert message.startswith(start)
