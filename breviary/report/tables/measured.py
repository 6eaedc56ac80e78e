"""A table that is measured here: rows of several readers over the same questions, with paired differences and a figure.

configs/table/alternatives.yaml documents the form. Each part of a table is one evaluation, whose finished rows are
never computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from breviary.evaluation.comparison import EvaluatedReader, paired_differences
from breviary.evaluation.results import PREDICTIONS, Predictions
from breviary.evaluation.table import PHASES, format_bytes, format_number, format_ratio, format_score, table_row
from breviary.report.published import TABLES
from breviary.report.sweep import csv_text
from breviary.runtime.files import write_json, write_text
from breviary.runtime.spelling import command, setting

TABLE_KEYS = {"title", "notes", "readers", "parts"}
READER_KEYS = {"title", "kind", "question", "variant"}
PART_KEYS = {"title", "backbone", "train", "settings", "rows"}
KINDS = {  # of readers: title, colour and mark in the figure
    "bound": ("bounds", "#555555", "s"),
    "cache": ("key/value eviction", "#0b57d0", "o"),
    "text": ("text selection", "#b3261e", "^"),
    "attention": ("reading by attention", "#7b1fa2", "D"),
    "trained": ("trained compressors", "#0a7d33", "P"),
}
COLUMNS = ("em", "f1", "nll")
DEFAULT_RATIO = 4  # of every compressor's YAML

Evaluate = Callable[[list[str], list[dict[str, Any]]], list[dict[str, Any]]]


@dataclass
class Part:
    """One evaluation of a table.

    rows  (reader's name in the table, ratio) of each row, in order; the first is the evaluation's own reader
    """

    name: str
    title: str
    backbone: str
    train: list[list[str]]
    settings: dict[str, Any]
    rows: list[tuple[str, int]]


def is_measured(name: str) -> bool:
    """Whether NAME is a table of this form, in configs/table or as a file."""
    path = Path(name) if Path(name).is_file() else TABLES / f"{name}.yaml"
    return path.is_file() and "parts" in (OmegaConf.load(path) or {})


def load_measured_table(name: str) -> dict[str, Any]:
    """The table, its parts as `Part`. Raises: ValueError for wrong keys and unknown readers."""
    path = Path(name) if Path(name).is_file() else TABLES / f"{name}.yaml"
    table: Any = OmegaConf.to_container(OmegaConf.load(path))
    _check(f"{path}", table, TABLE_KEYS)
    for key, reader in table["readers"].items():
        _check(f"{path}: readers.{key}", reader, READER_KEYS)
        if reader["kind"] not in KINDS:
            raise ValueError(f"{path}: readers.{key}.kind={reader['kind']}: allowed are {', '.join(KINDS)}")
    parts = []
    for key, part in table["parts"].items():
        _check(f"{path}: parts.{key}", part, PART_KEYS)
        rows = [(reader, ratio) for ratio, readers in part.pop("rows").items() for reader in readers]
        unknown = sorted({reader for reader, _ in rows} - table["readers"].keys())
        if unknown:
            raise ValueError(f"{path}: parts.{key}.rows names {unknown}; readers has {sorted(table['readers'])}")
        parts.append(Part(key, rows=rows, **part))
    return {**table, "parts": parts}


def _check(where: str, value: Mapping[str, Any], wanted: set[str]) -> None:
    missing, unknown = sorted(wanted - value.keys()), sorted(value.keys() - wanted)
    if missing or unknown:
        raise ValueError(f"{where}: missing {missing}, unknown {unknown}")


# ------------------------------------------------------------------ evaluation


def part_words(part: Part, outputs: str) -> list[str]:
    """Overrides of the part's evaluation, but for its rows."""
    words = [setting(key, value) for key, value in part.settings.items()]
    return [*words, "baselines=[]", setting("paths.outputs", outputs)]


def row_variant(table: Mapping[str, Any], reader: str, ratio: int) -> dict[str, Any]:
    """The changes that make a row, as in `variants` of eval.py."""
    changes = dict(table["readers"][reader]["variant"])
    return changes if ratio in (1, DEFAULT_RATIO) else {**changes, "compressor.ratio": ratio}


def evaluate_part(table: Mapping[str, Any], part: Part, outputs: str, evaluate: Evaluate) -> list[dict[str, Any]]:
    """Results of every row, each with its `reader` in the table, `kind` and `folder`.

    evaluate  (overrides, variants) -> results of the evaluation's own reader, then of each variant
    """
    variants = [row_variant(table, reader, ratio) for reader, ratio in part.rows]
    results = evaluate(part_words(part, outputs), variants)[1:]
    assert len(results) == len(part.rows), (len(results), len(part.rows))
    return results


def part_command(table: Mapping[str, Any], part: Part, outputs: str) -> str:
    """The command line of the part's evaluation."""
    variants = [row_variant(table, reader, ratio) for reader, ratio in part.rows]
    return command("eval.py", *part_words(part, outputs), setting("variants", variants))


# ------------------------------------------------------------------ output


def part_rows(table: Mapping[str, Any], part: Part, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One flat row for each result: names, scores with intervals, differences from the first row, costs."""
    evaluated = [_evaluated(one) for one in results]
    rows = []
    for (reader, ratio), result, one in zip(part.rows, results, evaluated):
        facts, flat = table["readers"][reader], table_row(dict(result))
        times = [flat[phase] for phase in PHASES[:3] if flat[phase] is not None]
        row = {
            "part": part.name,
            "reader": facts["title"],
            "kind": facts["kind"],
            "question": facts["question"],
            "ratio": ratio,
            **{key: flat[key] for key in ("training", "backbone", "data", "n")},
            **{f"{name}{end}": flat[f"{name}{end}"] for name in COLUMNS for end in ("", "_low", "_high")},
            "effective_ratio": flat["effective_ratio"],
            "memory_slots": flat["memory_slots"],
            "memory_bytes": flat["memory_bytes"],
            "document_bytes": result.get("document_bytes"),
            "first_token_ms": sum(times),
            "commit": result["commit"],
        }
        paired = None if one is evaluated[0] else paired_differences(one, evaluated[0])["f1"]
        rows.append(row | {f"f1_minus_first{end}": paired and paired[key] for end, key in _ENDS})
    return rows


_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


def _evaluated(result: Mapping[str, Any]) -> EvaluatedReader:
    predictions = Predictions(Path(result["run"]) / PREDICTIONS).rows
    return EvaluatedReader(result["reader"], dict(result), {row["id"]: row for row in predictions})


def write_part(folder: Path, table: Mapping[str, Any], part: Part, rows: list[dict[str, Any]]) -> list[Path]:
    """Writes NAME.json, NAME.csv, NAME.md and NAME.png of a part; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{part.name}.{end}" for end in ("json", "csv", "md", "png")]
    write_json(files[0], {"title": part.title, "settings": part.settings, "rows": rows})
    write_text(files[1], csv_text(rows))
    write_text(files[2], markdown(table, part, rows))
    draw_part(part, rows, files[3])
    return files


def markdown(table: Mapping[str, Any], part: Part, rows: Sequence[Mapping[str, Any]]) -> str:
    """The part as a Markdown table, one block for each ratio."""
    header = "reader | question | EM | F1 | F1 minus first row | NLL | achieved | bytes | first token, s"
    lines = [f"{part.title}. {rows[0]['n']} questions, {rows[0]['backbone']}.", ""]
    lines += [f"| ratio | {header} |", "|--:|---|---" + "|--:" * 7 + "|"]
    for row in rows:
        has_difference = row["f1_minus_first"] is not None
        cells = [
            f"{row['ratio']}x",
            f"{row['reader']} ({row['training']})",
            row["question"] or "-",
            format_score(dict(row), "em"),
            format_score(dict(row), "f1"),
            format_score(dict(row), "f1_minus_first") if has_difference else "-",
            format_score(dict(row), "nll"),
            format_ratio(row["effective_ratio"]),
            format_bytes(row["memory_bytes"]),
            format_number(row["first_token_ms"] / 1000),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in table["notes"]), ""])


def draw_part(part: Part, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """F1 against bytes kept, a mark for each row, with intervals. Rows of one size stand side by side, by F1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(max(7.0, 0.36 * len(rows) + 2.5), 5.2), layout="constrained")
    place, ticks = 0.0, []
    for group in size_groups(rows):
        ticks.append((place + (len(group) - 1) / 2, format_bytes(group[0]["memory_bytes"])))
        for row in sorted(group, key=lambda row: row["f1"]):
            title, color, mark = KINDS[row["kind"]]
            low, high = row["f1"] - row["f1_low"], row["f1_high"] - row["f1"]
            axes.errorbar(place, row["f1"], [[low], [high]], fmt=mark, color=color, ms=5, lw=0.7, label=title)
            asks = ", known" if row["question"] == "known" and row["kind"] == "cache" else ""
            label = f"{row['reader']}{asks}"
            axes.annotate(
                label,
                (place, row["f1_high"]),
                (0, 4),
                textcoords="offset points",
                fontsize=7,
                color=color,
                rotation=90,
                ha="center",
                va="bottom",
            )
            place += 1
        axes.axvline(place, color="#bbbbbb", lw=0.8)
        place += 1
    axes.set(xlabel="keys and values kept while answering", ylabel="F1")
    axes.set_title(part.title, fontsize=9)
    axes.set_xticks([x for x, _ in ticks], [label for _, label in ticks])
    axes.set_ylim(0, max(row["f1_high"] for row in rows) * 1.35)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))
    axes.legend(handles.values(), handles.keys(), fontsize=8, loc="upper left")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def size_groups(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows in groups of memory sizes that differ by less than a tenth, the smallest first."""
    groups: list[list[Mapping[str, Any]]] = []
    for row in sorted(rows, key=lambda row: row["memory_bytes"]):
        if groups and row["memory_bytes"] <= 1.1 * groups[-1][0]["memory_bytes"]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
