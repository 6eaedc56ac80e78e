"""Random draws that are the same in every process and Python version.

Only `random.Random.random` is used: it is the one method whose sequence Python promises to keep for a given seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def generator(*parts: str | int) -> random.Random:
    """A generator seeded by the sha256 of `parts`; unlike `hash()`, that is equal in every process."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode("utf-8")).digest()
    return random.Random(int.from_bytes(digest, "big"))


def below(rng: random.Random, n: int) -> int:
    """A uniform whole number in [0, n)."""
    return int(rng.random() * n)


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of `items`, uniformly."""
    return items[below(rng, len(items))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """`items` in uniformly random order."""
    keys = [rng.random() for _ in items]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]
