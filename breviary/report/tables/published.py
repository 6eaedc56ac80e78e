"""A published table beside our results, with the commands that reproduce each cell, on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from breviary.evaluation.results import PREDICTIONS, Predictions, contexts_of, find_results, read_results
from breviary.evaluation.statistics import cluster_codes, interval
from breviary.evaluation.table import TABLE_WIDTH, print_block
from breviary.report.tables.blocks import Block, Outcome, metrics_of, paper_blocks, sentence
from breviary.report.tables.cells import cell_problems, command_estimate
from breviary.report.tables.form import cell_commands, cell_name, cells_of, grouped_commands

# Metrics that results do not hold: {name: (prediction, references) -> score in [0, 1]}, given by the caller.
Further = Mapping[str, Callable[[str, Sequence[str]], float]]


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
    for name in further.keys() & set(metrics_of(table, dataset)):
        results["metrics"][name] = further_metric(matching[0].with_name(PREDICTIONS), further[name])
    return results, unknown


def further_metric(file: Path, score: Callable[[str, Sequence[str]], float]) -> dict[str, float]:
    """{"value", "low", "high"} of a metric of the stored predictions, with the interval of all metrics."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; this table has a metric that is computed from the predictions")
    rows = Predictions(file).rows
    values = np.array([score(row["prediction"], row["references"]) for row in rows])
    return interval(values, np.ones(len(values)), 0, 2000, cluster_codes(contexts_of(rows)))


def given_outcomes(table: dict[str, Any], further: Further) -> dict[str, Outcome]:
    """{"ROW/DATASET": outcome} of the cells that have a run in the table. Raises: ValueError as `our_results`."""
    outcomes = {}
    for row, dataset in cells_of(table):
        results, unstored = our_results(table, row, dataset, further)
        if results:
            outcomes[cell_name(row, dataset)] = Outcome(results, unstored=unstored)
    return outcomes


# ------------------------------------------------------------------ the terminal


def print_published_table(table: dict[str, Any], every_cell: bool, further: Further) -> None:
    """Prints one block per dataset, the notes, and the commands.

    every_cell  the commands of all cells with an estimate of memory and time; otherwise one line per row
    """
    # All blocks are made first: a wrong run raises before anything is printed.
    blocks = paper_blocks(table, given_outcomes(table, further))
    console = Console(width=TABLE_WIDTH)
    print_blocks(console, table, blocks)
    print_text(console, "\nCommands", "bold")
    if every_cell:
        for line in command_lines(table):
            print_text(console, line)
        return
    width = max(len(row["id"]) for row in table["rows"])
    for row in table["rows"]:
        last = row["evaluate"] or row["measure"]
        for i, command in enumerate((*row["train"], *([last] if last else ["(not implemented here)"]))):
            words = " ".join(command.replace("{options}", "").split())
            print_text(console, f"{row['id'] if i == 0 else '':<{width}}  {words}")
    print_text(
        console, f"{{dataset}} is one of {', '.join(table['datasets'])}; --commands prints the commands of every cell."
    )


def print_blocks(console: Console, table: Mapping[str, Any], blocks: Sequence[Block]) -> None:
    """Prints title, source, blocks and notes of a table."""
    print_text(console, f"{table['title']}\n{table['source']}\n", "bold")
    for block in blocks:
        print_text(console, block.title, "bold")
        print_block(console, block.header, [line.cells for line in block.lines])
        for note in block.notes:
            print_text(console, note)
    for note in sentence(table["notes"]):
        print_text(console, f"- {note}")


def print_text(console: Console, text: str, style: str = "") -> None:
    """Prints one line as it is: no markup, no wrapping."""
    console.print(Text(text, style=style), soft_wrap=True)


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
