"""What the command lines of scripts/bench share: options, overrides, the printed table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from breviary.evaluation.bench.rows import MeasuredRows, Row

WIDTH = 110  # columns of the printed tables, at least


def benchmark_parser(
    description: str | None, lengths: Sequence[int], of: str, runs: int, ratios: Sequence[int] | None = None
) -> argparse.ArgumentParser:
    """A parser with --backbone, --dtype, --lengths, --runs, --keys and --output; --ratios where it has defaults.

    of  unit of --lengths, for its help text
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2_135m", help="a YAML of configs/backbone")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the weights")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(lengths), help=f"tokens of {of}")
    if ratios is not None:
        parser.add_argument("--ratios", type=int, nargs="+", default=list(ratios))
    parser.add_argument("--runs", type=int, default=runs, help="timed calls of each row")
    parser.add_argument("--keys", nargs="*", default=[], help="overrides key=value of every reader")
    parser.add_argument("--output", metavar="FILE", help="JSON file; where it exists, finished rows are not repeated")
    return parser


def shared_overrides(args: argparse.Namespace) -> list[str]:
    """Overrides of every reader: the backbone, its dtype, --keys."""
    return [f"backbone={args.backbone}", f"backbone.dtype={args.dtype}", *args.keys]


def open_rows(
    args: argparse.Namespace, schema: int, keys: Mapping[str, Sequence[str]], **settings: Any
) -> MeasuredRows:
    """The rows in --output. settings: stored in addition to backbone, dtype and --keys."""
    own = {"schema": schema, "backbone": args.backbone, "keys": args.keys, "dtype": args.dtype}
    return MeasuredRows(args.output, own | settings, keys, args.runs)


def print_rows(
    title: str, columns: Mapping[str, Callable[[Row], str]], rows: Sequence[Row], texts: Sequence[str]
) -> None:
    """Prints the rows as one table, sorted by tokens.

    columns  {title: row -> cell}
    texts    titles of the columns that are left-aligned
    """
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in texts else "right", no_wrap=name in texts)
    for row in sorted(rows, key=lambda row: row["tokens"]):
        table.add_row(*(cell(row) for cell in columns.values()))
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table)
