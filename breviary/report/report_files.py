"""The files of a report: table, figure and page of run folders, side by side in one folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from breviary.config.errors import ConfigError
from breviary.evaluation.results import find_results, read_results
from breviary.evaluation.table import METRICS, RECONSTRUCTION_METRICS, TITLES, markdown_table, metric_title, print_table
from breviary.report.figures import draw_figure
from breviary.report.page.build import write_page
from breviary.report.sweep import (
    RUN_ID,
    csv_text,
    figure_points,
    group_results,
    headline,
    load_results,
    report_caption,
    report_title,
    setting_row,
)
from breviary.runs.sweeps import LISTED
from breviary.runtime.files import write_json, write_text


def make_report(
    runs: Sequence[str],
    output: str | Path | None = None,
    metric: str | None = None,
    by: str | None = None,
    skipped: Sequence[str] = (),
    against: str | None = None,
) -> Path:
    """Makes a table, a figure and a page from run folders, prints the table and returns the folder of the report.

    runs    as for `find_results`
    output  folder; None = `report` in the sweep's folder, or in the folder that holds all the runs
    metric  of the figure and the ranking, one that the results have; None = `headline` of the data
    by      as for `group_results`
    skipped  a line for each run that the caller could not use; what cannot be used here is added
    against  the reader that the page compares the others with, see `breviary.report.page.differences.reference_of`
    Writes report.html (see `write_page`), report.json and report.csv (all numbers), report.md, figure.png and
    figure.csv (its points).
    Raises ValueError for unknown names, and where nothing can be used.
    """
    files, unusable = usable_results(runs)
    skipped = [*skipped, *unusable]
    if not files:
        raise ConfigError(skipped)
    results = load_results(files)
    check_metric(metric, results)
    settings, notes = group_results(results, by)
    drawn = metric or headline(settings)
    points = figure_points(settings, drawn)
    rows = [setting_row(s) for s in settings]
    title, caption = report_title(settings), "\n".join([report_caption(settings), *notes])
    folder = Path(output) if output else _home(runs, files) / "report"

    report = {"title": title, "caption": caption, "metric": drawn, "rows": rows, "skipped": skipped}
    write_json(folder / "report.json", report)
    write_text(folder / "report.csv", csv_text(rows))
    write_text(folder / "figure.csv", csv_text(points))
    draw_figure(points, drawn, title, caption.splitlines()[0], folder / "figure.png")
    text = f"# {title}\n\n![{metric_title(drawn)} against compression](figure.png)\n\n{markdown_table(rows)}\n"
    write_text(folder / "report.md", text + "\n".join(f"{line}  " for line in caption.splitlines()) + "\n")
    write_page(folder, settings, metric, title, caption, skipped, against)
    print_table(rows, title, caption)
    for line in skipped:
        print(f"skipped {line}")
    return folder


def check_metric(metric: str | None, results: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError where no result has the metric."""
    measured = list(dict.fromkeys(name for r in results for name in r["metrics"]))
    if metric is None or metric in measured:
        return
    known = (*METRICS, *RECONSTRUCTION_METRICS, *TITLES)
    if metric.partition("@")[0].partition(":")[0] in known:
        raise ValueError(
            f"--metric {metric}: none of the {len(results)} results has it; they have {', '.join(measured)}"
        )
    raise ValueError(f"--metric {metric}: allowed are {', '.join(measured)}, e.g. --metric {measured[0]}")


def usable_results(runs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Every results.json of `runs` that can be read, and one line for each name and file that cannot be used."""
    found: dict[Path, Path] = {}
    skipped = []
    for name in runs:
        try:
            files = find_results([name])
        except ValueError as error:
            skipped.append(str(error))
            continue
        for file in files:
            try:
                read_results(file)
            except ValueError as error:
                skipped.append(str(error))
            else:
                found.setdefault(file.resolve(), file)
    return sorted(found.values()), list(dict.fromkeys(skipped))


def _home(runs: Sequence[str], files: list[Path]) -> Path:
    """The folder of the one sweep that is reported, else the folder that holds all runs."""
    is_sweep = len(runs) == 1 and any(Path(runs[0]).glob(f"*{LISTED}"))
    return Path(runs[0]).resolve() if is_sweep else _common_folder(files)


def _common_folder(files: list[Path]) -> Path:
    """The folder that holds all runs; for a single run, the run folder."""

    def run_folder(file: Path) -> Path:
        parts = [p for p in file.resolve().parents if RUN_ID.fullmatch(p.name)]
        return parts[0] if parts else file.resolve().parent

    return Path(os.path.commonpath([run_folder(file) for file in files]))
