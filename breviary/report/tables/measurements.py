"""Cells that a script of scripts/ measures: a number of its JSON or CSV file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def find_measurement(row: Mapping[str, Any], dataset: str, folder: str, names: Iterable[str]) -> dict[str, Any]:
    """`read_measurement` of the first of the row's files that has the cell; {folder} in a name is the table's.

    `read.file` is one file or several: what the row's script writes, then measurements that are committed.
    Raises: ValueError where none has it, with the reason of the first.
    """
    files, problems = row["read"]["file"], []
    for file in [files] if isinstance(files, str) else files:
        try:
            return read_measurement(Path(file.format(dataset=dataset, folder=folder)), row["read"], dataset, names)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(problems[0])


def read_measurement(file: Path, read: Mapping[str, Any], dataset: str, names: Iterable[str]) -> dict[str, Any]:
    """The numbers of a cell, in the form of results.json: metrics, n, commit, hardware, training, run.

    names  fields of the file, metrics of the cell
    The rows of the file that agree with `read.where` are those of the cell. One row: its number, with the interval that
    `read.low` and `read.high` name. Several, such as seeds: their mean, and from the lowest to the highest.
    Raises: ValueError where the file is missing or damaged, or has no such row or field.
    """
    rows, environment = _rows(file)
    where = {key: str(value).format(dataset=dataset) for key, value in read["where"].items()}
    found = [one for one in rows if all(str(one.get(key)) == value for key, value in where.items())]
    if not found:
        listed = ", ".join(f"{key}={value}" for key, value in where.items())
        raise ValueError(f"{file} has no row with {listed}")
    needed = {*names, *(read[key] for key in ("low", "high", "n") if read.get(key))}
    if missing := sorted(needed - found[0].keys()):
        raise ValueError(f"{file} has no {', '.join(missing)}; its fields are {', '.join(found[0])}")
    metrics = {}
    for name in names:
        values = [float(one[name]) for one in found]
        low, high = (float(found[0][read[key]]) if read.get(key) else None for key in ("low", "high"))
        if len(values) > 1:
            low, high = min(values), max(values)
        metrics[name] = {"value": sum(values) / len(values), "low": low, "high": high}
    return {
        "metrics": metrics,
        "n": int(float(found[0][read["n"]])) if read.get("n") else None,
        "training": f"mean of {len(found)}, lowest and highest" if len(found) > 1 else "one row",
        "commit": environment.get("commit"),
        "dirty": environment.get("dirty"),
        "hardware": environment.get("hardware"),
        "run": str(file),
    }


def _rows(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a CSV file, or of a JSON file with `rows`, and the environment that it states."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        if file.suffix == ".csv":
            with file.open(encoding="utf-8", newline="") as lines:
                return list(csv.DictReader(lines)), {}
        content = json.loads(file.read_bytes())
        return content["rows"], content.get("environment", {})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged, or not a script's measurement ({error})") from error
