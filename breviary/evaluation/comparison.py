"""Two readers' answers to the same questions, one minus the other, question by question.

A hard question is hard for both: what the two intervals, laid side by side, leave open, the paired difference may tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from breviary.evaluation.results import PREDICTIONS, Predictions, find_results, read_results, source_of
from breviary.evaluation.statistics import difference


@dataclass
class EvaluatedReader:
    """One reader's evaluation.

    name      the reader's, with its ratio, or the folder instead, where another one is called so too
    results   of its results.json
    rows      {id: prediction}
    """

    name: str
    results: dict[str, Any]
    rows: dict[str, dict[str, Any]]


def load_evaluations(folders: Sequence[str]) -> list[list[EvaluatedReader]]:
    """The evaluation in each folder, or below it where there is only one there; those of the same questions together.

    Both the sets of questions and the evaluations of one keep the order of `folders`.
    Raises ValueError where there is none or are several, its predictions are missing, or no other one answers the same questions.
    """
    found: dict[tuple[str, frozenset[str]], list[EvaluatedReader]] = {}
    for folder in folders:
        files = find_results([folder])
        if len(files) > 1:
            raise ValueError(
                f"{folder}: {len(files)} evaluations below it; name one of them: "
                + ", ".join(str(file.parent) for file in files)
            )
        path = files[0].with_name(PREDICTIONS)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; a comparison goes question by question and needs the predictions")
        one = EvaluatedReader(folder, read_results(files[0]), {row["id"]: row for row in Predictions(path).rows})
        found.setdefault((one.results["data_hash"], frozenset(one.rows)), []).append(one)
    groups = list(found.values())
    for group in groups:
        if len(group) == 1:
            raise ValueError(
                f"{group[0].name} answers other questions than every other one given ({group[0].results['n']} of "
                f"{data_name(group[0].results)}); evaluate both with the same dataset, split and examples"
            )
        _name(group)
    return groups


def data_name(results: dict[str, Any]) -> str:
    """ "nq/test.jsonl.gz" where the data is a file (several: all of them), else its class, e.g. "InventedFacts"; the hash's start where neither is known."""
    config = results["config"] or {}
    data = config.get("dataset", {})
    if data.get(split := config.get("split", "test")):
        return source_of(data, split, parts=2)
    return data.get("_target_", results["data_hash"][:12]).rpartition(".")[2]


def _name(found: list[EvaluatedReader]) -> None:
    """By the reader; those called alike by their ratio too, and those still alike by their folders."""
    with_ratio = [
        one.results["reader"]
        + (f", {one.results['requested_ratio']:g}x" if one.results["requested_ratio"] is not None else "")
        for one in found
    ]
    readers, ratios = Counter(one.results["reader"] for one in found), Counter(with_ratio)
    for one, longer in zip(found, with_ratio):
        if readers[one.results["reader"]] == 1:
            one.name = one.results["reader"]
        elif ratios[longer] == 1:
            one.name = longer


def differences(
    ours: EvaluatedReader, other: EvaluatedReader, seed: int = 0, resamples: int = 2000
) -> dict[str, dict[str, float]]:
    """{metric: {"value", "low", "high"}} of ours minus the other's, with 95% bootstrap intervals, questions resampled.

    Scores as differences of means, the likelihood and other ratios as differences of ratios of sums, as in each one's own results.
    The likelihood a token is left out where the two count an answer's tokens differently (other tokenizers).
    """
    pairs = [(ours.rows[key], other.rows[key]) for key in ours.rows]
    found = {}
    for name in _shared(pairs[0], "scores"):
        found[name] = [[(row["scores"][name], 1) for row in pair] for pair in pairs]
    for name in _shared(pairs[0], "ratios"):
        both = [[row.get("ratios", {}).get(name, (0, 0)) for row in pair] for pair in pairs]
        found[name] = [pair for pair in both if pair[0][1] and pair[1][1]]
    if all(a["answer_tokens"] == b["answer_tokens"] for a, b in pairs):
        found["nll"] = [[(row["nll"], row["answer_tokens"]) for row in pair] for pair in pairs]
    columns = {name: np.array(values, dtype=np.float64).transpose(1, 2, 0) for name, values in found.items() if values}
    return {name: difference(tuple(a), tuple(b), seed, resamples) for name, (a, b) in columns.items()}


def _shared(pair: tuple[dict[str, Any], dict[str, Any]], key: str) -> list[str]:
    return [name for name in pair[0].get(key, {}) if name in pair[1].get(key, {})]
