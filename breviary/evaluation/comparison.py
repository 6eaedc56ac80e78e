"""Paired comparison: two readers' answers to the same questions, subtracted question by question.

Hard questions are hard for both readers. The interval of the paired difference is therefore narrower than the two
separate intervals suggest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from breviary.evaluation.results import (
    PREDICTIONS,
    Predictions,
    contexts_of,
    find_results,
    read_results,
    resampled_units,
    source_of,
)
from breviary.evaluation.statistics import cluster_codes, difference


@dataclass
class EvaluatedReader:
    """One reader's evaluation.

    name         the reader; with its ratio, or replaced by the folder, where several have the same name
    results      content of results.json
    predictions  {id: row of predictions.jsonl}
    """

    name: str
    results: dict[str, Any]
    predictions: dict[str, dict[str, Any]]


def load_evaluations(folders: Sequence[str]) -> list[list[EvaluatedReader]]:
    """The evaluations in the folders, grouped by their questions; groups and members keep the order of `folders`.

    A folder may also be above the evaluation, if it holds only one. Raises ValueError where a folder holds none or
    several, where predictions are missing, and where an evaluation shares its questions with no other.
    """
    groups: dict[tuple[str, frozenset[str]], list[EvaluatedReader]] = {}
    for folder in folders:
        files = find_results([folder])
        if len(files) > 1:
            raise ValueError(
                f"{folder}: {len(files)} evaluations below it; name one of them: "
                + ", ".join(str(file.parent) for file in files)
            )
        path = files[0].with_name(PREDICTIONS)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; a comparison is made per question and needs the predictions")
        evaluation = EvaluatedReader(folder, read_results(files[0]), {row["id"]: row for row in Predictions(path).rows})
        key = (evaluation.results["data_hash"], frozenset(evaluation.predictions))
        groups.setdefault(key, []).append(evaluation)
    for group in groups.values():
        if len(group) == 1:
            [single] = group
            raise ValueError(
                f"{single.name} answers other questions than every other evaluation ({single.results['n']} of "
                f"{dataset_name(single.results)}); evaluate both with the same dataset, split and examples"
            )
        _assign_names(group)
    return list(groups.values())


def dataset_name(results: dict[str, Any]) -> str:
    """The data files as "nq/test.jsonl.gz", or the class that generates the examples, e.g. "InventedFacts".

    Without a configuration in the results: the first digits of the data hash.
    """
    config = results["config"] or {}
    data = config.get("dataset", {})
    if data.get(split := config.get("split", "test")):
        return source_of(data, split, parts=2)
    return data.get("_target_", results["data_hash"][:12]).rpartition(".")[2]


def _assign_names(group: list[EvaluatedReader]) -> None:
    """Names each evaluation by its reader, by reader and ratio where that is ambiguous, else by its folder."""
    with_ratio = [
        one.results["reader"]
        + (f", {one.results['requested_ratio']:g}x" if one.results["requested_ratio"] is not None else "")
        for one in group
    ]
    readers, ratios = Counter(one.results["reader"] for one in group), Counter(with_ratio)
    for one, longer in zip(group, with_ratio):
        if readers[one.results["reader"]] == 1:
            one.name = one.results["reader"]
        elif ratios[longer] == 1:
            one.name = longer


def comparison_rows(group: list[EvaluatedReader], all_pairs: bool) -> list[dict[str, Any]]:
    """One row per pair: {"dataset", "n", "reader", "minus", "metrics", "intervals"}.

    metrics    {metric: {"value", "low", "high"}} of `paired_differences`
    intervals  as in `breviary.evaluation.results.resampled_units`
    group      evaluations of the same questions
    all_pairs  every evaluation minus every later one; otherwise the first minus each other one
    """
    pairs = combinations(group, 2) if all_pairs else ((group[0], other) for other in group[1:])
    dataset = dataset_name(group[0].results)
    return [
        {
            "dataset": dataset,
            "n": len(one.predictions),
            "reader": one.name,
            "minus": other.name,
            "metrics": paired_differences(one, other),
            "intervals": resampled_units(_with_contexts(one, other)),
        }
        for one, other in pairs
    ]


def paired_differences(
    one: EvaluatedReader, other: EvaluatedReader, seed: int = 0, resamples: int = 2000
) -> dict[str, dict[str, float]]:
    """{metric: {"value", "low", "high"}} of `one` minus `other`, with 95% intervals (breviary.evaluation.statistics).

    Questions on one context are resampled together.
    Scores are differences of means; NLL and other ratios are differences of ratios of sums, as in the results of each.
    NLL per token is omitted where the token counts of an answer differ (different tokenizers).
    """
    pairs = [(one.predictions[key], other.predictions[key]) for key in one.predictions]
    contexts = contexts_of(_with_contexts(one, other))
    values = {}
    for name in _common_keys(pairs[0], "scores"):
        values[name] = [[(row["scores"][name], 1) for row in pair] for pair in pairs]
    for name in _common_keys(pairs[0], "ratios"):
        values[name] = [[row.get("ratios", {}).get(name, (0, 0)) for row in pair] for pair in pairs]
    if all(a["answer_tokens"] == b["answer_tokens"] for a, b in pairs):
        values["nll"] = [[(row["nll"], row["answer_tokens"]) for row in pair] for pair in pairs]
    differences = {}
    for name, rows in values.items():
        used = [i for i, pair in enumerate(rows) if pair[0][1] and pair[1][1]]  # no denominator of 0
        if used:
            ours, others = np.array([rows[i] for i in used], dtype=np.float64).transpose(1, 2, 0)
            codes = cluster_codes([contexts[i] for i in used])
            differences[name] = difference(tuple(ours), tuple(others), seed, resamples, codes)
    return differences


def _with_contexts(one: EvaluatedReader, other: EvaluatedReader) -> list[dict[str, Any]]:
    """The predictions of `one`, with the contexts of `other` where only those are known (an earlier version's rows)."""
    return [{**other.predictions[key], **row} for key, row in one.predictions.items()]


def _common_keys(pair: tuple[dict[str, Any], dict[str, Any]], key: str) -> list[str]:
    return [name for name in pair[0].get(key, {}) if name in pair[1].get(key, {})]
