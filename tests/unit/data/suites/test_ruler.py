"""RULER: prompts as the suite has them, answers that can be found, lengths, places of needles."""

import json
import random
import re
from collections import Counter as Count

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from breviary.config.compose import load_choice
from breviary.config.keys import CONFIGS
from data.metrics import Scorer
from data.ruler.frequencies import occurrences
from data.ruler.needles import DEPTHS, NOISE, Needles
from data.ruler.suite import Ruler
from data.ruler.tasks import TASKS
from data.synthetic.haystack import haystack
from tests.unit.data.suites.words import Counter, words

TAIL = " ".join(["And much else."] * 12)
ARTICLES = [
    {
        "paragraphs": [
            {
                "context": f"{town} lies on the river {river}. {TAIL}",
                "qas": [
                    {"question": f"On which river is {town}?", "answers": [{"text": river}], "is_impossible": False},
                    {"question": f"Who rules {town}?", "answers": [], "is_impossible": True},
                ],
            }
            for town, river in towns
        ]
    }
    for towns in ([("Ulm", "Danube"), ("Passau", "Inn")], [("Kent", "Medway")], [("Bonn", "Rhine"), ("Trier", "Mosel")])
]
HOTPOT = [
    {
        "question": f"Which is older, {a} or {b}?",
        "answer": a,
        "supporting_facts": [[a, 0], [b, 0]],
        "context": [[name, [f"{name} is a town.", " It is old."]] for name in (a, b, c)],
    }
    for a, b, c in (("Ulm", "Kent", "Bonn"), ("Trier", "Passau", "Lyon"))
]


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    file = tmp_path_factory.mktemp("squad") / "dev-v2.0.json"
    file.write_text(json.dumps({"data": ARTICLES}))
    return str(file)


def suite(task, documents=None, **changes):
    """A task with the keys of its YAML, counting words."""
    cfg = OmegaConf.create(
        {"paths": {"data": "nowhere"}, "dataset": load_choice(CONFIGS / f"dataset/ruler_{task}.yaml")}
    )
    cfg.dataset.counter = None
    settings = OmegaConf.to_container(cfg, resolve=True)["dataset"]
    del settings["_target_"]
    if TASKS[task].reads == "documents":
        settings["documents"] = documents
    return Ruler(**{**settings, "length": 2048, "test_size": 3, "train_size": 2, "counter": Counter(), **changes})


def prompt(data, example):
    return (
        data.instruction
        + example.context
        + data.template.replace("{question}", example.question)
        + example.answer_prefix
    )


@pytest.mark.parametrize("task", TASKS)
def test_examples_fit_their_length_and_state_their_answers(task, squad):
    data = suite(task, squad)
    examples = data.examples("test")
    assert len(examples) == 3 and len({example.id for example in examples}) == 3
    for example in examples:
        length = words(prompt(data, example)) + data.max_new_tokens
        assert (task.startswith("qa") or length > 2048 - 510) and length <= 2048, length
        assert all(answer in example.context for answer in example.answers)
        for document in example.documents:
            assert example.context[document.start : document.end].strip()
        assert Scorer(data.metrics)(" ".join(example.answers), example.answers, example)[data.metrics[0]] == 1
    assert examples == suite(task, squad).examples("test")
    assert suite(task, squad, test_size=2, seed=1).examples("test")[0] != examples[0]
    if not task.startswith("qa"):  # whose questions are those of a file
        assert data.examples("train")[0].context != examples[0].context


def test_the_prompt_of_one_needle():
    data = suite("niah_single_1", test_size=1)
    [example] = data.examples("test")
    [needle] = [document for document in example.documents if document.is_gold]
    key, [value] = needle.title.split(": ")[0], example.answers
    assert re.fullmatch(r"[\w ]+-[\w -]+", key) and re.fullmatch(r"[1-9]\d{6}", value)
    text = f"One of the special magic numbers for {key} is: {value}."
    lines = example.context.split("\n")
    assert lines.count(NOISE) == len(lines) - 1 and lines[len(example.context[: needle.start].split("\n")) - 1] == text
    assert prompt(data, example) == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
        f"the number afterwards.\n{example.context}\nWhat is the special magic number for {key} mentioned in the "
        f"provided text? The special magic number for {key} mentioned in the provided text is"
    )


def test_the_prompt_of_four_needles():
    data = suite("niah_multiquery", test_size=1)
    [example] = data.examples("test")
    gold = {document.title.split(": ")[1]: document.title.split(": ")[0] for document in example.documents}
    a, b, c, d = (gold[answer] for answer in example.answers)
    assert data.instruction.startswith("Some special magic numbers are hidden within the following text. Make sure")
    end = f"for {a}, {b}, {c}, and {d} mentioned in the provided text"
    assert example.question == f"What are all the special magic numbers {end}?"
    assert example.answer_prefix == f" The special magic numbers {end} are"


@pytest.mark.parametrize("keys, values, gold", [(1, 1, 1), (4, 1, 1), (1, 4, 4)])
def test_needles_of_free_text_stand_at_distinct_depths(keys, values, gold):
    text = haystack("alice")
    sentences = text.sentences(800)
    places = {len(sentences) * depth // 100 for depth in DEPTHS}
    ends = {len(" ".join(sentences[:place])): place for place in places}
    found = Count()
    for seed in range(12):
        draft = Needles(text, keys=keys, values=values).draft(random.Random(seed), 800, 0)
        removed, taken = "", 0
        for document in draft.documents:  # each with one blank, behind it or, at the end, before it
            removed += draft.context[taken : document.start]
            taken = document.end + 1
            found[ends[len(removed.rstrip())]] += 1
        assert (removed + draft.context[taken:]).strip() == " ".join(sentences)
        assert sum(document.is_gold for document in draft.documents) == gold
    assert len(found) > 8 and DEPTHS[0] == 0 and DEPTHS[-1] == 100 and DEPTHS[1] == 3


def test_other_needles_differ_from_the_asked_one():
    [example] = suite("niah_multikey_3", test_size=1).examples("test")
    lines = example.context.split("\n")
    assert len(lines) == len(set(lines)) > 100 and sum(example.answers[0] in line for line in lines) == 1
    assert all(re.fullmatch(r"One of the special magic uuids for [\w-]{36} is: [\w-]{36}\.", line) for line in lines)


def test_a_chain_of_variables():
    data = suite("vt")
    worked = set()
    for example in data.examples("test"):
        shown, blank, rest = example.context.partition("\n\nMemorize")
        *_, own = rest.partition("\n\n")
        statements = [example.context[d.start : d.end] for d in example.documents]
        names = list(example.answers)
        value = statements[0].split()[-1]
        assert all(re.fullmatch("[A-Z]{5}", name) for name in names) and len(set(names)) == 5
        expected = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in zip(names, names[1:]))]
        assert statements == expected and [line for line in own.split("\n") if line != NOISE] == expected
        assert f"assigned the value {value} in" in example.question and 10000 <= int(value) <= 99998
        assert blank and shown.startswith("Memorize and track") and words(shown) + 30 <= 500
        answer = shown.rpartition("they are:  ")[2].split()
        assert len(answer) == 5 and all(len(name) == 3 and f"VAR {name} = " in shown for name in answer)
        worked.add(tuple(answer))
    assert len(worked) == 3


@pytest.mark.parametrize("length, often, seldom", [(4096, (10, 30), (3, 3)), (2048, (3, 6), (1, 1))])
def test_common_words(length, often, seldom):
    [example] = suite("cwe", length=length, test_size=1).examples("test")
    lists = [Count(re.findall(r"\d+\. ([^\d]+?)(?= \d|\n|$)", part.split("\nQuestion")[0])) for part in
             example.context.split("appear most often.\n")[1:]]  # fmt: skip
    for counts, common, uncommon in zip(lists, often, seldom, strict=True):
        assert sorted(set(counts.values())) == [uncommon, common] and list(counts.values()).count(common) == 10
    assert {word for word, count in lists[1].items() if count == often[1]} == set(example.answers)
    assert example.context.split("list are:")[1].startswith("1. ")


def test_frequent_words():
    assert occurrences(1000, 5)[:4] == [607, 151, 67, 37]
    [example] = suite("fwe", test_size=1).examples("test")
    ranked = [word for word, _ in Count(example.context.split()).most_common(4)]
    assert ranked[0] == "..." and set(ranked[1:]) == set(example.answers)


def test_questions_of_squad_stand_among_paragraphs_of_their_article(squad):
    examples = suite("qa_1", squad, length=256, test_size=5).examples("test")
    assert [example.answers for example in examples] == [("Danube",), ("Inn",), ("Medway",), ("Rhine",), ("Mosel",)]
    first = examples[0]
    assert re.match(r"Document 1:\n.*\.\n\nDocument 2:\n", first.context)
    [gold] = [document for document in first.documents if document.is_gold]
    assert first.context[gold.start : gold.end] == f"Ulm lies on the river Danube. {TAIL}"
    assert "Passau" in first.context and len(first.documents) < 5
    with pytest.raises(ValueError, match="dataset.documents has 5 questions, but example 6 is needed"):
        suite("qa_1", squad, test_size=6).examples("test")


def test_questions_of_hotpotqa_and_of_our_files(tmp_path):
    file = tmp_path / "hotpot.json"
    file.write_text(json.dumps(HOTPOT))
    examples = suite("qa_2", str(file), test_size=2).examples("test")
    assert examples[0].answers == ("Ulm",) and examples[0].question == "Which is older, Ulm or Kent?"
    gold = {d.title for d in examples[0].documents if d.is_gold}
    assert gold == {"Ulm", "Kent"} and "Ulm\nUlm is a town. It is old." in examples[0].context
    rows = [
        {
            "id": str(number),
            "context": "\n\n".join(
                f"Document [{i}](Title: {t}) {''.join(s)}" for i, (t, s) in enumerate(row["context"], 1)
            ),
            "question": row["question"],
            "answers": [row["answer"]],
            "documents": [
                {"title": t, "text": "".join(s), "is_gold": [t, 0] in row["supporting_facts"]}
                for t, s in row["context"]
            ],
        }
        for number, row in enumerate(HOTPOT)
    ]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert suite("qa_2", str(own), test_size=2).examples("test") == examples
    file.write_text('{"data": 1}')
    with pytest.raises(ValueError, match="not read .* it must be SQuAD"):
        suite("qa_2", str(file)).examples("test")


@pytest.mark.parametrize(
    "task, changes, start",
    [
        ("vt", {"task": "niah"}, "dataset.task is 'niah'; choose a task of RULER with its prompt"),
        ("vt", {"length": 10}, "dataset.length is 10; it must be a whole number of 256 or more"),
        ("vt", {"seed": -1}, "dataset.seed is -1"),
        ("vt", {"test_size": 0}, "dataset.test_size is 0"),
        ("vt", {"haystack": "alice"}, "dataset.haystack is 'alice', but task vt reads none; set dataset.haystack=null"),
        ("niah_single_2", {"haystack": None}, "dataset.haystack is null"),
        ("niah_single_2", {"haystack": "no/book.txt"}, "dataset.haystack is 'no/book.txt', which is not a file"),
        ("qa_1", {"documents": "no/dev-v2.0.json"}, "dataset.documents is 'no/dev-v2.0.json', which is not a file"),
    ],
)
def test_wrong_keys(task, changes, start):
    data = suite(task)
    vars(data).update(changes)
    [message] = data.problems(["test"])
    assert message.startswith(start)
    with pytest.raises(ValueError, match=re.escape(message)):
        data.examples("test")
    for suggestion in re.findall(r"dataset[.\w]*=[^\s;,]+", message):
        OverridesParser.create().parse_override(suggestion)


def test_a_length_below_the_shortest_example():
    with pytest.raises(ValueError, match="dataset.length is 256; the shortest example of task vt takes .*length=4096"):
        suite("vt", length=256).examples("test")
