"""How many slots a context may take: a ratio of tokens per slot, or a number of slots; and the compressors that ask it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from breviary.contract import Compressor

DRAWS = ("step", "sample")

PRIME = 2**31 - 1  # its square fits int64


class Budget:
    """Slots per context, asked as `ratio` (context tokens per slot) or as `slots` (their number).

    ratio_choices  ratios of which one is drawn each optimizer step, from seed and step alone, so that all ranks
                   and micro-batches agree; in training only, evaluation uses `ratio`
    uniform_keep   likewise, but the share 1 / ratio is drawn, uniform in (0, 1]; for methods that take any ratio
    ratio_draw     step: one of ratio_choices for all contexts of a step | sample: one for each context, from seed, step and
                   its tokens, so that batch-mates and processes play no part

    With `slots`, a context of T tokens has the ratio ceil(T / slots): never more than `slots` slots (one more per
    further segment), fewer for short contexts.
    """

    def __init__(
        self,
        ratio: float | None = 4,
        slots: int | None = None,
        ratio_choices: list[int] | None = None,
        uniform_keep: bool = False,
        ratio_draw: str = "step",
    ):
        assert ratio_draw in DRAWS, ratio_draw
        self.ratio, self.ratio_draw = ratio, ratio_draw
        self.slots = slots
        self.uniform_keep = uniform_keep
        self.ratio_choices = list(ratio_choices) if ratio_choices else None
        self._drawn: float | None = None
        self._salt: int | None = None  # of this step's draws for each context

    def begin_step(self, step: int, seed: int) -> None:
        """Draws this step's ratio where several are allowed."""
        rng = random.Random(f"{seed}-{step}")
        if self.ratio_choices and self.ratio_draw == "sample":
            self._salt = rng.getrandbits(31)
        elif self.ratio_choices:
            self._drawn = rng.choice(self.ratio_choices)
        elif self.uniform_keep:
            self._drawn = 1 / (1 - rng.random())

    def asked(self, training: bool) -> float | None:
        """The ratio asked for now; None when a number of slots is asked instead, or every context has its own."""
        if self.slots is not None or self._varies(training):
            return None
        return self._drawn if training and self._drawn is not None else self.ratio

    def _varies(self, training: bool) -> bool:
        return training and self._salt is not None

    def least(self, training: bool) -> int | None:
        """The smallest ratio that a context can have now; None when a number of slots is asked."""
        if self.slots is not None:
            return None
        return int(min(self.ratio_choices)) if self._varies(training) else int(self.asked(training))

    def most_slots(self, tokens: int, training: bool) -> int:
        """No context of up to so many tokens can have more slots now."""
        least = self.least(training)
        return min(tokens, self.slots) if least is None else -(-tokens // least)

    def segment_ratios(self, ids: Tensor, mask: Tensor, training: bool) -> int | Tensor:
        """As `row_ratios` for contexts in segments, (B, S, L) both: an int, or (B*S,) with each context's own ratio."""
        ratios = self.row_ratios(ids.flatten(1), mask.flatten(1), training)
        return ratios if isinstance(ratios, int) else ratios.repeat_interleave(mask.shape[1])

    def row_ratios(self, ids: Tensor, mask: Tensor, training: bool) -> int | Tensor:
        """Tokens per slot: one int for all rows, or (B,) int64 where every context has its own.

        ids, mask  (B, T) whole contexts, each token in a column that does not depend on batch-mates
        """
        asked = self.asked(training)
        if asked is not None:
            return int(asked)
        if self._varies(training):
            choices = torch.tensor(self.ratio_choices, device=ids.device)
            return choices[_scrambled(_content(ids, mask) + self._salt) % len(choices)]
        return torch.div(mask.sum(1) + self.slots - 1, self.slots, rounding_mode="floor").clamp(min=1)

    def width(self, tokens: int, training: bool) -> int:
        """Slots that hold any row of at most `tokens` tokens, known without looking at the rows."""
        least = self.least(training)
        return max(min(self.slots, tokens) if least is None else -(-tokens // least), 1)


class BudgetedCompressor(Compressor):
    """A compressor whose number of slots `budget` says."""

    budget: Budget

    @property
    def requested_ratio(self) -> float | None:
        """Tokens per slot (of full segments) asked for now; None as in Budget.asked."""
        return self.budget.asked(self.training)

    def begin_step(self, step: int, seed: int) -> None:
        """Draws the step's ratio."""
        self.budget.begin_step(step, seed)


def _content(ids: Tensor, mask: Tensor) -> Tensor:
    """A number below PRIME for each row from its tokens and their columns, (B, T) -> (B,)."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    return _scrambled(ids * 48271 + columns * 2654435761).masked_fill(~mask, 0).sum(1) % PRIME


def _scrambled(numbers: Tensor) -> Tensor:
    for _ in range(3):
        numbers = (numbers % PRIME) ** 2 + 48271
    return numbers % PRIME


# Keys that draw a training step's ratio, and what turns them off: nothing is drawn in evaluation.
FIXED_RATIO = {"ratio_choices": None, "uniform_keep": False, "ratio_draw": "step"}


def check_budget(settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with `ratio`, `slots` and `ratio_choices`, one sentence each."""
    found = []
    ratio, slots, choices = settings["ratio"], settings["slots"], settings["ratio_choices"]
    if (ratio is None) == (slots is None):
        found.append(
            f"compressor.ratio={ratio} and compressor.slots={slots}: give exactly one of them, "
            "e.g. compressor.ratio=4, or compressor.ratio=null compressor.slots=64"
        )
    for key, value in [("ratio", ratio), ("slots", slots), *(("ratio_choices", c) for c in choices or [])]:
        if value is not None and (isinstance(value, (bool, str)) or value < 1 or int(value) != value):
            found.append(f"compressor.{key}={value}: must be a whole number of at least 1, e.g. 4")
    draw = settings.get("ratio_draw", "step")
    if draw not in DRAWS:
        found.append(f"compressor.ratio_draw={draw}: allowed are {', '.join(DRAWS)}")
    if draw == "sample" and not choices:
        found.append("compressor.ratio_draw=sample: nothing to draw from; give compressor.ratio_choices, e.g. [4,8]")
    if choices and slots is not None:
        found.append("compressor.ratio_choices and compressor.slots exclude each other: set one of them to null")
    return found


def max_context_for_slots(settings: Mapping[str, Any], slots: int) -> int | None:
    """Longest context, in tokens, whose memory takes at most `slots` slots; None = any length."""
    if settings["slots"] is not None:
        return None if settings["slots"] <= slots else 0
    return slots * int(min([settings["ratio"], *(settings["ratio_choices"] or [])]))
