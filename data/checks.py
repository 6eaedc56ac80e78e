"""Names of the splits, and checks of a data set's arguments."""

from __future__ import annotations

from typing import Any

SPLITS = ("train", "validation", "test")


def check_split(split: str) -> None:
    """Raises: ValueError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")


def integer_problems(key: str, value: Any, lowest: int, highest: int | None, example: int) -> list[str]:
    """One message where `value` is not a whole number in [lowest, highest]: key, allowed range and an example."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer and value >= lowest and (highest is None or value <= highest):
        return []
    allowed = f"a whole number of {lowest} or more" if highest is None else f"a whole number in {lowest}..{highest}"
    return [f"dataset.{key} is {value!r}; it must be {allowed}, for example dataset.{key}={example}"]


def raise_problems(problems: list[str]) -> None:
    """Raises: ValueError with every problem, one per line, where there is any."""
    if problems:
        raise ValueError("\n".join(problems))
