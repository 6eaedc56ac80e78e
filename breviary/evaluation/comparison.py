"""Paired comparison: two readers' answers to the same questions, subtracted question by question.

Hard questions are hard for both readers. The interval of the paired difference is therefore narrower than the two
separate intervals suggest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from breviary.config.cli.run_names import EVALUATIONS, LATEST, find_run, runs_below
from breviary.evaluation.facts import dataset_name, row_facts
from breviary.evaluation.results import (
    PREDICTIONS,
    RESULTS,
    Predictions,
    contexts_of,
    find_results,
    read_results,
    resampled_units,
)
from breviary.evaluation.statistics import cluster_codes, difference, geometric_difference, paired_ratio
from breviary.runs.folders import load_config
from breviary.runtime.distributed import print_rank0
from breviary.runtime.spelling import command


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


def find_evaluations(words: Sequence[str]) -> list[Path]:
    """The results.json of the evaluation that each word names.

    words  an evaluation's folder, or one above it that holds no other | a RUN (`find_run`): the evaluation of the run's
           own reader that answers the questions of most other words, the newest of them; a line names it
    Raises: ValueError where a word names no evaluation, or several.
    """
    candidates = [_candidates(word) for word in words]
    questions = {file: _questions(file) for files in candidates for file in files}
    shared = Counter(key for files in candidates for key in {questions[file] for file in files})
    found = []
    for word, files in zip(words, candidates):
        found.append(max(files, key=lambda file: (shared[questions[file]], file.stat().st_mtime)))
        if found[-1].parent != Path(word):
            print_rank0(f"{word}: evaluation {found[-1].parent}")
    return found


def _candidates(word: str) -> list[Path]:
    path = Path(word)
    if word == LATEST or (path.is_dir() and runs_below(path)):
        run = find_run(word)
        own = load_config(run).reader
        files = [file for file in sorted((run / EVALUATIONS).rglob(RESULTS)) if read_results(file)["reader"] == own]
        if not files:
            raise ValueError(f"RUN {word}: no evaluation of {own} in it; evaluate first, {command('eval.py', run)}")
        return files
    files = find_results([word])
    if len(files) > 1:
        listed = ", ".join(str(file.parent) for file in files)
        raise ValueError(f"{word}: {len(files)} evaluations below it; name one of them: {listed}")
    return files


def _questions(file: Path) -> tuple[str, int]:
    results = read_results(file)
    return results["data_hash"], results["n"]


def load_evaluations(words: Sequence[str]) -> list[list[EvaluatedReader]]:
    """The evaluations that the words name (`find_evaluations`), grouped by their questions, in the order of `words`.

    Raises: ValueError where a word names no evaluation or several, where predictions are missing, and where an
    evaluation shares its questions with no other.
    """
    groups: dict[tuple[str, frozenset[str]], list[EvaluatedReader]] = {}
    for folder, file in zip(words, find_evaluations(words)):
        path = file.with_name(PREDICTIONS)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; a comparison is made per question and needs the predictions")
        evaluation = EvaluatedReader(folder, read_results(file), {row["id"]: row for row in Predictions(path).rows})
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
    """One row per pair: {"dataset", "n", "reader", "minus", "facts", "metrics", "shares", "shown", "intervals"}.

    facts      of the reader and of the other one, see `breviary.evaluation.facts.row_facts`

    metrics    {metric: {"value", "low", "high"}} of `paired_differences`
    shares     {score: {"value", "low", "high"}} of `paired_shares`
    shown      the metrics that the data set names, the headline first; [] of results that state none
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
            "facts": [row_facts(one.results), row_facts(other.results)],
            "metrics": paired_differences(one, other),
            "shares": paired_shares(one, other),
            "shown": list(one.results.get("scoring", {}).get("names", ())),
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
    codes = cluster_codes(contexts)
    for name, parts in shared_aggregates(one.results, other.results).items():
        ours, others = np.array(
            [[[row["scores"][part] for part in parts] for row in pair] for pair in pairs], dtype=np.float64
        ).transpose(1, 2, 0)
        differences[name] = geometric_difference(tuple(ours), tuple(others), seed, resamples, codes)
    return differences


def paired_shares(
    one: EvaluatedReader, other: EvaluatedReader, seed: int = 0, resamples: int = 2000
) -> dict[str, dict[str, float]]:
    """{score: {"value", "low", "high"}}: the mean of `one` as a share of the mean of `other`, with 95% intervals.

    Questions on one context are resampled together. Without a score where the other reader's mean is 0.
    """
    pairs = [(one.predictions[key], other.predictions[key]) for key in one.predictions]
    codes = cluster_codes(contexts_of(_with_contexts(one, other)))
    shares = {}
    for name in _common_keys(pairs[0], "scores"):
        ours, others = np.array([[row["scores"][name] for row in pair] for pair in pairs], dtype=np.float64).T
        if others.sum():
            shares[name] = paired_ratio(ours, others, seed, resamples, codes)
    return shares


def shared_aggregates(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """{metric: its scores} of the geometric means that both results have."""
    found = [results.get("scoring", {}).get("aggregates", {}) for results in (one, other)]
    return {name: parts for name, parts in found[0].items() if found[1].get(name) == parts}


def _with_contexts(one: EvaluatedReader, other: EvaluatedReader) -> list[dict[str, Any]]:
    """The predictions of `one`, with the contexts of `other` where only those are known (an earlier version's rows)."""
    return [{**other.predictions[key], **row} for key, row in one.predictions.items()]


def _common_keys(pair: tuple[dict[str, Any], dict[str, Any]], key: str) -> list[str]:
    return [name for name in pair[0].get(key, {}) if name in pair[1].get(key, {})]
