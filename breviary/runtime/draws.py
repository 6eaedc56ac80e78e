"""Random draws that are equal in every process and Python version.

Only `random.Random.random` is used: it is the one method whose sequence Python guarantees for a given seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def seeded_rng(*parts: str | int) -> random.Random:
    """A generator seeded by the sha256 of `parts`. Unlike `hash()`, sha256 is equal in every process."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode("utf-8")).digest()
    return random.Random(int.from_bytes(digest, "big"))


def random_below(rng: random.Random, n: int) -> int:
    """A uniform integer in [0, n)."""
    return int(rng.random() * n)


def choose(rng: random.Random, items: Sequence[T]) -> T:
    """One of `items`, uniformly."""
    return items[random_below(rng, len(items))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """`items` in uniformly random order."""
    keys = [rng.random() for _ in items]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]
