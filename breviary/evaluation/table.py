"""Result tables: one row per reader, on the terminal, as JSON and as Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from breviary.evaluation.facts import FACTS, mixed_facts, row_facts, shared_facts, with_training
from breviary.runtime.files import write_json

SCORES = ("em", "em_contains", "f1", "rouge_l")  # of answers, in [0, 1]; shown where a data set names no others
METRICS = (*SCORES, "nll")

# Metrics of reconstruction and continuation: the answer is a text of the data, not a short answer to a question.
RECONSTRUCTION_METRICS = (
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

TITLES = {
    "em": "EM",
    "em_contains": "EM contains",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
    "nll": "NLL/token",
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
    "continuation_nll": "NLL/token text",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L unstemmed",
    "rougeLsum": "ROUGE-Lsum",
    "rouge_geometric": "ROUGE geom.",
    "rougeL_longbench": "ROUGE-L LongBench",
    "string_match_all": "match all",
    "string_match_part": "match part",
    "babilong": "BABILong",
    "choice_letter": "letter",
    "choice_letter_v2": "letter stated",
    "choice_likelihood": "likeliest",
    "choice_likelihood_norm": "likeliest/char",
    "classification": "class",
    "count": "count",
    "retrieval": "retrieval",
    "zh_f1": "F1 zh",
    "zh_f1_characters": "F1 zh char.",
    "zh_rougeL": "ROUGE-L zh",
    "continuation_perplexity": "perplexity",
    "exponential_similarity": "exp. sim.",
    "concordance": "concordance",
    "ndcg10": "NDCG@10",
    "first_number": "first number",
    "math_find": "Math.Find",
    "math_calc": "Math.Calc",
    "kv_word": "KV word",
    "name_word": "name",
    "code_run": "Code.Run",
    "code_debug": "Code.Debug",
    "book_choice": "En.MC",
    "bertscore": "BERTScore",
}

PHASES = ("read_ms", "compress_ms", "prefill_ms", "decode_ms")  # see runtime.timing

FORMER_PHASE = "encode_ms"  # of results before schema 3: encoding alone, a part of read_ms

COST_KEYS = ("requested_ratio", "effective_ratio", "memory_slots", "memory_bytes", "document_bytes")

TABLE_WIDTH = 1000  # columns given to rich, which then never wraps or truncates a cell

MAX_LISTED_RUNS = 12  # more runs than this are summarised by their parent folder

MISSING = "-"


def table_row(results: dict[str, Any]) -> dict[str, Any]:
    """The results of one reader as a flat dictionary.

    Keys: reader, n, those of `row_facts` (training, backbone, data, trained_on), each of METRICS with NAME_low and
    NAME_high (95% interval), each of RECONSTRUCTION_METRICS and of the data set's metrics that was measured, COST_KEYS,
    PHASES and FORMER_PHASE in milliseconds, truncated, run, metrics (the names of those to show, the headline first).
    None marks what was not measured.
    """
    flat: dict[str, Any] = {"reader": results["reader"], "n": results["n"], **row_facts(results)}
    shown = results.get("scoring", {}).get("names", SCORES)
    others = [name for name in (*RECONSTRUCTION_METRICS, *shown) if name in results["metrics"]]
    for name in dict.fromkeys((*METRICS, *others)):
        metric = results["metrics"].get(name, {})
        flat |= {name: metric.get("value"), f"{name}_low": metric.get("low"), f"{name}_high": metric.get("high")}
    flat |= {key: results.get(key) for key in COST_KEYS}
    flat |= {phase: results["times"].get(phase) for phase in (*PHASES, FORMER_PHASE)}
    return flat | {"truncated": results["truncated"], "run": results["run"], "metrics": list(shown)}


def write_table(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows as a JSON list, atomically."""
    write_json(path, rows)


# ---- cells ----


def format_number(value: float | None, digits: int = 2) -> str:
    """0.714 as ".71", 2.5 as "2.50", None as "-"."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text.replace("-0.", "-.", 1)


def format_score(flat: dict[str, Any], name: str) -> str:
    """A metric with its spread: ".71 [.64, .77]" (95% interval), ".714 ± .020" (over seeds), ".71" (neither)."""
    if flat.get(f"{name}_std") is not None:
        return f"{format_number(flat[name], 3)} ± {format_number(flat[f'{name}_std'], 3)}"
    if flat.get(f"{name}_low") is None:
        return format_number(flat.get(name))
    return f"{format_number(flat[name])} [{format_number(flat[f'{name}_low'])}, {format_number(flat[f'{name}_high'])}]"


def format_ratio(ratio: float | None) -> str:
    """4.0 as "4.0x"."""
    return MISSING if ratio is None else f"{ratio:.1f}x"


def format_bytes(size: float | None) -> str:
    """1258291 as "1.2 MiB"."""
    if size is None:
        return MISSING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError(f"no unit for {size}")


def format_significant(value: float | None) -> str:
    """At least three significant digits: 3.14, 31.4, 314, 3142. Whole numbers have no decimal point."""
    if value is None:
        return MISSING
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


# ---- columns: (title, row -> cell) ----

Column = tuple[str, Callable[[dict[str, Any]], str]]

READER_COLUMN: Column = ("reader", lambda r: row_label(r))

RATIO_COLUMN: Column = ("achieved\nratio", lambda r: format_ratio(r["effective_ratio"]))

COST_COLUMNS: tuple[Column, ...] = (
    READER_COLUMN,
    (TITLES["nll"], lambda r: format_score(r, "nll")),
    ("n", lambda r: format_significant(r["n"])),
    ("requested\nratio", lambda r: format_ratio(r["requested_ratio"])),
    ("slots", lambda r: format_significant(r["memory_slots"])),
    ("memory", lambda r: format_bytes(r["memory_bytes"])),
    *((phase.replace("_ms", "\nms"), lambda r, phase=phase: format_significant(r[phase])) for phase in PHASES),
)

RECONSTRUCTION_COLUMNS: tuple[Column, ...] = (
    READER_COLUMN,
    *((TITLES[name], lambda r, name=name: format_score(r, name)) for name in RECONSTRUCTION_METRICS),
)

SEEDS_COLUMN: Column = ("seeds", lambda r: format_significant(r.get("seeds")))

DOCUMENT_COLUMN: Column = ("document", lambda r: format_bytes(r.get("document_bytes")))

ENCODE_COLUMN: Column = ("encode\nms", lambda r: format_significant(r.get(FORMER_PHASE)))


# ---- tables ----


def row_label(row: dict[str, Any]) -> str:
    """The reader's name with its training: "comi (400 steps, 3,200 examples)", "full_context (untrained)"."""
    return with_training(row["reader"], row.get("training"))


def metric_title(name: str) -> str:
    """A metric's title, with the part of the answer that it scores: f1@first_line is "F1 (first line)"."""
    metric, _, view = name.partition("@")
    title = TITLES.get(metric.partition(":")[0], metric)
    return f"{title} ({view.replace('_', ' ')})" if view else title


def shown_metrics(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The metrics that the data sets of the rows name, the headline first; SCORES where a row states none."""
    return list(dict.fromkeys(name for row in rows for name in row.get("metrics") or SCORES))


def score_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Reader, achieved ratio, and the metrics of `shown_metrics`."""
    return (READER_COLUMN, RATIO_COLUMN, *map(_score_column, shown_metrics(rows)))


def _score_column(name: str) -> Column:
    return metric_title(name), lambda r: format_score(r, name)


def fact_columns(rows: list[dict[str, Any]]) -> tuple[Column, ...]:
    """Columns of the facts in which rows differ, see `mixed_facts`; the number of examples has a column anyway."""
    return tuple(
        (FACTS[key], lambda r, key=key: MISSING if r.get(key) is None else str(r[key]))
        for key in mixed_facts(rows)
        if key != "n"
    )


def print_table(rows: list[dict[str, Any]], title: str, caption: str = "", console: Console | None = None) -> None:
    """Prints the rows as one table in blocks of about 100 columns, then the caption and where the rows come from.

    The blocks: scores; reconstruction metrics where any row has them; likelihood, memory and times. Every row states
    how its reader was trained; backbone, data and training data are columns where they differ, else in the caption. No
    line is wrapped or truncated, whether the output is a terminal or not.
    """
    console = console or Console(width=TABLE_WIDTH)
    cost = _cost_columns(rows)
    _print_text(console, f"\n{title}", "bold")
    reconstruction = (RECONSTRUCTION_COLUMNS,) if _has_reconstruction(rows) else ()
    for columns in ((*score_columns(rows), *fact_columns(rows)), *reconstruction, cost):
        print_block(console, [name for name, _ in columns], [[cell(r) for _, cell in columns] for r in rows])
    for line in filter(None, [*caption.splitlines(), shared_facts(rows), *truncation_notes(rows), *run_summary(rows)]):
        _print_text(console, line)


def print_block(console: Console, header: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
    """Prints one block. The first column is left-aligned, the others right-aligned; nothing is wrapped."""
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="left" if i == 0 else "right", vertical="bottom", no_wrap=True)
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))  # Text: rich would take "[.64, .77]" for markup
    console.print(table)
    console.print()


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """All columns as one GitHub table, followed by what all rows share, and the notes on truncated prompts."""
    reconstruction = RECONSTRUCTION_COLUMNS[1:] if _has_reconstruction(rows) else ()
    columns = [*score_columns(rows), *fact_columns(rows), *reconstruction, *_cost_columns(rows)[1:]]
    lines = [
        "| " + " | ".join(name.replace("\n", " ") for name, _ in columns) + " |",
        "| :-- |" + " --: |" * (len(columns) - 1),
    ]
    lines += ["| " + " | ".join(cell(r).replace("|", "\\|") for _, cell in columns) + " |" for r in rows]
    notes = [*filter(None, [shared_facts(rows)]), *truncation_notes(rows)]
    return "\n".join(lines + ([""] if notes else []) + [f"- {note}" for note in notes]) + "\n"


def truncation_notes(rows: list[dict[str, Any]]) -> list[str]:
    """One note for each row that has truncated prompts."""
    return [f"{row_label(r)}: {r['truncated']} of {r['n']} prompts were truncated" for r in rows if r["truncated"]]


def run_summary(rows: list[dict[str, Any]]) -> list[str]:
    """The readers of each run as "run FOLDER: reader, reader".

    Above MAX_LISTED_RUNS runs: for each reader the number of its runs and their parent folders.
    """
    readers: dict[str, dict[str, None]] = defaultdict(dict)
    runs: dict[str, dict[str, None]] = defaultdict(dict)
    for r in rows:
        for run in r.get("runs") or [r["run"]]:
            readers[str(run)][r["reader"]] = None
            runs[r["reader"]][str(run)] = None
    if len(readers) <= MAX_LISTED_RUNS:
        return [f"run {run}: {', '.join(names)}" for run, names in readers.items()]
    return [
        f"{len(folders)} runs below {', '.join(dict.fromkeys(str(Path(f).parent) for f in folders))}: {reader}"
        if len(folders) > 1
        else f"run {next(iter(folders))}: {reader}"
        for reader, folders in runs.items()
    ]


def _has_reconstruction(rows: list[dict[str, Any]]) -> bool:
    return any("prefix_em" in r for r in rows)


def _cost_columns(rows: list[dict[str, Any]]) -> tuple[Column, ...]:
    """COST_COLUMNS, with columns of seeds, of document_bytes and of FORMER_PHASE where a row has them."""
    seeds = (SEEDS_COLUMN,) if _has_seeds(rows) else ()
    document = (DOCUMENT_COLUMN,) if any(r.get("document_bytes") is not None for r in rows) else ()
    former = (ENCODE_COLUMN,) if any(r.get(FORMER_PHASE) is not None for r in rows) else ()
    memory, times = COST_COLUMNS[3 : -len(PHASES)], COST_COLUMNS[-len(PHASES) :]
    return COST_COLUMNS[:3] + seeds + memory + document + former + times


def _has_seeds(rows: list[dict[str, Any]]) -> bool:
    return any((r.get("seeds") or 1) > 1 for r in rows)


def _print_text(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
