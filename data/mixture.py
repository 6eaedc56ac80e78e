"""A mixture of data sets: training examples of several data sets in given shares, in one order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from breviary.contract import Dataset, Example
from breviary.runtime.draws import seeded_rng, shuffled
from breviary.runtime.spelling import escape_problems, unescaped
from data.checks import check_split, integer_problems, raise_problems
from data.store.content import content_hash


class Mixture:
    """The examples of several data sets, each with the name of its part before its id.

    parts       {name: data set}; a part without a split is left out of that split. Its own `max_new_tokens`, `stop` and
                the like have no effect: those of the mixture hold
    weights     {name: share of the train split, > 0}; shares need not sum to 1. None = each part has all its examples
    train_size  examples of the train split. None = without weights all; with weights as many as leave no part repeated
    question    of every example, in place of its own, such as the instruction of an autoencoder; None = its own
    seed        of the order, and of which examples of a part are used
    max_new_tokens, stop, metrics  as in Jsonl
    Where a part has fewer examples than its share, they repeat, each pass in an order of its own; the repeats' ids end
    in #2, #3, ... Validation and test hold all examples of the parts, in an order that mixes them.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        weights: Mapping[str, float] | None = None,
        train_size: int | None = None,
        question: str | None = None,
        seed: int = 0,
        max_new_tokens: int | None = None,
        stop: list[str] | None = None,
        metrics: list[str] | None = None,
    ) -> None:
        self.parts: dict[str, Any] = {str(name): part for name, part in parts.items() if part is not None}
        self.weights = None if weights is None else {str(name): weight for name, weight in weights.items()}
        self.train_size, self.question, self.seed = train_size, question, seed
        self.max_new_tokens, self.stop, self.metrics = max_new_tokens, stop, metrics

    def problems(self, splits: list[str]) -> list[str]:
        """An error message for each wrong argument, and those of the parts."""
        problems = [] if self.parts else ["dataset.parts is empty; name data sets, e.g. +dataset@dataset.parts.nq=nq"]
        wrong = [name for name, part in self.parts.items() if not isinstance(part, Dataset)]
        problems += [
            f"dataset.parts.{name} is no data set; choose one, e.g. dataset@dataset.parts.{name}=nq" for name in wrong
        ]
        problems += self._weight_problems()
        if self.train_size is not None:
            problems += integer_problems("train_size", self.train_size, 1, None, 45000)
        problems += integer_problems("seed", self.seed, 0, None, 0)
        if self.question is not None:
            problems += escape_problems("dataset.question", self.question, unescaped(self.question))
        if problems:
            return problems
        for split in splits:
            check_split(split)
            found = self._with_split(split)
            if not found:
                problems.append(f"dataset.parts: no part has a {split} split (parts: {', '.join(self.parts)})")
            for name in found:
                problems += [
                    text.replace("dataset.", f"dataset.parts.{name}.") for text in self.parts[name].problems([split])
                ]
        return problems

    def _weight_problems(self) -> list[str]:
        if self.weights is None:
            return []
        missing, extra = set(self.parts) - set(self.weights), set(self.weights) - set(self.parts)
        if missing or extra:
            ways = [f"+dataset.weights.{name}=1" for name in self.parts if name in missing]
            ways += [f"~dataset.weights.{name}" for name in self.weights if name in extra]
            return [
                f"dataset.weights has {', '.join(self.weights) or 'no part'}; it must have the parts "
                f"{', '.join(self.parts)}: {' '.join(ways)}, or dataset.weights=null"
            ]
        return [
            f"dataset.weights.{name} is {weight!r}; it must be a number above 0, e.g. dataset.weights.{name}=1"
            for name, weight in self.weights.items()
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf
        ]

    def _with_split(self, split: str) -> list[str]:
        """The parts that have a split: all but those whose file of it is null."""
        return [name for name, part in self.parts.items() if getattr(part, "files", {}).get(split, "") is not None]

    def content_hash(self, split: str) -> str | None:
        """A hash of the parts and of the arguments; None where a part has none."""
        raise_problems(self.problems([split]))
        parts = {name: self.parts[name] for name in self._with_split(split)}
        hashes = {
            name: part.content_hash(split) if hasattr(part, "content_hash") else None for name, part in parts.items()
        }
        if None in hashes.values():
            return None
        return content_hash(
            [__file__], [], None, [split, hashes, self.weights, self.train_size, self.question, self.seed]
        )

    def examples(self, split: str) -> list[Example]:
        """The examples of `split`. Raises: ValueError with the messages of `problems`, and as the parts."""
        raise_problems(self.problems([split]))
        found = {name: self.parts[name].examples(split) for name in self._with_split(split)}
        counts = self._counts({name: len(part) for name, part in found.items()}) if split == "train" else {}
        examples = []
        for name, part in found.items():
            drawn = self._drawn(name, part, counts[name]) if split == "train" else part
            examples += [replace(example, id=f"{name}/{example.id}") for example in drawn]
        if self.question is not None:
            examples = [replace(example, question=self.question) for example in examples]
        return shuffled(seeded_rng("mixture", self.seed, split), examples)

    def _counts(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Train examples of each part."""
        weights = {name: float(self.weights[name]) if self.weights else float(size) for name, size in sizes.items()}
        total = sum(weights.values())
        size = self.train_size
        if size is None:
            if self.weights is None:
                return dict(sizes)
            size = max(math.floor(min(sizes[name] / weight for name, weight in weights.items()) * total), 1)
        exact = {name: size * weight / total for name, weight in weights.items()}
        counts = {name: math.floor(share) for name, share in exact.items()}
        rest = sorted(exact, key=lambda name: counts[name] - exact[name])  # the largest remainders first, in order
        for name in rest[: size - sum(counts.values())]:
            counts[name] += 1
        return counts

    def _drawn(self, name: str, part: Sequence[Example], count: int) -> list[Example]:
        """`count` examples of a part, in whole passes and the beginning of one."""
        drawn: list[Example] = []
        for number in range(1, -(-count // len(part)) + 1):
            order = shuffled(seeded_rng("mixture", self.seed, name, number), list(part))
            again = [replace(one, id=f"{one.id}#{number}") for one in order] if number > 1 else order
            drawn += again[: count - len(drawn)]
        return drawn
