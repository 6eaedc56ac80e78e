"""The small worlds of bAbI's tasks 1 to 5: who goes where, takes, drops and gives what, and the questions.

Each function returns a story: its statements, and questions that stand behind some of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from breviary.runtime.draws import choose, random_below, shuffled

ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")
PEOPLE = ("Mary", "John", "Sandra", "Daniel")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
START = ("bedroom", "kitchen", "garden", "hallway")  # of the people, in their order; no statement names it
OBJECT_START = {"apple": "kitchen", "milk": "kitchen", "football": "garden"}

MOVES = ("went to", "went back to", "journeyed to", "travelled to", "moved to")
GETS = ("got", "grabbed", "took", "picked up")
DROPS = ("dropped", "put down", "left", "discarded")
GIVES = ("gave", "handed", "passed")
QUESTIONS = 5  # of a story

AXES = (("north", "south"), ("east", "west"))
# (form, share of the published files); the last one has the rest, .15
GIVE_FORMS = (("what", 0.33), ("giver", 0.18), ("receiver_of", 0.17), ("giver_to", 0.17), ("receiver", 1.0))


@dataclass(frozen=True)
class StoryQuestion:
    """A question: behind how many statements it stands, its text and answer, and the statements it depends on."""

    after: int
    text: str
    answer: str
    support: tuple[int, ...]


@dataclass
class Story:
    """Statements, and questions in their order."""

    statements: list[str] = field(default_factory=list)
    questions: list[StoryQuestion] = field(default_factory=list)

    def say(self, statement: str) -> int:
        """Adds a statement; returns its index."""
        self.statements.append(statement)
        return len(self.statements) - 1

    def ask(self, text: str, answer: str, support: Iterable[int]) -> None:
        """Adds a question behind the statements so far."""
        self.questions.append(StoryQuestion(len(self.statements), text, answer, tuple(sorted(set(support)))))


class World:
    """People in rooms with objects, and what follows about them from the statements of a story.

    room, place, holder  where people and objects are, and who holds an object (missing: nobody)
    known_room  room of a person, where it follows from the story
    moved       the statement from which it follows
    paths       rooms of each object, where they follow from the story, with the statements that they follow from;
                equal rooms in a row are one
    """

    def __init__(self, rng: random.Random, people: tuple[str, ...]) -> None:
        self.rng, self.people, self.story = rng, people, Story()
        self.room = dict(zip(people, START))
        self.place, self.holder = dict(OBJECT_START), dict[str, str]()
        self.known_room, self.moved = dict[str, str](), dict[str, int]()
        self.paths: dict[str, list[tuple[str, tuple[int, ...]]]] = {name: [] for name in OBJECTS}
        self.handled: dict[str, int] = {}  # the last statement that took, dropped or gave an object
        self.gives: list[tuple[str, str, str, int]] = []  # giver, object, receiver, statement

    # -------------------------------------------------------------- acts

    def move(self, person: str) -> None:
        """To another room, with what the person holds."""
        room = choose(self.rng, [room for room in ROOMS if room != self.room[person]])
        index = self.story.say(f"{person} {choose(self.rng, MOVES)} the {room}.")
        self.room[person] = self.known_room[person] = room
        self.moved[person] = index
        for item in (item for item, holder in self.holder.items() if holder == person):
            self.place[item] = room
            self._follow(item, room, (index, self.handled[item]))

    def get(self, person: str, item: str) -> bool:
        """Takes an object of the same room; False where that cannot be."""
        if item in self.holder or self.place[item] != self.room[person]:
            return False
        self.holder[item] = person
        self.handled[item] = self.story.say(f"{person} {choose(self.rng, GETS)} the {item}{self._there()}.")
        if person in self.known_room:
            self._follow(item, self.known_room[person], (self.moved[person], self.handled[item]))
        return True

    def drop(self, person: str, item: str) -> bool:
        """Puts an object down; False where the person does not hold it."""
        if self.holder.get(item) != person:
            return False
        del self.holder[item]
        self.handled[item] = self.story.say(f"{person} {choose(self.rng, DROPS)} the {item}{self._there()}.")
        return True

    def give(self, person: str, item: str, receiver: str) -> bool:
        """Hands an object to somebody in the same room; False where that cannot be."""
        if self.holder.get(item) != person or receiver == person or self.room[receiver] != self.room[person]:
            return False
        self.holder[item] = receiver
        index = self.story.say(f"{person} {choose(self.rng, GIVES)} the {item} to {receiver}.")
        self.handled[item] = index
        self.gives.append((person, item, receiver, index))
        return True

    def _there(self) -> str:
        return choose(self.rng, ("", " there"))

    def _follow(self, item: str, room: str, support: tuple[int, ...]) -> None:
        path = self.paths[item]
        if not path or path[-1][0] != room:
            path.append((room, support))

    # -------------------------------------------------------------- steps

    def step(self) -> None:
        """A move (1/3), or getting or dropping, drawn until the act is possible."""
        while True:
            person, act = choose(self.rng, self.people), choose(self.rng, ("move", "get", "drop"))
            if act == "move":
                return self.move(person)
            if (self.get if act == "get" else self.drop)(person, choose(self.rng, OBJECTS)):
                return None

    def step_with_gifts(self) -> None:
        """An act out of move, get, drop and give, drawn among the possible ones of a drawn kind."""
        for kind in shuffled(self.rng, ("move", "get", "drop", "give")):
            if kind == "move":
                return self.move(choose(self.rng, self.people))
            pairs = shuffled(self.rng, [(person, item) for person in self.people for item in OBJECTS])
            for person, item in pairs:
                others = shuffled(self.rng, self.people) if kind == "give" else [None]
                for other in others:
                    act = {"get": self.get, "drop": self.drop}.get(kind)
                    if act(person, item) if act else self.give(person, item, str(other)):
                        return None
        raise AssertionError("a move is always possible")


def one_fact(rng: random.Random) -> Story:
    """qa1: where somebody is, after the last statement of a move there."""
    world = World(rng, PEOPLE)
    for _ in range(QUESTIONS):
        for _ in range(2):
            world.move(choose(rng, PEOPLE))
        person = choose(rng, sorted(world.known_room))
        world.story.ask(f"Where is {person}?", world.known_room[person], [world.moved[person]])
    return world.story


def two_facts(rng: random.Random) -> Story:
    """qa2: where an object is, held or put down."""

    def ask(world: World) -> bool:
        known = [item for item in OBJECTS if world.paths[item]]
        if not known:
            return False
        item = choose(rng, known)
        room, support = world.paths[item][-1]
        world.story.ask(f"Where is the {item}?", room, [*support, world.handled[item]])
        return True

    return _with_objects(rng, ask)


def three_facts(rng: random.Random) -> Story:
    """qa3: in which room an object was before it came to another one, at its latest visit there."""

    def ask(world: World) -> bool:
        known = [item for item in OBJECTS if len(world.paths[item]) > 1]
        if not known:
            return False
        item = choose(rng, known)
        path = world.paths[item]
        latest = {room: at for at, (room, _) in enumerate(path)}
        at = choose(rng, [at for at in sorted(latest.values()) if at > 0])
        room, answer = path[at][0], path[at - 1][0]
        world.story.ask(f"Where was the {item} before the {room}?", answer, [*path[at - 1][1], *path[at][1]])
        return True

    return _with_objects(rng, ask)


def _with_objects(rng: random.Random, ask: Callable[[World], bool]) -> Story:
    """From three statements after the last question on, a question with probability 1/2, where there is one."""
    world = World(rng, PEOPLE)
    last = 0
    while len(world.story.questions) < QUESTIONS:
        world.step()
        if len(world.story.statements) - last >= 3 and rng.random() < 0.5 and ask(world):
            last = len(world.story.statements)
    return world.story


def two_relations(rng: random.Random) -> Story:
    """qa4: three rooms on an axis, two facts; what is beside the one in the middle."""
    first, middle, last = shuffled(rng, ROOMS)[:3]
    before, after = choose(rng, AXES)
    story = Story()
    facts = [_sides(rng, first, before, middle, after), _sides(rng, middle, before, last, after)]
    order = shuffled(rng, (0, 1))
    for number in order:
        story.say(facts[number])
    direction, other, answer = choose(rng, ((before, after, first), (after, before, last)))
    support = [order.index(0 if answer == first else 1)]
    text = choose(rng, (f"What is {direction} of the {middle}?", f"What is the {middle} {other} of?"))
    story.ask(text, answer, support)
    return story


def _sides(rng: random.Random, one: str, before: str, two: str, after: str) -> str:
    """That `one` lies `before` of `two`, from either side."""
    return choose(rng, (f"The {one} is {before} of the {two}.", f"The {two} is {after} of the {one}."))


def three_arguments(rng: random.Random) -> Story:
    """qa5: who gave what to whom, the latest of the gifts that match."""
    world = World(rng, GIVERS)
    while len(world.story.questions) < QUESTIONS:
        before = len(world.gives)
        while len(world.gives) == before:
            world.step_with_gifts()
        for _ in range(random_below(rng, 6)):
            world.step_with_gifts()
        _ask_about_gift(rng, world)
    return world.story


def _ask_about_gift(rng: random.Random, world: World) -> None:
    giver, item, receiver, _ = world.gives[-1]
    at = rng.random()
    form = next(name for name, share in GIVE_FORMS if (at := at - share) < 0)
    questions = {
        "what": (f"What did {giver} give to {receiver}?", 1, (0, 2)),
        "giver": (f"Who gave the {item}?", 0, (1,)),
        "receiver_of": (f"Who did {giver} give the {item} to?", 2, (0, 1)),
        "giver_to": (f"Who gave the {item} to {receiver}?", 0, (1, 2)),
        "receiver": (f"Who received the {item}?", 2, (1,)),
    }
    text, answer, fixed = questions[form]
    latest = [gift for gift in world.gives if all(gift[i] == world.gives[-1][i] for i in fixed)][-1]
    world.story.ask(text, str(latest[answer]), [latest[3]])


TASKS: dict[str, Callable[[random.Random], Story]] = {
    "qa1": one_fact,
    "qa2": two_facts,
    "qa3": three_facts,
    "qa4": two_relations,
    "qa5": three_arguments,
}
