"""BABILong: worlds whose answers a slow reader of their text finds too, and facts scattered in noise."""

import random
import re

import pytest
from omegaconf import OmegaConf

from breviary.config.compose import load_choice
from breviary.config.keys import CONFIGS
from data.babilong.suite import Babilong
from data.babilong.worlds import ROOMS, TASKS
from tests.unit.data.suites.words import Counter, words


def suite(task, **changes):
    cfg = OmegaConf.create({"dataset": load_choice(CONFIGS / f"dataset/babilong_{task}.yaml")})
    cfg.dataset.counter = None
    settings = OmegaConf.to_container(cfg, resolve=True)["dataset"]
    del settings["_target_"]
    return Babilong(**{**settings, "length": 1000, "test_size": 4, "train_size": 4, "counter": Counter(), **changes})


# ------------------------------------------------------------------ the slow reader: backwards through the sentences


def parse(sentence):
    """(act, person, room or object, receiver) of a sentence."""
    forms = {
        "move": r"(\w+) (?:went to|went back to|journeyed to|travelled to|moved to) the (\w+)\.",
        "get": r"(\w+) (?:got|grabbed|took|picked up) the (\w+)(?: there)?\.",
        "drop": r"(\w+) (?:dropped|put down|left|discarded) the (\w+)(?: there)?\.",
        "give": r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.",
    }
    [found] = [(act, *match.groups()) for act, form in forms.items() if (match := re.fullmatch(form, sentence))]
    return found


def room_of_person(facts, person, before):
    for act, who, room, *_ in reversed(facts[:before]):
        if act == "move" and who == person:
            return room
    return None


def room_of_object(facts, item, before):
    """The room of an object after the first `before` facts; None where the text does not state it."""
    for at in range(before - 1, -1, -1):
        act, person, thing, *_ = facts[at]
        if act == "move" or thing != item:
            continue
        if act == "drop":
            return room_of_object(facts, item, at)
        return room_of_person(facts, person, before) or room_of_object(facts, item, at)
    return None


def slow_answer(sentences, question):
    if " of " in question or question.endswith(" of?"):
        return beside(sentences, question)
    facts = [parse(sentence) for sentence in sentences]
    name = question.rstrip("?").split()
    if match := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        path = [room_of_object(facts, match[1], at) for at in range(len(facts) + 1)]
        path = [room for at, room in enumerate(path) if room and (at == 0 or room != path[at - 1])]
        return path[len(path) - 1 - path[::-1].index(match[2]) - 1]
    if re.fullmatch(r"Where is the \w+\?", question):
        return room_of_object(facts, name[-1], len(facts))
    if re.fullmatch(r"Where is \w+\?", question):
        return room_of_person(facts, name[-1], len(facts))
    forms = {
        r"What did (?P<giver>\w+) give to (?P<receiver>\w+)\?": "item",
        r"Who gave the (?P<item>\w+)\?": "giver",
        r"Who did (?P<giver>\w+) give the (?P<item>\w+) to\?": "receiver",
        r"Who gave the (?P<item>\w+) to (?P<receiver>\w+)\?": "giver",
        r"Who received the (?P<item>\w+)\?": "receiver",
    }
    [(fixed, asked)] = [(m.groupdict(), ask) for form, ask in forms.items() if (m := re.fullmatch(form, question))]
    gifts = [dict(zip(("giver", "item", "receiver"), fact[1:])) for fact in facts if fact[0] == "give"]
    return [gift for gift in gifts if fixed.items() <= gift.items()][-1][asked]


OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def beside(sentences, question):
    known = set()
    for sentence in sentences:
        one, side, two = re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", sentence).groups()
        known |= {(one, side, two), (two, OPPOSITE[side], one)}
    if match := re.fullmatch(r"What is (\w+) of the (\w+)\?", question):
        [answer] = [one for one, side, two in known if (side, two) == match.groups()]
    else:
        one, side = re.fullmatch(r"What is the (\w+) (\w+) of\?", question).groups()
        [answer] = [two for first, where, two in known if (first, where) == (one, side)]
    return answer


@pytest.mark.parametrize("task", TASKS)
def test_a_slow_reader_of_the_text_agrees(task):
    answers = set()
    for seed in range(30):
        story = TASKS[task](random.Random(seed))
        assert len(story.questions) == (1 if task == "qa4" else 5)
        for asked in story.questions:
            assert slow_answer(story.statements[: asked.after], asked.text) == asked.answer, (seed, asked)
            assert asked.answer not in asked.text and asked.support and asked.support[-1] < asked.after
            answers.add(asked.answer)
    assert len(answers) >= 6


def test_the_supporting_facts_suffice():
    for task in ("qa1", "qa2", "qa4", "qa5"):
        for seed in range(20):
            story = TASKS[task](random.Random(seed))
            for asked in story.questions:
                assert slow_answer([story.statements[i] for i in asked.support], asked.text) == asked.answer


def test_people_get_only_what_is_there():
    """A story is one course of the world: rooms of people and objects followed forwards."""
    for seed in range(10):
        rooms = dict(zip(("Bill", "Fred", "Jeff", "Mary"), ("bedroom", "kitchen", "garden", "hallway")))
        places, holders = {"apple": "kitchen", "milk": "kitchen", "football": "garden"}, {}
        for act, person, thing, *receiver in map(parse, TASKS["qa5"](random.Random(seed)).statements):
            if act == "move":
                assert thing in ROOMS and thing != rooms[person]
                rooms[person] = thing
                places |= {item: thing for item, holder in holders.items() if holder == person}
            elif act == "get":
                assert thing not in holders and places[thing] == rooms[person]
                holders[thing] = person
            else:
                assert holders.pop(thing) == person
                if act == "give":
                    assert rooms[receiver[0]] == rooms[person] and receiver[0] != person
                    holders[thing] = receiver[0]


# ------------------------------------------------------------------ the data set


@pytest.mark.parametrize("task", TASKS)
def test_facts_are_scattered_in_noise_of_the_stated_length(task):
    data = suite(task)
    examples = data.examples("test")
    for example in examples:
        assert words(example.context) == 700
        facts = [example.context[d.start : d.end] for d in example.documents]
        assert slow_answer(facts, example.question) == example.answers[0] and len(facts) <= 700 // 8
        assert any(d.is_gold for d in example.documents)
    assert examples == suite(task).examples("test") != data.examples("train")
    assert len({example.context[:60] for example in examples}) == 4


def test_the_prompt_of_qa1_without_noise():
    data = suite("qa1", length=0, noise="alice", test_size=1)
    [example] = data.examples("test")
    facts = " ".join(example.context[d.start : d.end] for d in example.documents)
    assert example.context == facts
    text = data.instruction + example.context + data.template.replace("{question}", example.question)
    assert text.startswith(
        "I will give you context with the facts about positions of different persons hidden in some "
    )
    assert "question.\n\n<example>\nCharlie went to the hallway." in text and "</example>\n\n<example>\nAlan" in text
    end = f"Do not write anything else after that.\n\n<context>\n{facts}\n</context>\n\nQuestion: {example.question}"
    assert text.endswith(end) and example.answer_prefix == ""


@pytest.mark.parametrize(
    "changes, start",
    [
        ({"task": None}, "dataset.task is None; choose a task of BABILong"),
        ({"length": 100}, "dataset.length is 100; it must be a whole number of 500 or more"),
        ({"noise": "no.txt"}, "dataset.noise is 'no.txt', which is not a file"),
        ({"test_size": 0}, "dataset.test_size is 0"),
    ],
)
def test_wrong_keys(changes, start):
    data = suite("qa1")
    vars(data).update(changes)
    [message] = data.problems(["test"])
    assert message.startswith(start)
