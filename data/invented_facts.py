"""Generated facts about people, places and things that do not exist: a task that only the context can answer.

Each context states `facts` facts about as many invented entities, in one short sentence each; the question asks for
one of them. Values are uniform over 12 words, so a reader without the context is right one time in 12 at best.
"""

from __future__ import annotations

import random

from breviary.contract import Document, Example
from breviary.runtime.draws import choose, random_below, seeded_rng
from data.checks import SPLITS, check_split, integer_problems, raise_problems

# Words of one or two tokens in common vocabularies; every relation has 12, so that guessing is equally hard in all.
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

# (how the entity is called, which word stands before the relation)
KINDS = (("{name}", "favourite"), ("the town of {name}", "official"), ("the ship {name}", "lucky"))
SENTENCES = (
    "The {which} {relation} of {entity} is {value}.",
    "{Entity} has {value} as {which} {relation}.",
    "For {entity} the {which} {relation} is {value}.",
)

# Three syllables make a name. Within each list no syllable begins another, so a name is read in one way only.
HEADS = ("Zor", "Vel", "Qui", "Thra", "Dru", "Kel", "Mog", "Bri", "Fae", "Gor", "Hyx", "Jov",
         "Lum", "Nyr", "Osk", "Pra", "Rhu", "Syl", "Tov", "Wex", "Yth", "Xan", "Cru", "Eld")  # fmt: skip
MIDDLES = ("va", "do", "mi", "ra", "ke", "lo", "zu", "pe", "ni", "tho", "ga", "bu",
           "sa", "fi", "je", "wo", "qua", "xi", "cha", "sho", "ho", "ti", "ly", "yu")  # fmt: skip
TAILS = ("ne", "th", "rk", "lm", "sk", "nd", "zz", "pt", "vo", "xa", "ro", "by",
         "gg", "nn", "ld", "mp", "rt", "ss", "ft", "wn", "ch", "ph", "ct", "ll")  # fmt: skip

# Every name belongs to one split by the sum of its syllables' numbers modulo 10: every syllable is seen in training,
# no name of validation or test ever is.
RESIDUES = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "validation": (8,), "test": (9,)}
MOST_FACTS = 1000  # the splits of one residue have 1382 names


class InventedFacts:
    """Facts about invented entities; the same seed gives the same examples, whatever the sizes.

    Cost: about 12 tokens of context a fact. Example i of a split depends on (seed, split, i, facts) only.
    """

    def __init__(
        self, facts: int = 4, train_size: int = 4000, validation_size: int = 200, test_size: int = 200, seed: int = 0
    ) -> None:
        self.facts = facts
        self.sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        self.seed = seed

    def problems(self, splits: list[str]) -> list[str]:
        """What is wrong with the arguments, one sentence each; only the sizes of `splits` are looked at."""
        found = integer_problems("facts", self.facts, 1, MOST_FACTS, 4)
        for split in splits:
            check_split(split)
            found += integer_problems(f"{split}_size", self.sizes[split], 1, None, 200)
        return found + integer_problems("seed", self.seed, 0, None, 0)

    def examples(self, split: str) -> list[Example]:
        """Every example of `split`. Raises ValueError as `problems` tells."""
        raise_problems(self.problems([split]))
        return [self._example(split, index) for index in range(self.sizes[split])]

    def _example(self, split: str, index: int) -> Example:
        rng = seeded_rng("invented_facts", self.seed, split, index)
        names: list[str] = []
        while len(names) < self.facts:
            name = draw_name(rng, split)
            if name not in names:
                names.append(name)
        asked = random_below(rng, self.facts)
        sentences, documents, question, answer = [], [], "", ""
        start = 0
        for i, name in enumerate(names):
            called, which = choose(rng, KINDS)
            entity = called.format(name=name)
            relation = choose(rng, tuple(RELATIONS))
            value = choose(rng, RELATIONS[relation])
            sentence = choose(rng, SENTENCES).format(
                which=which, relation=relation, value=value, entity=entity, Entity=entity[0].upper() + entity[1:]
            )
            sentences.append(sentence)
            documents.append(Document(title=name, start=start, end=start + len(sentence), is_gold=i == asked))
            start += len(sentence) + 1  # the space between two sentences
            if i == asked:
                question, answer = f"What is the {which} {relation} of {entity}?", value
        return Example(f"{split}-{self.seed}-{index}", " ".join(sentences), question, (answer,), tuple(documents))


def draw_name(rng: random.Random, split: str) -> str:
    """An invented name that belongs to `split`."""
    assert split in SPLITS, (split, SPLITS)
    while True:
        head, middle, tail = (
            random_below(rng, len(HEADS)),
            random_below(rng, len(MIDDLES)),
            random_below(rng, len(TAILS)),
        )
        if (head + middle + tail) % 10 in RESIDUES[split]:
            return HEADS[head] + MIDDLES[middle] + TAILS[tail]
