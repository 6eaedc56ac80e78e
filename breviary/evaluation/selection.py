"""Which examples of a split an evaluation asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from breviary.contract import Example

SELECTION = ("examples", "questions_per_context")  # keys of configs/eval.yaml


def first_questions(examples: Sequence[Example], count: int | None, per_context: int | None) -> Sequence[Example]:
    """The first `count` examples, of which no more than `per_context` have one context; None = no limit.

    With `per_context` a small evaluation covers many contexts, where a data set asks dozens of questions on each.
    """
    if per_context is None:
        return examples[:count]
    asked: Counter[str] = Counter()
    chosen: list[Example] = []
    for example in examples:
        if len(chosen) == count:
            break
        if asked[example.context] < per_context:
            asked[example.context] += 1
            chosen.append(example)
    return chosen
