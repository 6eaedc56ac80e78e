"""The form of a paper's table, configs/table/NAME.yaml: read, checked, at the paper's scale or at the small one.

configs/table/comi_main.yaml documents the keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from breviary.config.keys import CONFIGS
from breviary.evaluation.table import TITLES

TABLES = CONFIGS / "table"
SCALES = ("small", "paper")

TABLE_KEYS = {"title", "source", "notes", "datasets", "columns", "rows"}
SMALL_KEYS = {"title", "notes", "datasets", "rows"}
ROW_KEYS = {"id", "title", "backbone", "ratio", "reader", "train", "evaluate"}
ROW_DEFAULTS: dict[str, Any] = {
    "published": {},
    "runs": {},
    "beside": {},
    "published_on": None,
    "datasets": None,
    "measure": None,
    "read": None,
    "time": None,
}
DATASET_KEYS = {"title", "n", "tokens"}
DATASET_OPTIONS = {"options", "ours", "size"}
COLUMN_KEYS = {"title", "published", "ours"}
COLUMN_OPTIONS = {"unit"}
READ_KEYS = {"file", "where"}
READ_OPTIONS = {"low", "high", "n"}

FURTHER_TITLES = {"rouge_1": "ROUGE-1"}  # of metrics that results do not hold

UNITS: dict[str, tuple[float, str, str]] = {  # of a column: factor, format, unit printed after the number
    "percent": (100, ".1f", ""),
    "raw": (1, ".2f", ""),
    "times": (1, ".1f", "x"),
}


# ------------------------------------------------------------------ reading


def table_file(name: str) -> Path:
    """configs/table/NAME.yaml, or the file NAME. Raises: ValueError where there is none, with the nearest name."""
    path = Path(name) if Path(name).is_file() else TABLES / f"{name}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in TABLES.glob("*.yaml"))
        near = difflib.get_close_matches(name, names, n=1)
        nearest = f"; the nearest is {near[0]}" if near else ""
        raise ValueError(f"no table {name!r}{nearest}: give a YAML file, or one of {', '.join(names)}")
    return path


def read_yaml(path: Path) -> Any:
    """The content of a table's file. OmegaConf would take seconds for the largest.

    Raises: ValueError where it is no YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def load_published_table(name: str, scale: str = "paper") -> dict[str, Any]:
    """The table NAME (`table_file`) at a scale: `small` is the section of that name, in the form of a whole table.

    Every row has all keys of ROW_KEYS and ROW_DEFAULTS, every column a unit; `given`, `name`, `scale` and `folder` are
    added. At scale=small, `published` holds the numbers that `beside` names, and `published_on` what they were measured
    on: they are of other data.
    Raises: ValueError for a missing file, wrong keys, an unknown scale, or a table without a small form.
    """
    if scale not in SCALES:
        raise ValueError(f"scale={scale}: allowed are {', '.join(SCALES)}, for example scale=small")
    path = table_file(name)
    table = read_yaml(path)
    if not isinstance(table, dict):
        kind, keys = type(table).__name__, ", ".join(sorted(TABLE_KEYS))
        raise ValueError(f"{path} holds a {kind}; it must hold the keys {keys}")
    small = table.pop("small", None)
    _check_table(f"{path}", table, TABLE_KEYS)
    if small is not None:
        _check_keys(f"{path}: small", small, SMALL_KEYS, {"columns"})
        small = {"source": table["source"], "columns": table["columns"], **small}
        _check_table(f"{path}: small", small, TABLE_KEYS)
        _set_beside(f"{path}: small", small, table)
    if scale == "small" and small is None:
        raise ValueError(f"{path.stem} has no small form; its commands at the paper's scale: scale=paper --plan")
    chosen = table if small is None or scale == "paper" else small
    names = {"given": name, "name": path.stem, "scale": scale}
    return chosen | names | {"folder": f"outputs/tables/{path.stem}/{scale}"}


def scales_of(name: str) -> list[str]:
    """The scales that a table has."""
    return [scale for scale in SCALES if scale != "small" or "small" in read_yaml(table_file(name))]


def _check_table(where: str, table: dict[str, Any], keys: set[str]) -> None:
    """Checks every key of a table, and fills in the optional ones of its rows and columns."""
    _check_keys(where, table, keys)
    for key, dataset in table["datasets"].items():
        _check_keys(f"{where}: datasets.{key}", dataset, DATASET_KEYS, DATASET_OPTIONS)
        _check_metrics(f"{where}: datasets.{key}", dataset.get("ours", []))
    for i, column in enumerate(table["columns"]):
        _check_keys(f"{where}: columns[{i}]", column, COLUMN_KEYS, COLUMN_OPTIONS)
        column.setdefault("unit", "percent")
        if column["unit"] not in UNITS:
            raise ValueError(f"{where}: columns[{i}].unit={column['unit']}: allowed are {', '.join(UNITS)}")
        if column["unit"] == "percent" and not any(row.get("read") for row in table["rows"]):
            # Other columns name fields of a script's file.
            _check_metrics(f"{where}: columns[{i}]", column["ours"])
    for i, row in enumerate(table["rows"]):
        _check_keys(f"{where}: rows[{i}]", row, ROW_KEYS, ROW_DEFAULTS)
        for key, default in ROW_DEFAULTS.items():
            row.setdefault(key, {} if default == {} else default)
        _check_row(f"{where}: row {row['id']}", row, table["datasets"])
    ids = [row["id"] for row in table["rows"]]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{where}: row ids must differ, but are {ids}")


def _check_row(where: str, row: dict[str, Any], datasets: Mapping[str, Any]) -> None:
    named = {*row["published"], *row["runs"], *row["beside"], *(row["datasets"] or ())}
    if unknown := sorted(named - datasets.keys()):
        raise ValueError(f"{where} names {unknown}; datasets has {sorted(datasets)}")
    if (row["measure"] is None) != (row["read"] is None):
        raise ValueError(f"{where}: measure and read belong together: a script's command, and where its file has what")
    if row["measure"] is not None:
        _check_keys(f"{where}: read", row["read"], READ_KEYS, READ_OPTIONS)
        if row["evaluate"] or row["train"]:
            raise ValueError(f"{where}: a row with measure has train: [] and evaluate: null")
    elif row["evaluate"] is None and row["train"]:
        raise ValueError(f"{where}: trains, but evaluate is null; give the command that evaluates it")


def _check_keys(where: str, value: Any, wanted: set[str], optional: Collection[str] = ()) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}; it must hold the keys {', '.join(sorted(wanted))}")
    missing, unknown = sorted(wanted - value.keys()), sorted(value.keys() - wanted - set(optional))
    if missing or unknown:
        raise ValueError(f"{where}: missing {missing}, unknown {unknown}")


def _check_metrics(where: str, names: Iterable[str]) -> None:
    known = (*TITLES, *FURTHER_TITLES)
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{where}.ours has {unknown}; allowed are {', '.join(known)}")


def _set_beside(where: str, small: dict[str, Any], table: Mapping[str, Any]) -> None:
    """The published numbers that stand beside a small cell, and the sentence that names their cell."""
    rows = {row["id"]: row for row in table["rows"]}
    for row in small["rows"]:
        if row["published"]:
            raise ValueError(
                f"{where}: row {row['id']}: published numbers of other data; write beside: DATASET: ROW/DATASET"
            )
        for dataset, cell in row["beside"].items():
            name, _, other = str(cell).partition("/")
            published = rows.get(name, {}).get("published", {}).get(other)
            if published is None:
                known = ", ".join(f"{one}/{key}" for one in rows for key in rows[one]["published"])
                raise ValueError(f"{where}: row {row['id']}.beside.{dataset}={cell}: no such cell; there are {known}")
            row["published"][dataset] = published
            source = rows[name]["published_on"] or published_on(rows[name], table["datasets"][other])
            row["published_on"] = row["published_on"] or source


def published_on(row: Mapping[str, Any], dataset: Mapping[str, Any]) -> str:
    """What a published number is of: "COMI, qwen2_7b, 16x, NaturalQuestions"."""
    ratio = "" if row["ratio"] is None else f"{row['ratio']}x"
    return ", ".join(part for part in (row["title"], row["backbone"], ratio, dataset["title"]) if part)


# ------------------------------------------------------------------ cells


def cells_of(table: Mapping[str, Any], only: Sequence[str] = ()) -> list[tuple[dict[str, Any], str]]:
    """(row, dataset) of every cell that a command computes, data set by data set.

    A row's cells are those of its `datasets`, else those with a published number, else, without any, all.
    only  ROW, or ROW/DATASET, of the cells that are wanted; empty = all. Raises: ValueError for unknown ones.
    """
    cells = [
        (row, key)
        for key in table["datasets"]
        for row in table["rows"]
        if (row["evaluate"] or row["measure"]) and key in row_datasets(table, row)
    ]
    names = {word: [cell for cell in cells if word in (cell[0]["id"], cell_name(*cell))] for word in only}
    if unknown := [word for word, found in names.items() if not found]:
        rows = ", ".join(dict.fromkeys(row["id"] for row, _ in cells))
        raise ValueError(
            f"--only {' '.join(unknown)}: must be ROW or ROW/DATASET with ROW one of {rows} and DATASET one of "
            f"{', '.join(table['datasets'])}"
        )
    wanted = {cell_name(*cell) for found in names.values() for cell in found}
    return [cell for cell in cells if not only or cell_name(*cell) in wanted]


def row_datasets(table: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """The data sets in which a row has a line: `cells_of`, and those with nothing but a published number or a run."""
    named = row["datasets"] or (list(row["published"]) if row["published"] and not row["beside"] else table["datasets"])
    return [key for key in table["datasets"] if key in named or key in row["runs"]]


def cell_name(row: Mapping[str, Any], dataset: str) -> str:
    """ROW/DATASET."""
    return f"{row['id']}/{dataset}"


def cell_commands(table: Mapping[str, Any], row: Mapping[str, Any], dataset: str) -> list[str]:
    """The commands of a cell in order: those that train, and the one that evaluates or measures."""
    options = table["datasets"][dataset].get("options", "")
    last = row["evaluate"] or row["measure"]
    fields = {"dataset": dataset, "options": options, "folder": table["folder"]}
    words = [command.format(**fields) for command in (*row["train"], last)]
    return [" ".join(command.split()) for command in words]


def grouped_commands(
    table: Mapping[str, Any], datasets: Sequence[str] | None = None, only: Sequence[str] = ()
) -> list[tuple[list[str], list[str]]]:
    """(commands, cells "ROW/DATASET") of the cells of `datasets` (None = all): cells of equal commands together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row, dataset in cells_of(table, only):
        if datasets is None or dataset in datasets:
            groups.setdefault(tuple(cell_commands(table, row, dataset)), []).append(cell_name(row, dataset))
    return [(list(commands), cells) for commands, cells in groups.items()]


def cannot_be_strict(published: Mapping[str, Any]) -> bool:
    """Whether published EM exceeds published F1: strict EM over the same references cannot."""
    scores = [published.get(key) for key in ("em", "f1")]
    return all(isinstance(score, (int, float)) for score in scores) and scores[0] > scores[1]  # type: ignore[operator]
