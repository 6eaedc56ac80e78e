"""The words of scripts/table.py, and the files that it writes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from breviary.report.tables.blocks import Outcome, flat_rows, paper_blocks
from breviary.report.tables.files import write_table_files
from breviary.report.tables.form import SCALES
from breviary.report.tables.grid_form import is_grid
from breviary.runtime.spelling import command

KEYS = ("table", "scale", "device")
EXAMPLE = "python scripts/table.py comi_main scale=small --plan"


def read_words(words: Sequence[str], device: str | None = None) -> tuple[str, str | None, str | None, list[str]]:
    """(table, scale, device, settings) of the words TABLE, table=TABLE, scale=SCALE, device=DEVICE, in any order.

    settings  further words KEY=VALUE, which a grid takes
    Raises: ValueError for no table or several, an unknown key or scale, or a key given twice.
    """
    found: dict[str, str] = {"device": device} if device else {}
    settings: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or Path(word).is_file():
            key, value = "table", word
        if key not in KEYS:
            settings.append(word)
            continue
        if key in found:
            raise ValueError(f"{key} is given twice, {found[key]} and {value}; give one: {EXAMPLE}")
        found[key] = value
    if not found.get("table"):
        raise ValueError(f"no table; give its name: {EXAMPLE}")
    if settings and not is_grid(found["table"]):
        near = difflib.get_close_matches(settings[0].partition("=")[0], KEYS, n=1)
        nearest = f"; the nearest right one is {near[0]}" if near else ""
        raise ValueError(f"{settings[0]}: no key of this command{nearest}; its keys are {', '.join(KEYS)}: {EXAMPLE}")
    scale = found.get("scale")
    if scale is not None and scale not in SCALES:
        raise ValueError(f"scale={scale}: allowed are {', '.join(SCALES)}: {EXAMPLE}")
    return found["table"], scale, found.get("device"), settings


def with_table(name: str, scale: str, *words: str) -> str:
    """The command line of a table at a scale."""
    return command("scripts/table.py", name, f"scale={scale}", *(word for word in words if word))


def write_outcomes(table: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> list[Path]:
    """Writes the files of a table at one scale into its folder; returns their paths."""
    blocks = paper_blocks(table, outcomes)
    text = {key: table[key] for key in ("title", "source", "notes")}
    text["command"] = with_table(table["given"], table["scale"])
    rows = flat_rows(table, table["scale"], outcomes)
    return write_table_files(Path(table["folder"]), table["name"], text, blocks, rows)
