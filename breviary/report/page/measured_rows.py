"""The rows of the page: each reader's numbers with its predictions, grouped by the questions that were answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from breviary.evaluation.facts import dataset_name, mixed_facts, stored_training, training_text, with_training
from breviary.evaluation.results import PREDICTIONS, Predictions
from breviary.evaluation.table import PHASES, SCORES, metric_title, row_label, shown_metrics
from breviary.report.sweep import Setting, headline, setting_row

LOWER_IS_BETTER = ("nll", "ce", "bits_per_byte", "continuation_nll", "continuation_perplexity")

FIRST_TOKEN = PHASES[:3]  # the phases before the first token of the answer

BUDGET = re.compile(r", (?:ratio|slots|bytes)=[^,() ]+")
OF_GROUP = re.compile(r", (?:n=\d+|dataset\=[^,()]+(?:\([^()]*\))?)")  # parts of a label that a whole group shares

Pair = tuple[float, float]  # numerator and denominator of a ratio of sums; a score has the denominator 1


@dataclass
class Measured:
    """One reader with its budget.

    number       its place in the list of all rows of the page, from 1
    row          as of `setting_row`
    line         the reader without its budget, as in the legend: the readers of one line differ in the budget alone
    predictions  {id: row of predictions.jsonl} of each seed; empty where the file is missing
    """

    number: int
    setting: Setting
    row: dict[str, Any]
    line: str
    predictions: list[dict[str, dict[str, Any]]]

    @property
    def label(self) -> str:
        """The reader with its training, as in every table; with its ratio where the name does not state it."""
        return row_label(self.row)

    @property
    def milliseconds(self) -> float | None:
        """Time to first token, the sum of the medians of its phases; None where one was not measured."""
        values = [self.row.get(phase) for phase in FIRST_TOKEN]
        return None if None in values else float(sum(values))  # type: ignore[arg-type]

    @cached_property
    def ids(self) -> frozenset[str]:
        """Ids of the questions that every seed answered."""
        return frozenset.intersection(*map(frozenset, self.predictions)) if self.predictions else frozenset()

    def pairs(self, metric: str) -> dict[str, Pair]:
        """{id: mean over the seeds of numerator and denominator}, without questions that lack the metric.

        In the order of the predictions, on which resampling depends.
        """
        found = {}
        for key in [key for rows in self.predictions[:1] for key in rows if key in self.ids]:
            pairs = [metric_pair(rows[key], metric) for rows in self.predictions]
            known = [pair for pair in pairs if pair is not None]
            if known and len(known) == len(pairs):
                found[key] = (sum(top for top, _ in known) / len(known), sum(low for _, low in known) / len(known))
        return found


@dataclass
class Group:
    """Rows on the same questions, best first.

    number  from 1;  name  of the data;  metric  that ranks the rows
    """

    number: int
    name: str
    metric: str
    rows: list[Measured]

    @property
    def title(self) -> str:
        """The metric as tables name it."""
        return metric_title(self.metric)

    @property
    def metrics(self) -> list[str]:
        """The ranking metric, those that the data set names, and what else some row has beside SCORES."""
        names = [key.removesuffix("_low") for one in self.rows for key in one.row if key.endswith("_low")]
        shown = [*shown_metrics(one.row for one in self.rows), *(name for name in names if name not in SCORES)]
        measured = [name for name in shown if any(one.row.get(name) is not None for one in self.rows)]
        return list(dict.fromkeys([self.metric, *measured]))

    @property
    def lines(self) -> list[str]:
        """The lines of the figures, in the order of their best row."""
        return list(dict.fromkeys(one.line for one in self.rows))


def is_lower_better(metric: str) -> bool:
    """Whether smaller values are better."""
    return metric in LOWER_IS_BETTER


def metric_pair(row: Mapping[str, Any], metric: str) -> Pair | None:
    """The metric of one prediction; None where it has none."""
    if metric in row["scores"]:
        return row["scores"][metric], 1.0
    pair = (row["nll"], row["answer_tokens"]) if metric == "nll" else row.get("ratios", {}).get(metric, (0, 0))
    return (pair[0], pair[1]) if pair[1] else None


def group_rows(settings: Sequence[Setting], metric: str | None) -> list[Group]:
    """The groups in the order of `settings`.

    metric  ranks every group that has it; `headline` ranks the others
    """
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.results[0]["data_hash"], []).append(setting)
    found: list[Group] = []
    for name, own in zip(_group_names(list(groups.values())), groups.values()):
        rows = [setting_row(setting) | {"reader": OF_GROUP.sub("", setting.label)} for setting in own]
        lines = line_names(own, rows)
        ranking = metric if metric and any(row.get(metric) is not None for row in rows) else headline(own)
        sign = 1 if is_lower_better(ranking) else -1
        order = sorted(
            range(len(own)), key=lambda i: (rows[i].get(ranking) is None, sign * (rows[i].get(ranking) or 0))
        )
        start = 1 + sum(len(group.rows) for group in found)
        measured = [
            Measured(start + place, own[i], rows[i], lines[i], _predictions(own[i])) for place, i in enumerate(order)
        ]
        _name_budgets(measured)
        found.append(Group(len(found) + 1, name, ranking, measured))
    return found


def _group_names(groups: Sequence[Sequence[Setting]]) -> list[str]:
    """The data set of each group, with the number of examples, and then the hash, where several have the same name."""
    results = [group[0].results[0] for group in groups]
    names = [dataset_name(one) for one in results]
    for suffix in (lambda one: f"n={one['n']}", lambda one: one["data_hash"][:8]):
        names = [
            name if names.count(name) == 1 else f"{name}, {suffix(one)}" for name, one in zip(list(names), results)
        ]
    return names


def line_names(settings: Sequence[Setting], rows: Sequence[dict[str, Any]]) -> list[str]:
    """The line of each row: the reader without its budget, its training, and the facts in which rows differ."""
    bases = [BUDGET.sub("", row["reader"]) for row in rows]
    mixed = [key for key in mixed_facts(rows) if key not in ("n", "data")]
    names = []
    for base, row in zip(bases, rows):
        same = [setting for setting, other in zip(settings, bases) if other == base]
        training = training_text([stored_training(result) for setting in same for result in setting.results])
        facts = [str(row[key]) for key in mixed if row[key] is not None and f"={row[key]}" not in base]
        names.append(", ".join([with_training(base, training), *facts]))
    return names


def _predictions(setting: Setting) -> list[dict[str, dict[str, Any]]]:
    """The predictions of each seed; empty unless all have them."""
    files = [Path(result["file"]).with_name(PREDICTIONS) for result in setting.results]
    if not all(file.is_file() for file in files):
        return []
    return [{row["id"]: row for row in Predictions(file).rows} for file in files]


def _name_budgets(rows: Sequence[Measured]) -> None:
    """Adds the requested ratio to each label that several rows have."""
    labels = [one.row["reader"] for one in rows]
    for one in rows:
        ratio = one.row.get("requested_ratio")
        if labels.count(one.row["reader"]) > 1 and ratio is not None:
            one.row = one.row | {"reader": f"{one.row['reader']}, {ratio:g}x"}
