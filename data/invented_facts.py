"""Generated facts about people, places and things that do not exist, so that only the context has the answer.

Each context states facts about invented entities, one short sentence per fact and entity. The question is about one of
them. Values are uniform over 12 words, so a reader without the context answers at most 1 in 12 questions correctly.
"""

from __future__ import annotations

import random

from breviary.contract import Document, Example
from breviary.runtime.draws import choose, random_below, seeded_rng
from data.checks import SPLITS, check_split, integer_problems, raise_problems

# Words of one or two tokens in common vocabularies. Every relation has 12, so that guessing is equally hard for all.
RELATIONS: dict[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "green", "yellow", "black", "white",
               "brown", "pink", "purple", "orange", "grey", "gold"),
    "metal": ("copper", "iron", "silver", "tin", "zinc", "steel",
              "nickel", "lead", "bronze", "brass", "titanium", "platinum"),
    "animal": ("dog", "cat", "horse", "lion", "tiger", "bear",
               "wolf", "fox", "eagle", "snake", "rabbit", "mouse"),
    "fruit": ("apple", "banana", "cherry", "grape", "lemon", "mango",
              "peach", "pear", "plum", "melon", "fig", "lime"),
    "instrument": ("piano", "guitar", "violin", "drum", "flute", "harp",
                   "trumpet", "cello", "organ", "horn", "banjo", "bell"),
}  # fmt: skip

# (name of the entity, adjective of the relation)
KINDS = (("{name}", "favourite"), ("the town of {name}", "official"), ("the ship {name}", "lucky"))
SENTENCES = (
    "The {adjective} {relation} of {entity} is {value}.",
    "{Entity} has {value} as {adjective} {relation}.",
    "For {entity} the {adjective} {relation} is {value}.",
)

# A name has three syllables. Within each list no syllable is a prefix of another, so a name has one decomposition.
HEADS = ("Zor", "Vel", "Qui", "Thra", "Dru", "Kel", "Mog", "Bri", "Fae", "Gor", "Hyx", "Jov",
         "Lum", "Nyr", "Osk", "Pra", "Rhu", "Syl", "Tov", "Wex", "Yth", "Xan", "Cru", "Eld")  # fmt: skip
MIDDLES = ("va", "do", "mi", "ra", "ke", "lo", "zu", "pe", "ni", "tho", "ga", "bu",
           "sa", "fi", "je", "wo", "qua", "xi", "cha", "sho", "ho", "ti", "ly", "yu")  # fmt: skip
TAILS = ("ne", "th", "rk", "lm", "sk", "nd", "zz", "pt", "vo", "xa", "ro", "by",
         "gg", "nn", "ld", "mp", "rt", "ss", "ft", "wn", "ch", "ph", "ct", "ll")  # fmt: skip

# The sum of its syllables' indices modulo 10 assigns a name to a split. Training has every syllable, but no name of
# validation or test.
RESIDUES = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "validation": (8,), "test": (9,)}
MAX_FACTS = 1000  # the splits of one residue have 1382 names


class InventedFacts:
    """Facts about invented entities; about 12 tokens of context per fact.

    facts   facts of each context
    *_size  examples of the split
    Example i of a split depends only on (seed, split, i, facts).
    """

    def __init__(
        self, facts: int = 4, train_size: int = 4000, validation_size: int = 200, test_size: int = 200, seed: int = 0
    ) -> None:
        self.facts = facts
        self.sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        self.seed = seed

    def problems(self, splits: list[str]) -> list[str]:
        """An error message for each wrong argument; sizes are checked for `splits` only."""
        problems = integer_problems("facts", self.facts, 1, MAX_FACTS, 4)
        for split in splits:
            check_split(split)
            problems += integer_problems(f"{split}_size", self.sizes[split], 1, None, 200)
        return problems + integer_problems("seed", self.seed, 0, None, 0)

    def examples(self, split: str) -> list[Example]:
        """The examples of `split`. Raises: ValueError with the messages of `problems`."""
        raise_problems(self.problems([split]))
        return [self._example(split, index) for index in range(self.sizes[split])]

    def _example(self, split: str, index: int) -> Example:
        rng = seeded_rng("invented_facts", self.seed, split, index)
        names: list[str] = []
        while len(names) < self.facts:
            name = draw_name(rng, split)
            if name not in names:
                names.append(name)
        gold = random_below(rng, self.facts)
        sentences, documents, question, answer = [], [], "", ""
        start = 0
        for i, name in enumerate(names):
            entity_template, adjective = choose(rng, KINDS)
            entity = entity_template.format(name=name)
            relation = choose(rng, tuple(RELATIONS))
            value = choose(rng, RELATIONS[relation])
            sentence = choose(rng, SENTENCES).format(
                adjective=adjective,
                relation=relation,
                value=value,
                entity=entity,
                Entity=entity[0].upper() + entity[1:],
            )
            sentences.append(sentence)
            documents.append(Document(title=name, start=start, end=start + len(sentence), is_gold=i == gold))
            start += len(sentence) + 1  # the space between two sentences
            if i == gold:
                question, answer = f"What is the {adjective} {relation} of {entity}?", value
        return Example(f"{split}-{self.seed}-{index}", " ".join(sentences), question, (answer,), tuple(documents))


def draw_name(rng: random.Random, split: str) -> str:
    """An invented name that belongs to `split`."""
    assert split in SPLITS, (split, SPLITS)
    while True:
        head, middle, tail = (random_below(rng, len(part)) for part in (HEADS, MIDDLES, TAILS))
        if (head + middle + tail) % 10 in RESIDUES[split]:
            return HEADS[head] + MIDDLES[middle] + TAILS[tail]
