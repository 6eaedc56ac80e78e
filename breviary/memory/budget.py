"""Number of memory slots of a context, from a ratio of tokens per slot or from a number of slots.

Shape letters: B contexts, T context tokens, S segments of a context, L tokens of a segment.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.stack import key_value_bytes
from breviary.contract import Compressor
from breviary.memory.hashing import hash_integers, hash_tokens

RATIO_DRAWS = ("step", "sample")

# Values that switch off the random ratio of training steps.
FIXED_RATIO = {"ratio_choices": None, "uniform_keep": False, "ratio_draw": "step"}


class Budget:
    """Slots per context, requested as `ratio` (context tokens per slot) or as `slots` (their number).

    ratio_choices  ratios from which one is drawn in training; evaluation uses `ratio`
    uniform_keep   at each training step, draws the share 1 / ratio uniformly from (0, 1]; for methods that take any
                   ratio
    ratio_draw     step: one of `ratio_choices` per optimizer step, from seed and step alone, so that all ranks and
                   micro-batches agree | sample: one per context, from seed, step and its tokens, so that batch-mates
                   and processes have no effect

    With `slots`, a context of T tokens has the ratio ceil(T / slots). It takes at most `slots` slots, plus one for each
    further segment; short contexts take fewer.
    """

    def __init__(
        self,
        ratio: float | None = 4,
        slots: int | None = None,
        ratio_choices: list[int] | None = None,
        uniform_keep: bool = False,
        ratio_draw: str = "step",
    ):
        assert ratio_draw in RATIO_DRAWS, ratio_draw
        self.ratio, self.ratio_draw = ratio, ratio_draw
        self.slots = slots
        self.uniform_keep = uniform_keep
        self.ratio_choices = list(ratio_choices) if ratio_choices else None
        self._step_ratio: float | None = None  # drawn for this step
        self._step_salt: int | None = None  # from which this step's ratio of each context is drawn

    def begin_step(self, step: int, seed: int) -> None:
        """Draws the ratio of this step where several are allowed."""
        rng = random.Random(f"{seed}-{step}")
        if self.ratio_choices and self.ratio_draw == "sample":
            self._step_salt = rng.getrandbits(31)
        elif self.ratio_choices:
            self._step_ratio = rng.choice(self.ratio_choices)
        elif self.uniform_keep:
            self._step_ratio = 1 / (1 - rng.random())

    def requested_ratio(self, training: bool) -> float | None:
        """Tokens per slot at present; None where `slots` is configured, or where contexts have different ratios."""
        if self.slots is not None or self._is_per_context(training):
            return None
        return self._step_ratio if training and self._step_ratio is not None else self.ratio

    def _is_per_context(self, training: bool) -> bool:
        return training and self._step_salt is not None

    def min_ratio(self, training: bool) -> int | None:
        """The smallest ratio of any context at present; None where `slots` is configured."""
        if self.slots is not None:
            return None
        if self._is_per_context(training):
            assert self.ratio_choices is not None  # begin_step draws a salt with choices only
            return int(min(self.ratio_choices))
        ratio = self.requested_ratio(training)
        assert ratio is not None  # exactly one of ratio and slots is set
        return int(ratio)

    def max_slots(self, tokens: int, training: bool) -> int:
        """Upper bound on the slots of a row of at most `tokens` tokens, known without the tokens."""
        ratio = self.min_ratio(training)
        if ratio is not None:
            return -(-tokens // ratio)
        assert self.slots is not None  # exactly one of ratio and slots is set
        return min(tokens, self.slots)

    def ratio_per_row(self, ids: Tensor, mask: Tensor, training: bool) -> int | Tensor:
        """Tokens per slot: one int for all rows, or (B,) int64 where rows have different ratios.

        ids, mask  (B, T) whole contexts; the column of a token must not depend on batch-mates
        """
        ratio = self.requested_ratio(training)
        if ratio is not None:
            return int(ratio)
        if self._is_per_context(training):
            choices = torch.tensor(self.ratio_choices, device=ids.device)
            return choices[hash_integers(hash_tokens(ids, mask) + self._step_salt) % len(choices)]
        return torch.div(mask.sum(1) + self.slots - 1, self.slots, rounding_mode="floor").clamp(min=1)

    def slots_per_row(self, ids: Tensor, mask: Tensor, training: bool) -> Tensor:
        """Slots of each row, (B,) int64, for methods that take any number: ceil(T / ratio), or min(T, slots).

        ids, mask  (B, T) whole contexts
        """
        lengths = mask.sum(1)
        if self.slots is not None:
            return lengths.clamp(max=self.slots)
        ratio = self.ratio_per_row(ids, mask, training)
        return torch.div(lengths + ratio - 1, ratio, rounding_mode="floor")

    def ratio_per_segment(self, ids: Tensor, mask: Tensor, training: bool) -> int | Tensor:
        """`ratio_per_row` for contexts in segments, both (B, S, L): one int, or (B*S,) int64."""
        ratio = self.ratio_per_row(ids.flatten(1), mask.flatten(1), training)
        return ratio if isinstance(ratio, int) else ratio.repeat_interleave(mask.shape[1])


class BudgetedCompressor(Compressor):
    """A compressor whose number of slots follows from `budget`."""

    budget: Budget

    @classmethod
    def bytes_per_slot(cls, settings: Mapping[str, Any], config: Any, dtype: torch.dtype) -> int:
        """Bytes of a slot's keys and values in the decoder's layers from the joining one on.

        settings  constructor arguments; config: Hugging Face's, of the decoder, whose residual stream has `dtype`
        """
        layer = settings["encoder_layers"] if settings.get("join") == "depth" else 0
        return key_value_bytes(config, config.num_hidden_layers - layer, dtype)

    @property
    def requested_ratio(self) -> float | None:
        """As `Budget.requested_ratio`; refers to full segments."""
        return self.budget.requested_ratio(self.training)

    def begin_step(self, step: int, seed: int) -> None:
        """Draws the ratio of this step."""
        self.budget.begin_step(step, seed)


def check_budget(settings: Mapping[str, Any]) -> list[str]:
    """Error messages for `ratio`, `slots`, `ratio_choices` and `ratio_draw`."""
    problems = []
    ratio, slots, choices = settings["ratio"], settings["slots"], settings["ratio_choices"]
    amount = settings.get("bytes")  # ReaderSpec has left it in place
    if amount is not None and choices:
        problems.append("compressor.ratio_choices and compressor.bytes exclude each other: set one of them to null")
    if amount is not None and (ratio is not None or slots is not None):
        problems.append(
            f"compressor.bytes={amount} with compressor.ratio={ratio} and compressor.slots={slots}: set "
            "exactly one of them, e.g. compressor.ratio=null compressor.bytes=1000000"
        )
    if amount is None and (ratio is None) == (slots is None):
        problems.append(
            f"compressor.ratio={ratio} and compressor.slots={slots}: set exactly one of them, "
            "e.g. compressor.ratio=4, or compressor.ratio=null compressor.slots=64"
        )
    for key, value in [("ratio", ratio), ("slots", slots), *(("ratio_choices", c) for c in choices or [])]:
        if value is not None and (isinstance(value, (bool, str)) or value < 1 or value % 1):  # infinity % 1 is NaN
            problems.append(f"compressor.{key}={value}: must be a whole number of at least 1, e.g. 4")
    draw = settings.get("ratio_draw", "step")
    if draw not in RATIO_DRAWS:
        problems.append(f"compressor.ratio_draw={draw}: allowed are {', '.join(RATIO_DRAWS)}")
    if draw == "sample" and not choices:
        problems.append("compressor.ratio_draw=sample: requires compressor.ratio_choices, e.g. [4,8]")
    if choices and slots is not None:
        problems.append("compressor.ratio_choices and compressor.slots exclude each other: set one of them to null")
    return problems


def max_context_for_slots(settings: Mapping[str, Any], room: int, segment: int | None = None) -> int | None:
    """Longest context, in tokens, such that its memory and that of every shorter one take at most `room` slots.

    segment  tokens of a segment, each of which rounds its slots up; None = a context is one segment
    None = any length fits. 0 where a budget in slots exceeds `room`.
    """
    slots = settings["slots"]
    if slots is None:
        ratio = int(min([settings["ratio"], *(settings["ratio_choices"] or [])]))
        return room * ratio if segment is None else _max_tokens(room, segment, ratio)
    if slots > room:
        return 0
    return None if segment is None else _max_tokens_for_budget(room, segment, slots)


def _max_tokens(room: int, segment: int, ratio: int) -> int:
    """Longest context whose segments take at most `room` slots at a ratio of tokens per slot."""
    per_segment = -(-segment // ratio)
    return room // per_segment * segment + room % per_segment * ratio


@functools.lru_cache(maxsize=1024)  # searches for the longest context that fits repeat the arguments
def _max_tokens_for_budget(room: int, segment: int, slots: int) -> int:
    """`_max_tokens` where the ratio of a context of T tokens is ceil(T / slots)."""
    # Each segment but one adds at most one slot to the budget: so many segments always fit.
    ratio = max((room - slots + 1) * segment // slots, 1)
    while ratio < segment and _max_tokens(room, segment, ratio) >= ratio * slots:
        ratio += 1
    return _max_tokens(room, segment, ratio)


def fixed_ratio(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A compressor's settings in evaluation, where no ratio is drawn at random."""
    return {**settings, **{key: off for key, off in FIXED_RATIO.items() if key in settings}}
