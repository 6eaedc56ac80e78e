"""Random words, numbers and UUIDs. The words are wonderwords', as RULER's: adjectives, nouns and verbs."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from wonderwords import RandomWord

from breviary.runtime.draws import choose, random_below

T = TypeVar("T")


@cache
def words_of(*kinds: str) -> tuple[str, ...]:
    """The distinct words of wonderwords' categories noun, adjective, verb, sorted."""
    source = RandomWord()
    return tuple(sorted({word for kind in kinds for word in source.filter(include_categories=[kind])}))


def random_word(rng: random.Random) -> str:
    """An adjective and a noun: "faulty-spoon"."""
    return f"{choose(rng, words_of('adjective'))}-{choose(rng, words_of('noun'))}"


def random_number(rng: random.Random, digits: int = 7) -> str:
    """A number of exactly so many digits."""
    lowest = 10 ** (digits - 1)
    return str(lowest + random_below(rng, 9 * lowest))


def random_uuid(rng: random.Random) -> str:
    """A random UUID, version 4."""
    number = sum(random_below(rng, 1 << 32) << shift for shift in range(0, 128, 32))
    return str(uuid.UUID(int=number, version=4))


def random_letters(rng: random.Random, count: int, letters: str = string.ascii_uppercase) -> str:
    """A string of `count` letters."""
    return "".join(choose(rng, letters) for _ in range(count))


def distinct(rng: random.Random, draw: Callable[[random.Random], str], count: int) -> list[str]:
    """`count` different results of draw(rng), in the order drawn."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw(rng)] = None
    return list(found)


def sample(rng: random.Random, items: Sequence[T], count: int) -> list[T]:
    """`count` of `items` at different places, in random order. Cost: O(count)."""
    assert 0 <= count <= len(items), (count, len(items))
    moved: dict[int, int] = {}  # a shuffle's first `count` swaps
    result = []
    for index in range(count):
        at = index + random_below(rng, len(items) - index)
        result.append(items[moved.get(at, at)])
        moved[at] = moved.get(index, index)
    return result
