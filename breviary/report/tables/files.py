"""The files of a table: Markdown, CSV, LaTeX and one HTML page, all from the same blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from breviary.report.sweep import csv_text
from breviary.report.tables.blocks import Block, sentence
from breviary.runtime.files import write_text
from breviary.runtime.html import html_environment, visible_text

TEMPLATES = Path(__file__).parent / "templates"

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
}


def write_table_files(
    folder: Path, name: str, text: Mapping[str, Any], blocks: Sequence[Block], rows: list[dict[str, Any]]
) -> list[Path]:
    """Writes NAME.md, NAME.csv, NAME.tex and NAME.html; returns their paths.

    text  title, source (or None), notes, and `command` that makes the table again
    rows  of the CSV file, from `blocks.flat_rows`
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        ".md": markdown_text(text, blocks),
        ".csv": csv_text(rows),
        ".tex": latex_text(name, text, blocks),
        ".html": html_text(text, blocks),
    }
    for end, content in files.items():
        write_text(folder / f"{name}{end}", content)
    return [folder / f"{name}{end}" for end in files]


# ------------------------------------------------------------------ Markdown


def markdown_text(text: Mapping[str, Any], blocks: Sequence[Block]) -> str:
    """The blocks as Markdown."""
    lines = [f"# {text['title']}", ""]
    lines += [f"{text['source']}", ""] if text["source"] else []
    for block in blocks:
        lines += [f"## {block.title}", "", _markdown_row(block.header)]
        lines.append("|" + "|".join("---" if _is_text(block, i) else "--:" for i in range(len(block.header))) + "|")
        lines += [_markdown_row(line.cells) for line in block.lines]
        lines += ["", *(f"- {_markdown(note)}" for note in block.notes), *([""] if block.notes else [])]
    lines += [f"- {_markdown(note)}" for note in sentence(text["notes"])]
    return "\n".join([*lines, "", f"`{text['command']}`", ""])


def _is_text(block: Block, column: int) -> bool:
    return column < block.texts or column == len(block.header) - 1


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_markdown(cell) for cell in cells) + " |"


def _markdown(text: str) -> str:
    """One line in which nothing is markup: pipes, emphasis, links and tags stand as they are."""
    return re.sub(r"([\\|*_`<])", r"\\\1", " ".join(visible_text(text).split()))


# ------------------------------------------------------------------ LaTeX


def latex_text(name: str, text: Mapping[str, Any], blocks: Sequence[Block]) -> str:
    r"""The blocks as LaTeX tables with booktabs: \usepackage{booktabs}, \input{NAME}."""
    lines = [rf"% {' '.join(str(text['title']).split())}", rf"% {text['command']}", r"% \usepackage{booktabs}", ""]
    for i, block in enumerate(blocks):
        columns = "".join("l" if _is_text(block, j) else "r" for j in range(len(block.header)))
        heads = [_latex_head(head) for head in block.header]
        lines += [r"\begin{table}", r"\centering\small", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += [" & ".join(heads) + r" \\", r"\midrule"]
        lines += [" & ".join(latex(cell) for cell in line.cells) + r" \\" for line in block.lines]
        notes = " ".join(f"{latex(note)}." for note in block.notes)
        caption = f"{latex(text['title'])}: {latex(block.title)}. {notes}".rstrip()
        lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}"]
        lines += [rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', name)}-{i + 1}}}", r"\end{table}", ""]
    return "\n".join([*lines, *(f"% {note}" for note in sentence(text["notes"])), ""])


def _latex_head(head: str) -> str:
    if "\n" not in head:
        return latex(head)
    return r"\shortstack{" + r"\\".join(latex(part) for part in head.split("\n")) + "}"


def latex(text: str) -> str:
    """Text in which nothing is LaTeX markup."""
    return "".join(_LATEX.get(character, character) for character in " ".join(visible_text(text).split()))


# ------------------------------------------------------------------ HTML


def html_text(text: Mapping[str, Any], blocks: Sequence[Block]) -> str:
    """One page that needs nothing beside it: the blocks, and for each row how its numbers were made."""
    template = html_environment(TEMPLATES).get_template("table.html.jinja")
    notes = sentence(text["notes"])
    return template.render(text=text, notes=notes, blocks=blocks, is_text=_is_text)
