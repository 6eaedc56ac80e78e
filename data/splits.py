"""What every dataset class shares: the names of the splits, and checks of whole numbers in plain words."""

from __future__ import annotations

from typing import Any

SPLITS = ("train", "validation", "test")


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")


def whole_number_problem(key: str, value: Any, lowest: int, highest: int | None, example: int) -> list[str]:
    """No sentence where `value` is a whole number in [lowest, highest], else one naming the key and a right value."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and value >= lowest and (highest is None or value <= highest):
        return []
    allowed = f"a whole number of {lowest} or more" if highest is None else f"a whole number in {lowest}..{highest}"
    return [f"dataset.{key} is {value!r}; it must be {allowed}, for example dataset.{key}={example}"]


def raise_all(problems: list[str]) -> None:
    """Raises one ValueError holding every problem; does nothing where there is none."""
    if problems:
        raise ValueError("\n".join(problems))
