"""A grid of readers (columns) by data set, with their mean, or by position of the gold passage (lines).

Each data set is one evaluation; finished rows are not computed again.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from breviary.evaluation.facts import row_facts, with_training
from breviary.evaluation.results import PREDICTIONS, Predictions, contexts_of
from breviary.evaluation.statistics import cluster_codes, interval, mean_of_means
from breviary.evaluation.table import (
    MISSING,
    PHASES,
    TABLE_WIDTH,
    format_bytes,
    format_number,
    format_ratio,
    format_score,
    metric_title,
    print_block,
    shown_metrics,
    table_row,
)
from breviary.report.page.breakdown import positions_of, sort_by_position
from breviary.report.tables.blocks import Block, Line
from breviary.report.tables.files import write_table_files
from breviary.report.tables.measured import Part, part_words, row_variant
from breviary.report.tables.trainings import CellFailed, Evaluate, Tools, log_file, logged
from breviary.runtime.files import write_json
from breviary.runtime.spelling import command

ALL = "all"  # name of the bin with every question
RESAMPLES = 2000
Metric = dict[str, float]  # value, low, high


@dataclass
class Cell:
    """One reader on one data set: its results, and its predictions in the order of the data."""

    results: Mapping[str, Any]
    rows: list[dict[str, Any]]

    def metric(self, name: str, ids: frozenset[str] | None = None) -> Metric | None:
        """A metric over the questions `ids` (None = all), None where no such question has it."""
        if ids is None:
            return self.results["metrics"].get(name)
        pairs = self.pairs(name, ids)
        if not len(pairs):
            return None
        codes = cluster_codes(contexts_of([row for row in self.rows if row["id"] in ids]))
        return interval(pairs[:, 0], pairs[:, 1], seed=0, resamples=RESAMPLES, codes=codes)

    def pairs(self, name: str, ids: frozenset[str] | None = None) -> np.ndarray:
        """Numerator and denominator of the metric for each question, (N, 2); empty where it has no such parts."""
        rows = [row for row in self.rows if ids is None or row["id"] in ids]
        if name == "nll":
            return np.array([(row["nll"], row["answer_tokens"]) for row in rows], dtype=float)
        return np.array([(row["scores"][name], 1) for row in rows if name in row["scores"]], dtype=float)


@dataclass
class Column:
    """A reader of the grid.  cells  {data set: Cell}, without those that failed"""

    title: str
    facts: dict[str, Any]
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass
class Grid:
    """The measurements so far.

    table     of `load_grid`
    columns   by their key, in order of first appearance
    failures  a line about each failed evaluation
    """

    table: Mapping[str, Any]
    columns: dict[str, Column] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def datasets(self) -> list[Part]:
        """The data sets of which some reader is measured."""
        return [part for part in self.table["parts"] if any(part.name in one.cells for one in self.columns.values())]

    def metrics(self, dataset: str) -> list[str]:
        """The metrics of a data set: those that the table names, else the headline."""
        if named := self.table["metrics"][dataset]:
            return list(named)
        cells = [one.cells[dataset] for one in self.columns.values() if dataset in one.cells]
        return shown_metrics([table_row(dict(cell.results)) for cell in cells])[:1]


# ------------------------------------------------------------------ evaluation


def run_grid(table: Mapping[str, Any], folder: Path, outputs: str, tools: Tools) -> Iterator[Path]:
    """Evaluates every data set, writes the table's files anew after each, prints the table, yields the files."""
    grid, files = Grid(table), []
    for part in table["parts"]:
        log, known = log_file(folder, "evaluate", part.name), len(grid.failures)
        tools.say(f"{part.name}: {len(part.rows)} readers; log: {log}")
        evaluate_dataset(grid, part, part_words(part, outputs), tools.evaluate, log)
        for line in grid.failures[known:]:
            tools.say(f"  failed: {line}")
        if grid.columns:
            files = write_grid(folder, grid)
    for block in grid_blocks(grid) if grid.columns else []:
        tools.say(block_text(block))
    yield from files


def evaluate_dataset(grid: Grid, part: Part, words: list[str], evaluate: Evaluate, log: Path) -> None:
    """Adds the cells of a data set: those of the table's readers, of run=RUN itself, and of compare=[RUN].

    Where the joint evaluation fails, each reader is evaluated separately, to isolate the failing one.
    """
    variants = [row_variant(grid.table, *row) for row in part.rows]
    try:
        with logged(log):
            own, *results = evaluate(words, variants)
    except CellFailed as failed:
        reasons = {failed.reason: [""]}
        if len(variants) > 1 or part.value("compare"):
            reasons = _evaluate_alone(grid, part, words, evaluate, log)
        for reason, readers in reasons.items():
            named = ", ".join(filter(None, readers))
            grid.failures.append(
                f"{part.name}: {f'{named}: ' if len(readers) < len(variants) else ''}{reason}; log: {log}"
            )
        return
    _add_all(grid, part, own, results)


def _evaluate_alone(grid: Grid, part: Part, words: list[str], evaluate: Evaluate, log: Path) -> dict[str, list[str]]:
    """Adds a cell for each reader that can be evaluated; {reason: readers} of those that cannot."""
    alone = [word for word in words if not word.startswith("compare=")]
    calls = [(row, alone, [row_variant(grid.table, *row)]) for row in part.rows]
    compared: list[tuple[Any, list[str], list[Any]]] = [(None, words, [])] if part.value("compare") else []
    reasons: dict[str, list[str]] = {}
    for row, own_words, variants in [*calls, *compared]:
        try:
            with logged(log):
                results = evaluate(own_words, variants)[1:]
        except CellFailed as failed:
            reasons.setdefault(failed.reason, []).append(grid.table["readers"][row[0]]["title"] if row else "compare")
            continue
        if row:
            _add_row(grid, part, row, results[0])
        else:
            for result in results:
                _add_run(grid, part, result)
    return reasons


def _add_all(grid: Grid, part: Part, own: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    count = len(part.rows)
    assert len(results) >= count, (len(results), count)
    if part.value("run") and own["folder"] not in [result["folder"] for result in results]:
        _add_run(grid, part, own)
    for row, result in zip(part.rows, results):
        _add_row(grid, part, row, result)
    for result in results[count:]:
        _add_run(grid, part, result)


def _add_row(grid: Grid, part: Part, row: tuple[str, int], result: Mapping[str, Any]) -> None:
    reader, ratio = row
    facts = {key: grid.table["readers"][reader][key] for key in ("kind", "question")} | {"ratio": ratio}
    title = grid.table["readers"][reader]["title"] + (f", {ratio}x" if ratio > 1 else "")
    _add(grid, part, f"{reader} {ratio}", Column(title, facts), result)


def _add_run(grid: Grid, part: Part, result: Mapping[str, Any]) -> None:
    facts = {"kind": "trained", "question": None, "ratio": result["requested_ratio"]}
    title = with_training(result["reader"], row_facts(dict(result))["training"])
    _add(grid, part, str(result["run"]), Column(title, facts), result)


def _add(grid: Grid, part: Part, key: str, column: Column, result: Mapping[str, Any]) -> None:
    rows = Predictions(Path(result["folder"]) / PREDICTIONS).rows
    grid.columns.setdefault(key, column).cells[part.name] = Cell(result, rows)


# ------------------------------------------------------------------ output


def block_text(block: Block) -> str:
    """A block as it is printed: title, table, notes."""
    console = Console(width=TABLE_WIDTH, file=io.StringIO(), color_system=None)
    print_block(console, block.header, [line.cells for line in block.lines])
    return f"\n{block.title}\n\n{console.file.getvalue().rstrip()}\n" + "".join(f"{note}\n" for note in block.notes)


def grid_blocks(grid: Grid) -> list[Block]:
    """The table as text: one block by data set, or one for each data set and metric by position."""
    if grid.table["by"] == "dataset":
        return [_dataset_block(grid)]
    return [_position_block(grid, part, metric) for part in grid.datasets for metric in grid.metrics(part.name)]


def _dataset_block(grid: Grid) -> Block:
    columns, lines = list(grid.columns.values()), []
    for part in grid.datasets:
        metric = grid.metrics(part.name)[0]
        cells = [one.cells.get(part.name) for one in columns]
        texts = [format_metric(cell.metric(metric) if cell else None) for cell in cells]
        count = next(str(cell.results["n"]) for cell in cells if cell)
        lines.append(Line([part.title, metric_title(metric), *texts, count], part.name, _details(cells)))
    notes = list(grid.failures)
    shared = shared_datasets(grid)
    if shared:
        means = [format_metric(mean_score(grid, one)) for one in columns]
        lines.append(Line([f"mean of {len(shared)}", "", *means, ""], "mean"))
        others = [MISSING, *(format_metric(mean_score(grid, one, columns[0])) for one in columns[1:])]
        lines.append(Line([f"minus {columns[0].title}", "", *others, ""], "difference of means"))
        lines += [Line([name, "", *texts, ""], name) for name, texts in _cost_lines(columns, shared)]
    if len(shared) < len(grid.table["parts"]):
        notes.append(f"the mean is over {len(shared)} of {len(grid.table['parts'])} data sets, those of every reader")
    return Block(grid.table["title"], ["data set", "metric", *(one.title for one in columns), "n"], lines, notes)


def _position_block(grid: Grid, part: Part, metric: str) -> Block:
    columns = [one for one in grid.columns.values() if part.name in one.cells]
    lines = []
    for name, ids in position_bins(columns, part.name):
        values = [one.cells[part.name].metric(metric, ids) for one in columns]
        count = len(columns[0].cells[part.name].rows) if ids is None else len(ids)
        lines.append(Line([name, *map(format_metric, values), str(count)], name))
    lines += [Line([name, *texts, ""], name) for name, texts in _cost_lines(columns, [part.name])]
    title = f"{part.title}: {metric_title(metric)}"
    notes = [line for line in grid.failures if line.startswith(f"{part.name}:")]
    return Block(title, ["gold passage at", *(one.title for one in columns), "n"], lines, notes, texts=1)


def position_bins(columns: Sequence[Column], dataset: str) -> list[tuple[str, frozenset[str] | None]]:
    """(position of the gold passage, ids of its questions), then all questions (None)."""
    bins = sort_by_position(positions_of(one.cells[dataset].rows for one in columns))
    return [*bins, (ALL, None)]


def shared_datasets(grid: Grid) -> list[str]:
    """The data sets of which every reader has a cell."""
    return [part.name for part in grid.datasets if all(part.name in one.cells for one in grid.columns.values())]


def mean_score(grid: Grid, column: Column, other: Column | None = None) -> Metric | None:
    """The mean over data sets of a reader's headline metrics, or of its paired difference from another reader.

    None where a metric has no value for single questions.
    """
    pairs, codes = [], []
    for name in shared_datasets(grid):
        metric = grid.metrics(name)[0]
        own = column.cells[name].pairs(metric)
        if not len(own):
            return None
        if other is not None:
            own[:, 0] -= other.cells[name].pairs(metric)[:, 0]
        pairs.append(own)
        codes.append(cluster_codes(contexts_of(column.cells[name].rows)))
    return mean_of_means(pairs, codes, seed=0, resamples=RESAMPLES, are_differences=other is not None)


def _cost_lines(columns: Sequence[Column], datasets: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Achieved ratio, memory and time to the first token of each reader, means over data sets."""
    costs = [[_costs(one.cells[name].results) for name in datasets] for one in columns]
    for key, title, text in (
        ("effective_ratio", "achieved ratio", format_ratio),
        ("memory_bytes", "memory", format_bytes),
        ("first_token_s", "first token, s", format_number),
    ):
        values = [[cost[key] for cost in own] for own in costs]
        yield title, [text(None if None in own else float(np.mean(own))) for own in values]


def _costs(results: Mapping[str, Any]) -> dict[str, Any]:
    flat = table_row(dict(results))
    times = [flat[phase] for phase in PHASES[:3] if flat[phase] is not None]
    return {
        "effective_ratio": flat["effective_ratio"],
        "memory_bytes": flat["memory_bytes"],
        "first_token_s": sum(times) / 1000,
    }


def _details(cells: Sequence[Cell | None]) -> dict[str, str]:
    results = next(cell.results for cell in cells if cell)
    return (
        {"commit": str(results["commit"])[:12], "data (hash)": results["data_hash"][:12]} if results["commit"] else {}
    )


def format_metric(metric: Metric | None) -> str:
    """ ".71 [.64, .77]"; "-" for None."""
    if metric is None:
        return MISSING
    return format_score({"m": metric["value"], "m_low": metric["low"], "m_high": metric["high"]}, "m")


def grid_rows(grid: Grid) -> list[dict[str, Any]]:
    """One flat row for each number of the table, for JSON and CSV."""
    rows = []
    for part in grid.datasets:
        columns = [one for one in grid.columns.values() if part.name in one.cells]
        bins = position_bins(columns, part.name) if grid.table["by"] == "position" else [(ALL, None)]
        for metric in grid.metrics(part.name):
            for one in columns:
                for name, ids in bins:
                    found = one.cells[part.name].metric(metric, ids)
                    n = len(one.cells[part.name].rows) if ids is None else len(ids)
                    rows.append(_flat(one, part.name, metric, name, n, found, one.cells[part.name].results))
    if grid.table["by"] == "dataset" and shared_datasets(grid):
        count = len(shared_datasets(grid))
        rows += [
            _flat(one, f"mean of {count}", "", ALL, None, mean_score(grid, one), None) for one in grid.columns.values()
        ]
    return rows


def _flat(
    column: Column,
    dataset: str,
    metric: str,
    position: str,
    n: int | None,
    found: Metric | None,
    results: Mapping[str, Any] | None,
) -> dict[str, Any]:
    costs = _costs(results) if results else dict.fromkeys(("effective_ratio", "memory_bytes", "first_token_s"))
    return {
        "dataset": dataset,
        "gold_at": position,
        "metric": metric,
        "reader": column.title,
        **column.facts,
        "n": n,
        **(found or dict.fromkeys(("value", "low", "high"))),
        **costs,
        "commit": results["commit"] if results else None,
        "data_hash": results["data_hash"] if results else None,
    }


def write_grid(folder: Path, grid: Grid) -> list[Path]:
    """Writes NAME.json, NAME.md, NAME.csv, NAME.tex and NAME.html; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, rows = grid.table, grid_rows(grid)
    [part, *_] = table["parts"]
    settings = [word for word in part.overrides(["dataset"]) if not word.startswith("paths.")]
    file = folder / f"{table['name']}.json"
    write_json(file, {"title": table["title"], "settings": settings, "failures": grid.failures, "rows": rows})
    made = command("scripts/table.py", table["name"], *table["words"])
    text = {"title": table["title"], "source": None, "command": made}
    text["notes"] = [*table["notes"], f"settings: {' '.join(settings)}"]
    return [file, *write_table_files(folder, table["name"], text, grid_blocks(grid), rows)]
