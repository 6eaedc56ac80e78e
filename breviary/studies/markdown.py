"""Markdown of measured numbers, written into a document between two marks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pandas import DataFrame

BEGIN, END = "<!-- numbers: written by scripts/studies/numbers.py -->", "<!-- end of numbers -->"


def replace_numbers(text: str, numbers: str) -> str:
    """The document `text` with `numbers` between the marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{numbers}\n\n{END}{after}"


def signed(value: float) -> str:
    """A number with its sign and two digits, e.g. -.12 or +.30; a dash for nan."""
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("0.", ".", 1)


def unsigned(value: float) -> str:
    """A number with two digits, e.g. .30 or 1.30."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def interval(row: Mapping[str, float]) -> str:
    """'+.12 [+.03, +.20]' of a row with value, low and high."""
    return f"{signed(row['value'])} [{signed(row['low'])}, {signed(row['high'])}]"


def interval_of(row: Mapping[str, float], name: str, write: Callable[[float], str] = unsigned) -> str:
    """'.49 [.48, .51]' of a row with NAME, NAME_lo and NAME_hi."""
    return f"{write(row[name])} [{write(row[name + '_lo'])}, {write(row[name + '_hi'])}]"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in which all columns but the first are aligned to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def rows_where(table: DataFrame, **values: object) -> DataFrame:
    """The rows of a table in which every named column has the given value."""
    for name, value in values.items():
        table = table[table[name] == value]
    return table
