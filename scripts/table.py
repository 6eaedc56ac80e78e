"""A published table beside our numbers, and the command behind every cell.

    python scripts/table.py comi_main [--commands] [--run ROW/DATASET=RUN ...]

Reads configs/table/NAME.yaml (or any file of that form; comi_main.yaml explains it). Our numbers come from the run
folders named in the file or by --run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from breviary.runtime.checkout import require_checkout

require_checkout()

from omegaconf import OmegaConf
from rich.console import Console
from rich.text import Text

from breviary.evaluation.results import find_results, read_results
from breviary.evaluation.table import METRICS, TITLES, WIDE, number_cell, print_block

TABLES = ROOT / "configs" / "table"
SPEC_KEYS = {"title", "source", "notes", "evaluate", "datasets", "columns", "rows"}
ROW_KEYS = {"id", "title", "backbone", "ratio", "reader", "command", "published", "runs"}
DATASET_KEYS = {"title", "experiment"}
COLUMN_KEYS = {"title", "published", "ours"}


def load_table(name: str) -> dict[str, Any]:
    """The table NAME of configs/table, or of a file. Raises ValueError on a missing file and on wrong keys."""
    path = Path(name) if Path(name).is_file() else TABLES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in TABLES.glob("*.yaml")))
        raise ValueError(f"no table {name!r}: allowed are a file, or one of {known}")
    spec = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(spec, dict):
        raise ValueError(f"{path} holds a {type(spec).__name__}; it must hold the keys {', '.join(sorted(SPEC_KEYS))}")
    _check_keys(f"{path}", spec, SPEC_KEYS)
    for key, dataset in spec["datasets"].items():
        _check_keys(f"{path}: datasets.{key}", dataset, DATASET_KEYS)
    for i, column in enumerate(spec["columns"]):
        _check_keys(f"{path}: columns[{i}]", column, COLUMN_KEYS)
        wrong = sorted(set(column["ours"]) - set(METRICS))
        if wrong:
            raise ValueError(f"{path}: columns[{i}].ours has {wrong}; allowed are {', '.join(METRICS)}")
    for i, row in enumerate(spec["rows"]):
        _check_keys(f"{path}: rows[{i}]", row, ROW_KEYS)
        strangers = sorted((row["published"].keys() | row["runs"].keys()) - spec["datasets"].keys())
        if strangers:
            raise ValueError(f"{path}: row {row['id']} names {strangers}; datasets has {sorted(spec['datasets'])}")
    ids = [row["id"] for row in spec["rows"]]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path}: row ids must differ, got {ids}")
    return spec


def _check_keys(where: str, value: dict[str, Any], wanted: set[str]) -> None:
    if value.keys() != wanted:
        raise ValueError(f"{where}: missing {sorted(wanted - value.keys())}, unknown {sorted(value.keys() - wanted)}")


def add_runs(spec: dict[str, Any], given: Iterable[str]) -> None:
    """Put runs of the command line, each ROW/DATASET=RUN, into the table. Raises ValueError on unknown names."""
    rows = {row["id"]: row for row in spec["rows"]}
    for text in given:
        place, _, run = text.partition("=")
        row, _, dataset = place.partition("/")
        if not run or row not in rows or dataset not in spec["datasets"]:
            raise ValueError(
                f"--run {text}: must be ROW/DATASET=RUN with ROW one of {', '.join(rows)} and DATASET "
                f"one of {', '.join(spec['datasets'])}"
            )
        rows[row]["runs"][dataset] = run


def our_results(row: dict[str, Any], dataset: str) -> dict[str, Any] | None:
    """Results of the row's reader in its run for `dataset`; None where no run is named.

    Raises ValueError where the run holds no results of that reader, several, or those of another ratio.
    """
    if dataset not in row["runs"]:
        return None
    run = row["runs"][dataset]
    found = [results for file in find_results([run]) if (results := read_results(file))["reader"] == row["reader"]]
    if len(found) != 1:
        raise ValueError(
            f"{run} holds {len(found)} results of reader {row['reader']} (row {row['id']}); name the "
            "folder of one evaluation, RUN/eval/HASH"
        )
    if row["ratio"] is not None and found[0]["requested_ratio"] != row["ratio"]:
        raise ValueError(f"{run} was asked for {found[0]['requested_ratio']}x, row {row['id']} is {row['ratio']}x")
    return found[0]


def percent(metric: dict[str, float] | None) -> str:
    """A metric in percent points, as papers print it: 0.412 as "41.2 [38.0, 44.5]"."""
    if metric is None:
        return "-"
    return f"{100 * metric['value']:.1f} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


def block(spec: dict[str, Any], dataset: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of one dataset: each published number, ours beside it, and how many examples ours has."""
    header = ["reader", "backbone", "ratio"]
    for column in spec["columns"]:
        header += [f"{column['title']}\npublished", *(f"{TITLES[name]}\nours" for name in column["ours"])]
    lines = []
    for row in spec["rows"]:
        ours = our_results(row, dataset)
        line = [row["title"], row["backbone"], "-" if row["ratio"] is None else f"{row['ratio']}x"]
        for column in spec["columns"]:
            published = row["published"].get(dataset, {}).get(column["published"])
            line.append("-" if published is None else f"{published:.2f}")
            line += [percent(ours and ours["metrics"][name]) for name in column["ours"]]
        lines.append([*line, number_cell(ours and ours["n"])])
    return [*header, "n\nours"], lines


def command_of(row: dict[str, Any], experiment: str) -> str:
    """What reproduces a cell of this row; rows that are only published say so."""
    return row["command"].format(experiment=experiment) if row["command"] else "(published only; not here yet)"


def commands(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """("ROW/DATASET", command) of every published cell."""
    return [
        (f"{row['id']}/{key}", command_of(row, dataset["experiment"]))
        for row in spec["rows"]
        for key, dataset in spec["datasets"].items()
        if key in row["published"]
    ]


def print_table(spec: dict[str, Any], with_commands: bool) -> None:
    """Print one block a dataset, the notes, and the commands: one a row, or one a cell."""
    blocks = {key: block(spec, key) for key in spec["datasets"]}  # first: a wrong run is told before half a table
    console = Console(width=WIDE)

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    say(f"{spec['title']}\n{spec['source']}\n", "bold")
    for key, dataset in spec["datasets"].items():
        say(dataset["title"], "bold")
        print_block(console, *blocks[key])
    for note in spec["notes"]:
        say(f"- {note}")
    say("\nCommands", "bold")
    if with_commands:
        for place, command in commands(spec):
            say(f"# {place}\n{command}")
    else:
        width = max(len(row["id"]) for row in spec["rows"])
        experiments = ", ".join(dataset["experiment"] for dataset in spec["datasets"].values())
        for row in spec["rows"]:
            say(f"{row['id']:<{width}}  {command_of(row, 'E')}")
        say(f"E is one of {experiments}; --commands prints one line a cell.")
    say(f"Then, for trained readers: {spec['evaluate']}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; a wrong one ends with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE", help="name in configs/table, or a YAML file")
    parser.add_argument("--commands", action="store_true", help="the command of every single cell")
    parser.add_argument("--run", action="append", default=[], metavar="ROW/DATASET=RUN", help="run folder of one cell")
    given = parser.parse_args(arguments)
    try:
        spec = load_table(given.table)
        add_runs(spec, given.run)
        print_table(spec, given.commands)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
