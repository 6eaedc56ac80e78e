"""Writes the page of a report, with the CSV files of what it compares."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from breviary.evaluation.table import MISSING, format_significant
from breviary.report.page.breakdown import breakdown_rows, heat_map, joint_maps, length_bins, position_bins
from breviary.report.page.charts import AXES, legend, scatter
from breviary.report.page.differences import check_reference, compare, difference_rows
from breviary.report.page.measured_rows import Group, group_rows
from breviary.report.page.provenance import provenance
from breviary.report.page.ranking import overview, ranking
from breviary.report.page.runs import reading_maps, run_folders, training_curves
from breviary.report.reading_map_page import TEMPLATES, template_environment
from breviary.report.sweep import Setting, csv_text
from breviary.runtime.files import write_text
from breviary.runtime.spelling import own_command

PAGE, DIFFERENCES, BREAKDOWN = "report.html", "differences.csv", "breakdown.csv"

SCRIPT = TEMPLATES / "report.js"

MAP_EXAMPLES = 3  # cards of each reading map


def write_page(
    folder: Path,
    settings: Sequence[Setting],
    metric: str | None,
    title: str,
    caption: str,
    skipped: Sequence[str] = (),
    against: str | None = None,
) -> Path:
    """Writes report.html, and differences.csv and breakdown.csv where predictions are there; returns the page.

    metric   ranks the rows, see `group_rows`;  against  as of `reference_of`
    title, caption, skipped  as in the report's table
    Raises ValueError where no row has the name `against`, and for damaged files of a run.
    """
    groups = group_rows(settings, metric)
    check_reference(groups, against)
    views = [group_view(group, against) for group in groups]
    runs = run_folders(groups)
    several = len(groups) > 1
    page = {
        "title": title,
        "caption": caption.splitlines(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": own_command(),
        "script_hash": script_hash(),
        "overview": overview(groups),
        "groups": views,
        "curves": training_curves(runs),
        "maps": reading_maps(runs, MAP_EXAMPLES),
        "made": [
            {"number": one.number, "reader": one.label, "data": group.name if several else "", "seeds": provenance(one)}
            for group in groups
            for one in group.rows
        ],
        "skipped": skipped,
    }
    write_text(folder / PAGE, render(page))
    differences = [row for group, view in zip(groups, views) for row in difference_rows(group, view["differences"])]
    breakdown = [
        row
        for group, view in zip(groups, views)
        for by in ("length", "position")
        for row in breakdown_rows(group, by, view[f"by_{by}"])
    ]
    for name, rows in ((DIFFERENCES, differences), (BREAKDOWN, breakdown)):
        if rows:
            write_text(folder / name, csv_text(rows))
    return folder / PAGE


def render(page: dict[str, Any]) -> str:
    """The HTML of plain values."""
    return template_environment().get_template("report.html.jinja").render(page)


def script_hash() -> str:
    """The source that the page's security policy allows: its own script, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.read_bytes()).digest()).decode()


def group_view(group: Group, against: str | None) -> dict[str, Any]:
    """Tables and figures of one group as plain values."""
    charts = {axis.name: scatter(group, axis) for axis in AXES}
    lengths, positions = length_bins(group), position_bins(group)
    differences = compare(group, against)
    for row in differences["rows"]:
        row |= {"p_text": p_text(row["p"]), "p_holm_text": p_text(row["p_holm"])}
    return {
        "number": group.number,
        "name": group.name,
        "title": group.title,
        "ranking": ranking(group),
        "charts": [chart for chart in charts.values() if chart is not None],
        "no_chart": [name for name, chart in charts.items() if chart is None],
        "legend": legend(group),
        "differences": differences,
        "by_length": heat_map(group, lengths),
        "by_position": heat_map(group, positions),
        "joint": joint_maps(group, positions, lengths),
    }


def p_text(p: float) -> str:
    """0.0004 as "< .001", 0.25 as ".25"."""
    if p != p:  # nan: nothing to compare
        return MISSING
    return "< .001" if p < 0.001 else format_significant(p).removeprefix("0") if p < 1 else "1"
