"""The form of a grid: several readers by data set, or by position of the gold passage.

configs/table/ruler.yaml documents the keys of the YAML file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from breviary.evaluation.resolve import compose_evaluation
from breviary.report.tables.form import TABLES, read_yaml, table_file
from breviary.report.tables.measured import Part, check_keys, check_readers, named_rows, word_key

TABLE_KEYS = {"title", "notes", "readers", "grid"}
GRID_KEYS = {"by", "datasets", "settings", "rows"}
DATASET_KEYS = {"title", "metrics", "tokens"}
BY = ("dataset", "position")
OF_RUN = ("compressor", "reader", "backbone")  # settings that a run brings along


def is_grid(name: str) -> bool:
    """Whether NAME is a table of this form, in configs/table or as a file."""
    path = Path(name) if Path(name).is_file() else TABLES / f"{name}.yaml"
    return path.is_file() and "grid" in (read_yaml(path) or {})


def load_grid(
    name: str, words: Sequence[str] = (), wanted: Sequence[str] | None = None, only: Sequence[str] = ()
) -> dict[str, Any]:
    """The table, with `by`, `metrics` {data set: names, None = its headline} and `parts`: a `Part` for each data set.

    words   overrides of eval.py, which replace the table's settings; run=RUN sets compressor and backbone
    wanted  names of the data sets; None = all
    only    names of the readers; empty = all
    Raises: ValueError for wrong keys and words, and for unknown data sets and readers.
    """
    path = table_file(name)
    table: Any = read_yaml(path)
    check_keys(f"{path}", table, TABLE_KEYS)
    check_readers(f"{path}", table["readers"])
    grid = table["grid"]
    check_keys(f"{path}: grid", grid, GRID_KEYS)
    if grid["by"] not in BY:
        raise ValueError(f"{path}: grid.by={grid['by']}: allowed are {', '.join(BY)}")
    for key, dataset in grid["datasets"].items():
        check_keys(f"{path}: grid.datasets.{key}", dataset, DATASET_KEYS)
    rows = named_rows(f"{path}: grid.rows", grid["rows"], table["readers"])
    _check_names("--only", only, [reader for reader, _ in rows])
    _check_names("--part", wanted or [], grid["datasets"])
    if "dataset" in map(word_key, words):
        raise ValueError(
            f"dataset=: {path.stem} has data sets of its own; choose by --part {next(iter(grid['datasets']))}"
        )
    base = Part(
        "", "", "", [], grid["settings"], [row for row in rows if not only or row[0] in only], words=tuple(words)
    )
    if base.value("run") is not None:
        base.settings = {key: value for key, value in base.settings.items() if key not in OF_RUN}
    length = base.value("dataset.length") or ""
    parts = []
    for key, dataset in grid["datasets"].items():
        if wanted is None or key in wanted:
            context, question, answer = dataset["tokens"]
            tokens = (int(length) if length.isdecimal() else context, question, answer)
            settings = {"dataset": key, **base.settings}
            backbone = base.value("backbone") or base.value("run") or ""
            parts.append(
                replace(base, name=key, title=dataset["title"], backbone=backbone, settings=settings, tokens=tokens)
            )
    if words:
        compose_evaluation(parts[0].overrides())
    metrics = {key: dataset["metrics"] for key, dataset in grid["datasets"].items()}
    return {**table, "name": path.stem, "by": grid["by"], "metrics": metrics, "parts": parts, "words": list(words)}


def _check_names(option: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    if unknown := sorted(set(names) - set(allowed)):
        raise ValueError(f"{option} {', '.join(unknown)}: allowed are {', '.join(dict.fromkeys(allowed))}")
