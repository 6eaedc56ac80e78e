"""A table as blocks of text, one for each data set: published numbers beside ours, what is missing, what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from breviary.evaluation.facts import row_facts
from breviary.evaluation.table import MISSING, TITLES, format_ratio, format_significant
from breviary.report.tables.form import FURTHER_TITLES, UNITS, cannot_be_strict, cell_commands, cell_name, row_datasets

STRICT, OTHER = "‡", "†"  # marks of published numbers
MARKS = {
    OTHER: "of other data, backbone or ratio than this row: it gives the order of magnitude, and is no comparison",
    STRICT: "EM above F1: no strict exact match over the same references, which cannot exceed F1",
}


@dataclass
class Outcome:
    """What is known of one cell.

    results   results.json, or what a script measured (`measurements.read_measurement`); None = there are none
    reason    why it has none although it was tried, in one line; log  file with all of it
    unstored  what results of an earlier version do not state
    """

    results: dict[str, Any] | None = None
    reason: str | None = None
    log: str | None = None
    unstored: list[str] = field(default_factory=list)


@dataclass
class Line:
    """One row of a block: its cells, and how its numbers were made."""

    cells: list[str]
    name: str = ""
    details: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)


@dataclass
class Block:
    """A table of text. A header of two lines has a line break; the first `texts` columns are left-aligned."""

    title: str
    header: list[str]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)
    texts: int = 2


def paper_blocks(table: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> list[Block]:
    """One block for each data set of a table at one scale.

    outcomes  by cell, "ROW/DATASET"; a cell without one was not tried
    Raises: ValueError where two results of a data set are of different examples.
    """
    blocks = [_block(table, key, outcomes) for key in table["datasets"]]
    return [block for block in blocks if block.lines]


def _block(table: Mapping[str, Any], dataset: str, outcomes: Mapping[str, Outcome]) -> Block:
    lines, notes, used, examples, missing = [], [], set(), {}, 0
    for row in table["rows"]:
        name = cell_name(row, dataset)
        if dataset not in row_datasets(table, row):
            continue
        outcome = outcomes.get(name, Outcome())
        missing += bool(outcomes and name not in outcomes and (row["evaluate"] or row["measure"]))
        if outcome.unstored:
            notes.append(f"{name}: not stored in these results, so not compared: {', '.join(outcome.unstored)}")
        if outcome.reason:
            notes.append(f"{name} failed: {outcome.reason}" + (f"; log: {outcome.log}" if outcome.log else ""))
        if outcome.results and outcome.results.get("data_hash"):
            examples[row["id"]] = outcome.results["data_hash"]
        line, marks = _line(table, row, dataset, outcome)
        used |= marks
        lines.append(line)
    if len(set(examples.values())) > 1:
        listed = ", ".join(f"{row} ({digest[:12]})" for row, digest in examples.items())
        raise ValueError(f"{dataset}: the runs answer different examples (data hash): {listed}")
    notes += [f"{mark} {MARKS[mark]}" for mark in MARKS if mark in used]
    if missing:
        notes.append(f"{missing} of {len(lines)} rows are not measured yet ({MISSING})")
    return Block(table["datasets"][dataset]["title"], _header(table, dataset), lines, notes)


def _header(table: Mapping[str, Any], dataset: str) -> list[str]:
    header = ["reader", "backbone", "ratio"]
    for column in table["columns"]:
        header.append(f"{column['title']}\npublished")
        header += [f"{metric_title(name)}\nours" for name in ours_of(table, dataset, column)]
    return [*header, "achieved\nours", "n\nours", "training\nours"]


def ours_of(table: Mapping[str, Any], dataset: str, column: Mapping[str, Any]) -> list[str]:
    """Our metrics beside a published column, for a data set."""
    return table["datasets"][dataset].get("ours") or column["ours"]


def metrics_of(table: Mapping[str, Any], dataset: str) -> list[str]:
    """Our metrics of a data set."""
    return [name for column in table["columns"] for name in ours_of(table, dataset, column)]


def metric_title(name: str) -> str:
    """A metric's title in tables; a field of a script's file keeps its name, with spaces."""
    return FURTHER_TITLES.get(name) or TITLES.get(name) or name.replace("_", " ")


def _line(table: Mapping[str, Any], row: Mapping[str, Any], dataset: str, outcome: Outcome) -> tuple[Line, set[str]]:
    """A row's line, and the marks that its published numbers carry."""
    published, results = row["published"].get(dataset, {}), outcome.results
    marks = {OTHER} if published and row["published_on"] else set()
    cells = [row["title"], row["backbone"] or MISSING, MISSING if row["ratio"] is None else f"{row['ratio']}x"]
    for column in table["columns"]:
        value, mark = published.get(column["published"]), OTHER if OTHER in marks else ""
        if column["published"] == "em" and cannot_be_strict(published):
            mark += STRICT
            marks.add(STRICT)
        cells.append(format_published(value, column["unit"], mark))
        cells += [_ours(row, outcome, name, column["unit"]) for name in ours_of(table, dataset, column)]
    cells += [
        format_ratio(results.get("effective_ratio") if results else None),
        format_significant(results.get("n") if results else None),
        training_of(results) if results else MISSING,
    ]
    commands = cell_commands(table, row, dataset) if row["evaluate"] or row["measure"] else []
    return Line(cells, cell_name(row, dataset), details_of(row, dataset, outcome), commands), marks


def _ours(row: Mapping[str, Any], outcome: Outcome, name: str, unit: str) -> str:
    if outcome.results:
        return format_measured(outcome.results["metrics"].get(name), unit)
    return "failed" if outcome.reason else MISSING


def details_of(row: Mapping[str, Any], dataset: str, outcome: Outcome) -> dict[str, str]:
    """How the numbers of a cell were made, name: text; for the page."""
    details: dict[str, Any] = {}
    if row["published"].get(dataset) and row["published_on"]:
        details["published number of"] = row["published_on"]
    if not (row["evaluate"] or row["measure"]):
        details["ours"] = "not implemented here"
    if outcome.reason:
        details |= {"failed": outcome.reason, "log": outcome.log}
    if results := outcome.results:
        dirty = " and changes" if results.get("dirty") else ""
        details |= {
            "commit": f"{results['commit'][:12]}{dirty}" if results.get("commit") else None,
            "data (hash)": (results.get("data_hash") or "")[:12],
            "hardware": hardware_text(results.get("hardware") or {}),
            "results": results.get("run"),
        }
    return {key: str(value) for key, value in details.items() if value}


def hardware_text(hardware: Mapping[str, Any]) -> str:
    """The hardware of results in one line."""
    return ", ".join(f"{key}: {value}" for key, value in hardware.items() if value not in (None, "", [], {}))


def training_of(results: Mapping[str, Any]) -> str:
    """How a cell's reader was trained; a script's measurement has a text of its own."""
    return results["training"] if isinstance(results.get("training"), str) else row_facts(results)["training"]


# ------------------------------------------------------------------ numbers


def format_published(value: float | str | None, unit: str, mark: str = "") -> str:
    """A published number as printed, with its marks; a text, such as "negative", as it is."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value + mark
    return (f"{value:.2f}" if unit == "percent" else f"{value:g}{UNITS[unit][2]}") + mark


def format_measured(metric: Mapping[str, float] | None, unit: str) -> str:
    """A metric with its interval: 0.412 as "41.2 [38.0, 44.5]" in percent points, "4.2x" without an interval."""
    if metric is None or metric.get("value") is None:
        return MISSING
    factor, digits, suffix = UNITS[unit]
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    text = f"{factor * value:{digits}}{suffix}"  # type: ignore[operator]
    return text if low is None or high is None else f"{text} [{factor * low:{digits}}, {factor * high:{digits}}]"


def flat_rows(table: Mapping[str, Any], scale: str, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """One flat dictionary for each cell and metric of ours, for CSV. Percent columns are in percent points."""
    rows = []
    for dataset in table["datasets"]:
        for row in table["rows"]:
            if dataset in row_datasets(table, row):
                outcome = outcomes.get(cell_name(row, dataset), Outcome())
                rows += _flat(table, scale, row, dataset, outcome)
    return rows


def _flat(
    table: Mapping[str, Any], scale: str, row: Mapping[str, Any], dataset: str, outcome: Outcome
) -> list[dict[str, Any]]:
    results, published, rows = outcome.results or {}, row["published"].get(dataset, {}), []
    shared = {
        "effective_ratio": results.get("effective_ratio"),
        "n": results.get("n"),
        "training": training_of(results) if results else None,
        "commit": results.get("commit"),
        "data_hash": results.get("data_hash"),
        "results": results.get("run"),
        "failed": outcome.reason,
        "log": outcome.log,
    }
    for column in table["columns"]:
        for name in ours_of(table, dataset, column):
            metric, factor = results.get("metrics", {}).get(name) or {}, UNITS[column["unit"]][0]
            rows.append(
                {
                    "scale": scale,
                    "dataset": dataset,
                    "row": row["id"],
                    "reader": row["title"],
                    "backbone": row["backbone"],
                    "requested_ratio": row["ratio"],
                    "published_metric": column["title"],
                    "published": published.get(column["published"]),
                    "published_on": row["published_on"] if published else None,
                    "published_em_above_f1": cannot_be_strict(published),
                    "metric": name,
                    **{key: _times(metric.get(key), factor) for key in ("value", "low", "high")},
                    **shared,
                }
            )
    return rows


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def sentence(notes: Sequence[str]) -> list[str]:
    """Notes with folded line breaks as single lines."""
    return [" ".join(str(note).split()) for note in notes]
