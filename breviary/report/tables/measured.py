"""A table that is measured here: rows of several readers over the same questions, with paired differences and a figure.

configs/table/alternatives.yaml documents the form. Each part of a table is one evaluation, whose finished rows are
never computed again.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from breviary.evaluation.comparison import EvaluatedReader, paired_differences
from breviary.evaluation.results import PREDICTIONS, Predictions
from breviary.evaluation.table import (
    MISSING,
    PHASES,
    format_bytes,
    format_number,
    format_ratio,
    format_score,
    table_row,
)
from breviary.report.tables.blocks import Block, Line
from breviary.report.tables.files import write_table_files
from breviary.report.tables.form import TABLES, read_yaml, table_file
from breviary.report.tables.trainings import CellFailed, Evaluate, Tools, Trainings, log_file, logged
from breviary.runtime.files import write_json
from breviary.runtime.spelling import command, setting

TABLE_KEYS = {"title", "notes", "readers", "parts"}
READER_KEYS = {"title", "kind", "question", "variant"}
PART_KEYS = {"title", "backbone", "train", "settings", "rows"}
PART_OPTIONS = {"tokens"}
KINDS = {  # of readers: title, colour and mark in the figure
    "bound": ("bounds", "#555555", "s"),
    "cache": ("key/value eviction", "#0b57d0", "o"),
    "text": ("text selection", "#b3261e", "^"),
    "attention": ("reading by attention", "#7b1fa2", "D"),
    "trained": ("trained compressors", "#0a7d33", "P"),
}
COLUMNS = ("em", "f1", "nll")
DEFAULT_RATIO = 4  # of every compressor's YAML


@dataclass
class Part:
    """One evaluation of a table.

    rows    (reader's name in the table, ratio) of each row, in order
    tokens  mean tokens of context, question and answer, for estimates
    words   overrides of the command line, in place of settings of the same key
    """

    name: str
    title: str
    backbone: str
    train: list[list[str]]
    settings: dict[str, Any]
    rows: list[tuple[str, int]]
    tokens: tuple[int, int, int] = (1000, 12, 6)
    words: tuple[str, ...] = ()

    def overrides(self, without: Collection[str] = ()) -> list[str]:
        """Settings and words as overrides of eval.py, but for the keys `without`."""
        own = [setting(key, value) for key, value in self.settings.items() if key not in map(word_key, self.words)]
        return [word for word in [*own, *self.words] if word_key(word) not in without]

    def value(self, key: str) -> str | None:
        """The value of a setting or word as text; None where there is none."""
        return next((word.partition("=")[2] for word in self.overrides() if word_key(word) == key), None)


def word_key(word: str) -> str:
    """The key of an override."""
    return word.lstrip("+~").partition("=")[0]


def is_measured(name: str) -> bool:
    """Whether NAME is a table of this form or a grid (`grid_form`), in configs/table or as a file."""
    path = Path(name) if Path(name).is_file() else TABLES / f"{name}.yaml"
    return path.is_file() and not {"parts", "grid"}.isdisjoint(read_yaml(path) or {})


def load_measured_table(name: str, scale: str | None = None, wanted: Sequence[str] | None = None) -> dict[str, Any]:
    """The table, its parts as `Part`.

    scale   small, or None; such a table has no other. wanted  names of the parts; None = all
    Raises: ValueError for wrong keys, unknown readers and parts, and scale=paper.
    """
    path = table_file(name)
    if scale == "paper":
        raise ValueError(f"{path.stem} is measured here and has no paper's scale; leave out scale=paper")
    table: Any = read_yaml(path)
    check_keys(f"{path}", table, TABLE_KEYS)
    check_readers(f"{path}", table["readers"])
    parts = []
    for key, part in table["parts"].items():
        check_keys(f"{path}: parts.{key}", part, PART_KEYS, PART_OPTIONS)
        rows = named_rows(f"{path}: parts.{key}.rows", part.pop("rows"), table["readers"])
        parts.append(Part(key, rows=rows, **part))
    if unknown := sorted(set(wanted or []) - {part.name for part in parts}):
        raise ValueError(f"--part {', '.join(unknown)}: allowed are {', '.join(part.name for part in parts)}")
    return {**table, "name": path.stem, "parts": [part for part in parts if not wanted or part.name in wanted]}


def check_readers(where: str, readers: Mapping[str, Any]) -> None:
    """Raises: ValueError where a reader of a table's file has other keys or another kind."""
    for key, reader in readers.items():
        check_keys(f"{where}: readers.{key}", reader, READER_KEYS)
        if reader["kind"] not in KINDS:
            raise ValueError(f"{where}: readers.{key}.kind={reader['kind']}: allowed are {', '.join(KINDS)}")


def named_rows(where: str, rows: Mapping[int, Sequence[str]], readers: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(reader, ratio) of each row of {ratio: readers}. Raises: ValueError for readers that the table lacks."""
    found = [(reader, ratio) for ratio, names in rows.items() for reader in names]
    if unknown := sorted({reader for reader, _ in found} - readers.keys()):
        raise ValueError(f"{where} names {unknown}; readers has {sorted(readers)}")
    return found


def check_keys(where: str, value: Mapping[str, Any], wanted: set[str], optional: Collection[str] = ()) -> None:
    """Raises: ValueError where a mapping of a table's file lacks keys, or has unknown ones."""
    missing, unknown = sorted(wanted - value.keys()), sorted(value.keys() - wanted - set(optional))
    if missing or unknown:
        raise ValueError(f"{where}: missing {missing}, unknown {unknown}")


# ------------------------------------------------------------------ evaluation


def part_words(part: Part, outputs: str, run: str | None = None) -> list[str]:
    """Overrides of the part's evaluation, but for its rows.  run  in place of the folder of runs in its settings"""
    words = [*part.overrides(["run"]), setting("run", run)] if run else part.overrides()
    return [*words, "baselines=[]", setting("paths.outputs", outputs)]


def row_variant(table: Mapping[str, Any], reader: str, ratio: int) -> dict[str, Any]:
    """The changes that make a row, as in `variants` of eval.py."""
    changes = dict(table["readers"][reader]["variant"])
    return changes if ratio in (1, DEFAULT_RATIO) else {**changes, "compressor.ratio": ratio}


def evaluate_part(
    table: Mapping[str, Any], part: Part, words: list[str], evaluate: Evaluate, log: Path
) -> tuple[list[dict[str, Any] | None], list[str]]:
    """Results of every row, None where it failed; and a line about each failure.

    words     `part_words`, with the trained run
    evaluate  (overrides, variants) -> results of the evaluation's own reader, then of each variant
    log       file for what they print
    Rows share encoded contexts in one evaluation. Where it fails, each row is evaluated alone, so that one does not
    cost the others; finished rows are found again.
    """
    variants = [row_variant(table, reader, ratio) for reader, ratio in part.rows]
    with contextlib.suppress(CellFailed), logged(log):
        results = evaluate(words, variants)[1:]
        assert len(results) == len(part.rows), (len(results), len(part.rows))
        return list(results), []
    found: list[dict[str, Any] | None] = []
    failures = []
    for (reader, ratio), variant in zip(part.rows, variants):
        try:
            with logged(log):
                found.append(evaluate(words, [variant])[1])
        except CellFailed as failed:
            found.append(None)
            failures.append(f"{table['readers'][reader]['title']} at {ratio}x failed: {failed.reason}; log: {log}")
    return found, failures


def run_parts(table: Mapping[str, Any], folder: Path, outputs: str, tools: Tools) -> Iterator[Path]:
    """Trains and evaluates every part and yields the files that it wrote, part by part."""
    for part in table["parts"]:
        tools.say(f"{part.name}: {len(part.rows)} rows")
        try:
            trainings = Trainings(folder, str(Path(part.settings.get("run", "outputs")).parent), tools)
            run = trainings.run_of([training_command(words) for words in part.train])
        except CellFailed as failed:
            tools.say(f"  {part.name} failed: {failed.reason}; log: {failed.log}")
            continue
        log = log_file(folder, "evaluate", part.name)
        tools.say(f"  evaluates; log: {log}")
        words = part_words(part, outputs, str(run) if run else None)
        results, failures = evaluate_part(table, part, words, tools.evaluate, log)
        for line in failures:
            tools.say(f"  {line}")
        if any(results):
            yield from write_part(folder, table, part, part_rows(table, part, results), failures)


def training_command(words: Sequence[str]) -> str:
    """The command line of a part's training."""
    return shlex.join(["python", "train.py", *words])


def part_command(table: Mapping[str, Any], part: Part, outputs: str) -> str:
    """The command line of the part's evaluation."""
    variants = [row_variant(table, reader, ratio) for reader, ratio in part.rows]
    return command("eval.py", *part_words(part, outputs), setting("variants", variants))


def part_commands(table: Mapping[str, Any], part: Part, outputs: str) -> list[str]:
    """The command lines of a part in order."""
    return [*map(training_command, part.train), part_command(table, part, outputs)]


# ------------------------------------------------------------------ output


def part_rows(
    table: Mapping[str, Any], part: Part, results: Sequence[Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """One flat row for each result: names, scores with intervals, differences from the first row, costs."""
    evaluated = [_evaluated(result) if result else None for result in results]
    rows = []
    for (reader, ratio), result, one in zip(part.rows, results, evaluated):
        if result is None or one is None:
            continue
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
        first = evaluated[0]
        paired = None if first is None or one is first else paired_differences(one, first)["f1"]
        rows.append(row | {f"f1_minus_first{end}": paired and paired[key] for end, key in _ENDS})
    return rows


_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


def _evaluated(result: Mapping[str, Any]) -> EvaluatedReader:
    predictions = Predictions(Path(result.get("folder") or result["run"]) / PREDICTIONS).rows
    return EvaluatedReader(result["reader"], dict(result), {row["id"]: row for row in predictions})


def write_part(
    folder: Path, table: Mapping[str, Any], part: Part, rows: list[dict[str, Any]], failures: Sequence[str] = ()
) -> list[Path]:
    """Writes NAME.json, NAME.png, NAME.md, NAME.csv, NAME.tex and NAME.html of a part; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{part.name}.{end}" for end in ("json", "png")]
    write_json(files[0], {"title": part.title, "settings": part.settings, "rows": rows})
    draw_part(part, rows, files[1])
    made = command("scripts/table.py", table["name"], "--part", part.name)
    text = {"title": part.title, "source": None, "notes": table["notes"], "command": made}
    return [*files, *write_table_files(folder, part.name, text, [part_block(part, rows, failures)], rows)]


def part_block(part: Part, rows: Sequence[Mapping[str, Any]], failures: Sequence[str] = ()) -> Block:
    """The part as text, a line for each row."""
    header = "ratio | reader | question | EM | F1 | F1 minus first row | NLL | achieved | bytes | first token, s"
    lines = []
    for row in rows:
        cells = [
            f"{row['ratio']}x",
            f"{row['reader']} ({row['training']})",
            row["question"] or MISSING,
            format_score(dict(row), "em"),
            format_score(dict(row), "f1"),
            format_score(dict(row), "f1_minus_first") if row["f1_minus_first"] is not None else MISSING,
            format_score(dict(row), "nll"),
            format_ratio(row["effective_ratio"]),
            format_bytes(row["memory_bytes"]),
            format_number(row["first_token_ms"] / 1000),
        ]
        details = {"commit": str(row["commit"])[:12]} if row["commit"] else {}
        lines.append(Line(cells, f"{row['reader']}, {row['ratio']}x", details))
    title = f"{rows[0]['n']} questions, {rows[0]['backbone']}"
    return Block(title, header.split(" | "), lines, list(failures), texts=3)


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
