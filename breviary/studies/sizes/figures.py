"""The figure of the sizes study."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from breviary.studies.figures import save_figure
from breviary.studies.frame import Tables

QUALITY = "bits_per_byte"  # comparable between tokenizers


def draw_figures(folder: Path, inputs: Tables, tables: Tables) -> None:
    """pareto.png: bits per byte against the time to the first token; one line per pair, rates as labels."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for (encoder, decoder), own in tables["sizes.csv"].groupby(["encoder", "decoder"], sort=False):
        spread = [own[QUALITY] - own[f"{QUALITY}_lo"], own[f"{QUALITY}_hi"] - own[QUALITY]]
        label = f"{encoder} → {decoder}"
        axis.errorbar(own["first_token_ms"], own[QUALITY], spread, marker="o", ms=4, lw=1, label=label)
        for row in own.itertuples():
            place = (row.first_token_ms, row.bits_per_byte)
            axis.annotate(f"{row.rate:g}x", place, fontsize=7, xytext=(4, 4), textcoords="offset points")
    axis.set(
        xlabel="milliseconds to the first token, a batch of long documents",
        ylabel="bits per byte (teacher-forced; better upwards)",
    )
    axis.invert_yaxis()
    axis.legend(title="encoder → decoder", fontsize=8, title_fontsize=8)
    axis.grid(alpha=0.3)
    save_figure(figure, folder / "pareto.png")
