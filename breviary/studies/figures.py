"""What the figures of all studies share."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from pandas import DataFrame

from breviary.studies.tables import write_table


def save_figure(figure: Figure, file: Path, numbers: DataFrame | None = None) -> None:
    """Writes the figure as PNG, and its numbers as CSV of the same name."""
    figure.savefig(file, dpi=110)
    if numbers is not None:
        write_table(file.with_suffix(".csv"), numbers)
