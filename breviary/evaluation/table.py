"""Results as rows: on the terminal, as JSON, as markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from breviary.runtime.files import write_json

METRICS = ("em", "em_contains", "f1", "rouge_l", "nll")

TITLES = {"em": "EM", "em_contains": "EM contains", "f1": "F1", "rouge_l": "ROUGE-L", "nll": "NLL/token"}

RESTORED = (
    "accuracy",
    "ce",
    "gain",
    "normalised_gain",
    "own_gain",
    "bits_per_byte",
    "prefix_em",
    "bleu",
    "edit_similarity",
    "end_rate",
)

TITLES |= {
    "accuracy": "accuracy",
    "ce": "CE/token",
    "gain": "gain/token",
    "normalised_gain": "norm. gain",
    "own_gain": "own gain",
    "bits_per_byte": "bits/byte",
    "prefix_em": "prefix EM",
    "bleu": "BLEU",
    "edit_similarity": "edit sim.",
    "end_rate": "ended",
}

PHASES = ("encode_ms", "compress_ms", "prefill_ms", "decode_ms")

COPIED = ("requested_ratio", "effective_ratio", "memory_slots", "memory_bytes", "truncated", "run")

WIDE = 1000  # columns we lay out for: rich never folds or cuts a cell, a narrow terminal wraps by itself

MANY_RUNS = 12  # more are told in sum

NOTHING = "-"


def row(results: dict[str, Any]) -> dict[str, Any]:
    """The results of one reader, flat.

    Keys: reader, n, each of METRICS with _low and _high (95% interval), COPIED, PHASES in milliseconds; RESTORED where
    a text was written down again. None stands for what was not measured.
    """
    flat: dict[str, Any] = {"reader": results["reader"], "n": results["n"]}
    for name in (*METRICS, *(name for name in RESTORED if name in results["metrics"])):
        metric = results["metrics"].get(name, {})
        flat |= {name: metric.get("value"), f"{name}_low": metric.get("low"), f"{name}_high": metric.get("high")}
    flat |= {key: results[key] for key in COPIED[:-2]}
    flat |= {phase: results["times"].get(phase) for phase in PHASES}
    return flat | {key: results[key] for key in COPIED[-2:]}


def write_table(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """The rows as a JSON list, written atomically."""
    write_json(path, rows)


# ------------------------------------------------------------------ one cell


def short(value: float | None, digits: int = 2) -> str:
    """0.714 as ".71", 2.5 as "2.50", None as "-"."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text.replace("-0.", "-.", 1)


def score_cell(flat: dict[str, Any], name: str) -> str:
    """A metric with its spread: ".71 [.64, .77]" (95% interval), ".714 ± .020" (over seeds), ".71" (none)."""
    if flat.get(f"{name}_std") is not None:
        return f"{short(flat[name], 3)} ± {short(flat[f'{name}_std'], 3)}"
    if flat.get(f"{name}_low") is None:
        return short(flat.get(name))
    return f"{short(flat[name])} [{short(flat[f'{name}_low'])}, {short(flat[f'{name}_high'])}]"


def ratio_cell(ratio: float | None) -> str:
    """4.0 as "4.0x"."""
    return NOTHING if ratio is None else f"{ratio:.1f}x"


def bytes_cell(size: float | None) -> str:
    """1258291 as "1.2 MiB"."""
    if size is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError(f"no unit for {size}")


def number_cell(value: float | None) -> str:
    """Three digits at least: 3.14, 31.4, 314, 3142; whole numbers without a point."""
    if value is None:
        return NOTHING
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


Column = tuple[str, Callable[[dict[str, Any]], str]]

SCORE_COLUMNS: tuple[Column, ...] = (
    ("reader", lambda r: r["reader"]),
    ("ratio", lambda r: ratio_cell(r["effective_ratio"])),
    *((TITLES[name], lambda r, name=name: score_cell(r, name)) for name in METRICS[:-1]),
)

COST_COLUMNS: tuple[Column, ...] = (
    ("reader", lambda r: r["reader"]),
    (TITLES["nll"], lambda r: score_cell(r, "nll")),
    ("n", lambda r: number_cell(r["n"])),
    ("asked", lambda r: ratio_cell(r["requested_ratio"])),
    ("slots", lambda r: number_cell(r["memory_slots"])),
    ("memory", lambda r: bytes_cell(r["memory_bytes"])),
    *((phase.replace("_ms", "\nms"), lambda r, phase=phase: number_cell(r[phase])) for phase in PHASES),
)

RESTORED_COLUMNS: tuple[Column, ...] = (
    ("reader", lambda r: r["reader"]),
    *((TITLES[name], lambda r, name=name: score_cell(r, name)) for name in RESTORED),
)

SEEDS_COLUMN: Column = ("seeds", lambda r: number_cell(r.get("seeds")))


# ------------------------------------------------------------------ whole tables


def print_table(rows: list[dict[str, Any]], title: str, caption: str = "", console: Console | None = None) -> None:
    """Print the rows as one table in two blocks, scores above and likelihood, memory and times below; between them how
    well texts were written down again, where some were.

    Each block takes about 100 columns, and no line is wrapped or cut, terminal or not. Below stand the
    caption, which rows had prompts cut, and the run folders.
    """
    console = console or Console(width=WIDE)
    cost = COST_COLUMNS[:3] + ((SEEDS_COLUMN,) if _has_seeds(rows) else ()) + COST_COLUMNS[3:]
    _print_text(console, f"\n{title}", "bold")
    restored = (RESTORED_COLUMNS,) if _is_restored(rows) else ()
    for columns in (SCORE_COLUMNS, *restored, cost):
        print_block(console, [name for name, _ in columns], [[cell(r) for _, cell in columns] for r in rows])
    for line in [*caption.splitlines(), *notes(rows), *run_lines(rows)]:
        _print_text(console, line)


def print_block(console: Console, header: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
    """Print one block: the first column to the left, the others to the right, nothing wrapped."""
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="left" if i == 0 else "right", vertical="bottom", no_wrap=True)
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))  # Text: "[.64, .77]" is no markup
    console.print(table)
    console.print()


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """All columns as one GitHub table, followed by which rows had prompts cut."""
    restored = RESTORED_COLUMNS[1:] if _is_restored(rows) else ()
    columns = [
        *SCORE_COLUMNS,
        *restored,
        *COST_COLUMNS[1:3],
        *([SEEDS_COLUMN] if _has_seeds(rows) else []),
        *COST_COLUMNS[3:],
    ]
    lines = [
        "| " + " | ".join(name.replace("\n", " ") for name, _ in columns) + " |",
        "| :-- |" + " --: |" * (len(columns) - 1),
    ]
    lines += ["| " + " | ".join(cell(r).replace("|", "\\|") for _, cell in columns) + " |" for r in rows]
    cut = notes(rows)
    return "\n".join(lines + ([""] if cut else []) + [f"- {note}" for note in cut]) + "\n"


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """One sentence for each row whose prompts did not all fit."""
    return [f"{r['reader']}: {r['truncated']} of {r['n']} prompts were cut" for r in rows if r["truncated"]]


def run_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Which run each reader comes from, "run FOLDER: reader, reader"; of many runs, how many and where."""
    readers: dict[str, dict[str, None]] = defaultdict(dict)
    runs: dict[str, dict[str, None]] = defaultdict(dict)
    for r in rows:
        for run in r.get("runs") or [r["run"]]:
            readers[str(run)][r["reader"]] = None
            runs[r["reader"]][str(run)] = None
    if len(readers) <= MANY_RUNS:
        return [f"run {run}: {', '.join(names)}" for run, names in readers.items()]
    return [
        f"{len(folders)} runs below {', '.join(dict.fromkeys(str(Path(f).parent) for f in folders))}: {reader}"
        if len(folders) > 1
        else f"run {next(iter(folders))}: {reader}"
        for reader, folders in runs.items()
    ]


def _is_restored(rows: list[dict[str, Any]]) -> bool:
    return any("prefix_em" in r for r in rows)


def _has_seeds(rows: list[dict[str, Any]]) -> bool:
    return any((r.get("seeds") or 1) > 1 for r in rows)


def _print_text(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
