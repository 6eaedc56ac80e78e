"""Lengths in tokens: counting texts, and the largest number of units that fits a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from breviary.runtime.markup import tokenise


class HasTokenizer(Protocol):
    """A backbone, of which generated data sets use the tokenizer alone."""

    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer."""


class TokenCounter:
    """Counts tokens of plain texts, without BOS and the end token.  tokenizer  of Hugging Face"""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, *texts: str) -> int:
        """Tokens of all texts, each tokenised alone, as prompts are (data/prompts.py)."""
        return sum(len(tokenise(self.tokenizer, text, plain=True)) for text in texts)

    def each(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        rows = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [len(ids) for ids in rows["input_ids"]]

    def first(self, text: str, tokens: int) -> str:
        """The first `tokens` tokens of a text, decoded."""
        return self.tokenizer.decode(tokenise(self.tokenizer, text, plain=True)[:tokens])


def most_units(fits: Callable[[int], bool], least: int, most: int | None = None) -> int | None:
    """The largest n in least..most with fits(n); None where not even `least` fits.

    fits  decreasing: what fits with n units fits with fewer
    most  None = no bound
    """
    if not fits(least):
        return None
    low, high = least, least
    while most is None or high < most:
        high = 2 * high + 1 if most is None else min(2 * high + 1, most)
        if not fits(high):
            break
        low = high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
