"""A published table beside our results, with the commands that reproduce each cell. configs/table/ holds the tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.text import Text

from breviary.config.keys import CONFIGS
from breviary.evaluation.facts import row_facts
from breviary.evaluation.results import PREDICTIONS, Predictions, contexts_of, find_results, read_results
from breviary.evaluation.statistics import cluster_codes, interval
from breviary.evaluation.table import (
    METRICS,
    MISSING,
    RECONSTRUCTION_METRICS,
    TABLE_WIDTH,
    TITLES,
    format_significant,
    print_block,
)
from breviary.report.published_cells import cell_problems, command_estimate

TABLES = CONFIGS / "table"
TABLE_KEYS = {"title", "source", "notes", "datasets", "columns", "rows"}
ROW_KEYS = {"id", "title", "backbone", "ratio", "reader", "train", "evaluate", "published", "runs"}
DATASET_KEYS = {"title", "n", "tokens"}
DATASET_OPTIONS = {"options", "ours"}
COLUMN_KEYS = {"title", "published", "ours"}

# Metrics that results do not hold: {name: (prediction, references) -> score in [0, 1]}, given by the caller.
Further = Mapping[str, Callable[[str, Sequence[str]], float]]
FURTHER_TITLES = {"rouge_1": "ROUGE-1"}


# ------------------------------------------------------------------ the table


def load_published_table(name: str) -> dict[str, Any]:
    """The table of configs/table/NAME.yaml, or of the file NAME. Raises ValueError for a missing file or wrong keys."""
    path = Path(name) if Path(name).is_file() else TABLES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in TABLES.glob("*.yaml")))
        raise ValueError(f"no table {name!r}: give a YAML file, or one of {known}")
    table = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(table, dict):
        kind, keys = type(table).__name__, ", ".join(sorted(TABLE_KEYS))
        raise ValueError(f"{path} holds a {kind}; it must hold the keys {keys}")
    _check_keys(f"{path}", table, TABLE_KEYS)
    for key, dataset in table["datasets"].items():
        _check_keys(f"{path}: datasets.{key}", dataset, DATASET_KEYS, DATASET_OPTIONS)
        _check_metrics(f"{path}: datasets.{key}", dataset.get("ours", []))
    for i, column in enumerate(table["columns"]):
        _check_keys(f"{path}: columns[{i}]", column, COLUMN_KEYS)
        _check_metrics(f"{path}: columns[{i}]", column["ours"])
    for i, row in enumerate(table["rows"]):
        _check_keys(f"{path}: rows[{i}]", row, ROW_KEYS)
        unknown = sorted((row["published"].keys() | row["runs"].keys()) - table["datasets"].keys())
        if unknown:
            raise ValueError(f"{path}: row {row['id']} names {unknown}; datasets has {sorted(table['datasets'])}")
    ids = [row["id"] for row in table["rows"]]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path}: row ids must differ, but are {ids}")
    return table


def _check_keys(where: str, value: dict[str, Any], wanted: set[str], optional: Collection[str] = ()) -> None:
    missing, unknown = sorted(wanted - value.keys()), sorted(value.keys() - wanted - set(optional))
    if missing or unknown:
        raise ValueError(f"{where}: missing {missing}, unknown {unknown}")


def _check_metrics(where: str, names: Iterable[str]) -> None:
    known = (*METRICS, *RECONSTRUCTION_METRICS, *FURTHER_TITLES)
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{where}.ours has {unknown}; allowed are {', '.join(known)}")


def add_runs(table: dict[str, Any], assignments: Iterable[str]) -> None:
    """Adds runs, each given as ROW/DATASET=RUN, to the table in place. Raises ValueError for unknown names."""
    rows = {row["id"]: row for row in table["rows"]}
    for assignment in assignments:
        cell, _, run = assignment.partition("=")
        row, _, dataset = cell.partition("/")
        if not run or row not in rows or dataset not in table["datasets"]:
            raise ValueError(
                f"--run {assignment}: must be ROW/DATASET=RUN with ROW one of {', '.join(rows)} and DATASET "
                f"one of {', '.join(table['datasets'])}"
            )
        rows[row]["runs"][dataset] = run


# ------------------------------------------------------------------ commands


def cell_commands(table: dict[str, Any], row: dict[str, Any], dataset: str) -> list[str]:
    """The commands of a cell in order: those that train, and the one that evaluates."""
    options = table["datasets"][dataset].get("options", "")
    words = [command.format(dataset=dataset, options=options) for command in (*row["train"], row["evaluate"])]
    return [" ".join(command.split()) for command in words]


def published_cells(table: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """(row, dataset) of every cell with a published number."""
    return [(row, key) for key in table["datasets"] for row in table["rows"] if key in row["published"]]


def grouped_commands(table: dict[str, Any], datasets: Sequence[str] | None = None) -> list[tuple[list[str], list[str]]]:
    """(commands, cells "ROW/DATASET") of the cells of `datasets` (None = all): cells of equal commands together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row, dataset in published_cells(table):
        if datasets is not None and dataset not in datasets:
            continue
        groups.setdefault(tuple(cell_commands(table, row, dataset)), []).append(f"{row['id']}/{dataset}")
    return [(list(commands), cells) for commands, cells in groups.items()]


# ------------------------------------------------------------------ our results


def our_results(
    table: dict[str, Any], row: dict[str, Any], dataset: str, further: Further
) -> tuple[dict[str, Any] | None, list[str]]:
    """The results of the row's reader in its run for `dataset`, or None; and what about them is not stored.

    further  metrics that are computed from the predictions and added to those of the results
    Raises ValueError where the run has no results of that reader, or several; and where its backbone, ratio, data,
    prompt, number of examples or training is not the cell's, with all of these.
    """
    if dataset not in row["runs"]:
        return None, []
    run = row["runs"][dataset]
    matching = [file for file in find_results([run]) if read_results(file)["reader"] == row["reader"]]
    if len(matching) != 1:
        raise ValueError(
            f"{run} holds {len(matching)} results of reader {row['reader']} (row {row['id']}); name the "
            "folder of one evaluation, RUN/eval/HASH"
        )
    results = read_results(matching[0])
    commands = cell_commands(table, row, dataset)
    problems, unknown = cell_problems(results, row, commands, table["datasets"][dataset]["n"])
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"{run}: is not the cell {row['id']}/{dataset}:{listed}")
    for name in further.keys() & set(_metrics_of(table, dataset)):
        results["metrics"][name] = _further_metric(matching[0].with_name(PREDICTIONS), further[name])
    return results, unknown


def _further_metric(file: Path, score: Callable[[str, Sequence[str]], float]) -> dict[str, float]:
    """{"value", "low", "high"} of a metric of the stored predictions, with the interval of all metrics."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; this table has a metric that is computed from the predictions")
    rows = Predictions(file).rows
    values = np.array([score(row["prediction"], row["references"]) for row in rows])
    return interval(values, np.ones(len(values)), 0, 2000, cluster_codes(contexts_of(rows)))


def _metrics_of(table: dict[str, Any], dataset: str) -> list[str]:
    own = table["datasets"][dataset].get("ours")
    return [name for column in table["columns"] for name in own or column["ours"]]


def format_percent(metric: dict[str, float] | None) -> str:
    """A metric in percent points, as papers print it: 0.412 as "41.2 [38.0, 44.5]"."""
    if metric is None:
        return MISSING
    return f"{100 * metric['value']:.1f} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


def dataset_block(
    table: dict[str, Any], dataset: str, further: Further
) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, cells and notes of one dataset: each published number, ours beside it, how ours was trained, and n.

    Raises ValueError as `our_results`, and where two of our results are of different examples.
    """
    own = table["datasets"][dataset].get("ours")
    header = ["reader", "backbone", "ratio"]
    for column in table["columns"]:
        names = own or column["ours"]
        header += [f"{column['title']}\npublished", *(f"{_title(name)}\nours" for name in names)]
    lines, notes, examples = [], [], {}
    for row in table["rows"]:
        ours, unknown = our_results(table, row, dataset, further)
        if unknown:
            notes.append(f"{row['id']}/{dataset}: not stored in these results, so not compared: {', '.join(unknown)}")
        if ours:
            examples[row["id"]] = ours["data_hash"]
        line = [row["title"], row["backbone"], MISSING if row["ratio"] is None else f"{row['ratio']}x"]
        for column in table["columns"]:
            published = row["published"].get(dataset, {}).get(column["published"])
            line.append(MISSING if published is None else f"{published:.2f}")
            line += [format_percent(ours["metrics"].get(name) if ours else None) for name in own or column["ours"]]
        training = row_facts(ours)["training"] if ours else MISSING
        lines.append([*line, format_significant(ours["n"] if ours else None), training])
    if len(set(examples.values())) > 1:
        listed = ", ".join(f"{row} ({digest[:12]})" for row, digest in examples.items())
        raise ValueError(f"{dataset}: the runs answer different examples (data hash): {listed}")
    return [*header, "n\nours", "training\nours"], lines, notes


def _title(name: str) -> str:
    return FURTHER_TITLES.get(name) or TITLES[name]


def print_published_table(table: dict[str, Any], every_cell: bool, further: Further) -> None:
    """Prints one block per dataset, the notes, and the commands.

    every_cell  the commands of all cells with an estimate of memory and time; otherwise one line per row
    """
    # All blocks are made first: a wrong run raises before anything is printed.
    blocks = {key: dataset_block(table, key, further) for key in table["datasets"]}
    console = Console(width=TABLE_WIDTH)

    def print_text(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    print_text(f"{table['title']}\n{table['source']}\n", "bold")
    for key, dataset in table["datasets"].items():
        header, lines, unknown = blocks[key]
        print_text(dataset["title"], "bold")
        print_block(console, header, lines)
        for note in unknown:
            print_text(note)
    for note in table["notes"]:
        print_text(f"- {note}")
    print_text("\nCommands", "bold")
    if every_cell:
        for line in command_lines(table):
            print_text(line)
        return
    width = max(len(row["id"]) for row in table["rows"])
    for row in table["rows"]:
        for i, command in enumerate((*row["train"], row["evaluate"])):
            print_text(f"{row['id'] if i == 0 else '':<{width}}  {' '.join(command.replace('{options}', '').split())}")
    print_text(f"{{dataset}} is one of {', '.join(table['datasets'])}; --commands prints the commands of every cell.")


def command_lines(table: dict[str, Any], datasets: Sequence[str] | None = None) -> list[str]:
    """The commands of the cells of `datasets` (None = all), those of equal commands once.

    The estimate of each training precedes it as a comment.
    """
    lines = []
    for commands, cells in grouped_commands(table, datasets):
        tokens = table["datasets"][cells[0].partition("/")[2]]["tokens"]
        lines.append(f"# {', '.join(cells)}")
        for command in commands:
            estimate = command_estimate(command, tokens)
            lines += [f"# {estimate}"] if estimate else []
            lines.append(command)
    return lines
