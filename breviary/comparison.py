"""Two readers' answers to the same questions, one minus the other, question by question.

A hard question is hard for both: what the two intervals, laid side by side, leave open, the paired difference may tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from breviary.report import find_results
from breviary.results import PREDICTIONS, Predictions, read_results
from breviary.statistics import difference


@dataclass
class Answered:
    """One reader's evaluation.

    name      the reader's, with its ratio or folder where another one is called so too
    results   of its results.json
    rows      {id: prediction}
    """

    name: str
    results: dict[str, Any]
    rows: dict[str, dict[str, Any]]


def load_answered(folders: Sequence[str]) -> list[Answered]:
    """The evaluation in each folder, or below it where there is only one there.

    Raises ValueError where there is none or are several, its predictions are missing, or they answer other data than the first's.
    """
    found = []
    for folder in folders:
        files = find_results([folder])
        if len(files) > 1:
            raise ValueError(f"{folder}: {len(files)} evaluations below it; name one of them: "
                             + ", ".join(str(file.parent) for file in files))
        path = files[0].with_name(PREDICTIONS)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; a comparison goes question by question and needs the predictions")
        found.append(Answered(folder, read_results(files[0]), {row["id"]: row for row in Predictions(path).rows}))
    first = found[0]
    for one in found[1:]:
        if one.results["data_hash"] != first.results["data_hash"] or one.rows.keys() != first.rows.keys():
            raise ValueError(f"{one.name} answers other questions than {first.name} ({one.results['n']} and "
                             f"{first.results['n']}); evaluate both with the same dataset, split and examples")
    _name(found)
    return found


def _name(found: list[Answered]) -> None:
    """As short as tells them apart."""
    forms = [lambda r: r["reader"],
             lambda r: r["reader"] + (f", {r['asked_ratio']:g}x" if r["asked_ratio"] is not None else "")]
    for form in forms:
        names = [form(one.results) for one in found]
        if len(set(names)) == len(names):
            for one, name in zip(found, names):
                one.name = name
            return


def differences(ours: Answered, other: Answered, seed: int = 0, resamples: int = 2000) -> dict[str, dict[str, float]]:
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
