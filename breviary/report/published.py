"""A published table beside our results, with the command that reproduces each cell. configs/table/ holds the tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.text import Text

from breviary.config.keys import CONFIGS
from breviary.evaluation.results import find_results, read_results
from breviary.evaluation.table import METRICS, MISSING, TABLE_WIDTH, TITLES, format_significant, print_block

TABLES = CONFIGS / "table"
TABLE_KEYS = {"title", "source", "notes", "evaluate", "datasets", "columns", "rows"}
ROW_KEYS = {"id", "title", "backbone", "ratio", "reader", "command", "published", "runs"}
DATASET_KEYS = {"title", "experiment"}
COLUMN_KEYS = {"title", "published", "ours"}


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
        _check_keys(f"{path}: datasets.{key}", dataset, DATASET_KEYS)
    for i, column in enumerate(table["columns"]):
        _check_keys(f"{path}: columns[{i}]", column, COLUMN_KEYS)
        unknown = sorted(set(column["ours"]) - set(METRICS))
        if unknown:
            raise ValueError(f"{path}: columns[{i}].ours has {unknown}; allowed are {', '.join(METRICS)}")
    for i, row in enumerate(table["rows"]):
        _check_keys(f"{path}: rows[{i}]", row, ROW_KEYS)
        unknown = sorted((row["published"].keys() | row["runs"].keys()) - table["datasets"].keys())
        if unknown:
            raise ValueError(f"{path}: row {row['id']} names {unknown}; datasets has {sorted(table['datasets'])}")
    ids = [row["id"] for row in table["rows"]]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path}: row ids must differ, but are {ids}")
    return table


def _check_keys(where: str, value: dict[str, Any], wanted: set[str]) -> None:
    if value.keys() != wanted:
        raise ValueError(f"{where}: missing {sorted(wanted - value.keys())}, unknown {sorted(value.keys() - wanted)}")


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


def our_results(row: dict[str, Any], dataset: str) -> dict[str, Any] | None:
    """The results of the row's reader in its run for `dataset`; None where the row has no run.

    Raises ValueError where the run has no results of that reader, several, or results for another ratio.
    """
    if dataset not in row["runs"]:
        return None
    run = row["runs"][dataset]
    matching = [results for file in find_results([run]) if (results := read_results(file))["reader"] == row["reader"]]
    if len(matching) != 1:
        raise ValueError(
            f"{run} holds {len(matching)} results of reader {row['reader']} (row {row['id']}); name the "
            "folder of one evaluation, RUN/eval/HASH"
        )
    requested = matching[0]["requested_ratio"]
    if row["ratio"] is not None and requested != row["ratio"]:
        raise ValueError(f"{run} has the requested ratio {requested}x, but row {row['id']} is for {row['ratio']}x")
    return matching[0]


def format_percent(metric: dict[str, float] | None) -> str:
    """A metric in percent points, as papers print it: 0.412 as "41.2 [38.0, 44.5]"."""
    if metric is None:
        return MISSING
    return f"{100 * metric['value']:.1f} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


def dataset_block(table: dict[str, Any], dataset: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of one dataset: each published number, ours beside it, and our number of examples."""
    header = ["reader", "backbone", "ratio"]
    for column in table["columns"]:
        header += [f"{column['title']}\npublished", *(f"{TITLES[name]}\nours" for name in column["ours"])]
    lines = []
    for row in table["rows"]:
        ours = our_results(row, dataset)
        line = [row["title"], row["backbone"], MISSING if row["ratio"] is None else f"{row['ratio']}x"]
        for column in table["columns"]:
            published = row["published"].get(dataset, {}).get(column["published"])
            line.append(MISSING if published is None else f"{published:.2f}")
            line += [format_percent(ours["metrics"][name] if ours else None) for name in column["ours"]]
        lines.append([*line, format_significant(ours["n"] if ours else None)])
    return [*header, "n\nours"], lines


def row_command(row: dict[str, Any], experiment: str) -> str:
    """The command that reproduces a cell of this row, or a note where there is none."""
    return row["command"].format(experiment=experiment) if row["command"] else "(no command: published number only)"


def cell_commands(table: dict[str, Any]) -> list[tuple[str, str]]:
    """("ROW/DATASET", command) of every published cell."""
    return [
        (f"{row['id']}/{key}", row_command(row, dataset["experiment"]))
        for row in table["rows"]
        for key, dataset in table["datasets"].items()
        if key in row["published"]
    ]


def print_published_table(table: dict[str, Any], every_cell: bool) -> None:
    """Prints one block per dataset, the notes, and the commands: one per row, or one per cell."""
    # All blocks are made first: a wrong run raises before anything is printed.
    blocks = {key: dataset_block(table, key) for key in table["datasets"]}
    console = Console(width=TABLE_WIDTH)

    def print_text(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    print_text(f"{table['title']}\n{table['source']}\n", "bold")
    for key, dataset in table["datasets"].items():
        print_text(dataset["title"], "bold")
        print_block(console, *blocks[key])
    for note in table["notes"]:
        print_text(f"- {note}")
    print_text("\nCommands", "bold")
    if every_cell:
        for cell, command in cell_commands(table):
            print_text(f"# {cell}\n{command}")
    else:
        width = max(len(row["id"]) for row in table["rows"])
        experiments = ", ".join(dataset["experiment"] for dataset in table["datasets"].values())
        for row in table["rows"]:
            print_text(f"{row['id']:<{width}}  {row_command(row, 'E')}")
        print_text(f"E is one of {experiments}; --commands prints one line per cell.")
    print_text(f"Then, for trained readers: {table['evaluate']}")
