"""Figures of the data-gap study, each with the CSV of its numbers; means over seeds, all documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas import DataFrame

from breviary.studies.data_gap.tables import GAPS, RANDOM, unmatched_cells
from breviary.studies.figures import save_figure
from breviary.studies.frame import Tables
from breviary.studies.statistics import spearman

# Information gain is relative to the decoder's loss before training, so decoders should be compared by accuracy.
QUALITIES = {"accuracy": "token accuracy", "gain": "information gain, nats per token"}
GAP_LABELS = {
    "mix_distance": "distance of mixes",
    "kl": "symmetric KL, nats",
    "nll": "|NLL difference|, nats per token",
    "cka": "1 - CKA",
}


def draw_figures(folder: Path, inputs: Tables, tables: Tables) -> None:
    """heatmap, swaps and gaps."""
    cells = tables["gap.csv"]
    cells = cells[(cells["part"] == "all") & (cells["mitigation"] == "none")]
    draw_heat_map(folder, cells)
    draw_swaps(folder, cells)
    draw_gaps(folder, unmatched_cells(cells))


def draw_heat_map(folder: Path, cells: DataFrame) -> None:
    """Encoder mix by decoder mix, one map per quality; cells that were not run stay white."""
    encoders = sorted(cells["encoder"].unique())
    decoders = sorted(cells["decoder"].unique(), key=lambda name: (name == RANDOM, name))
    means = cells.groupby(["encoder", "decoder"])[list(QUALITIES)].mean()
    size = len(QUALITIES) * (1.3 + 0.65 * len(decoders)), 1.3 + 0.5 * len(encoders)
    figure = Figure(figsize=size, layout="constrained")
    for axis, (quality, label) in zip(figure.subplots(1, len(QUALITIES)), QUALITIES.items()):
        grid = means[quality].unstack().reindex(index=encoders, columns=decoders).to_numpy()
        image = axis.imshow(grid, cmap="viridis")
        middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
        for (i, j), value in np.ndenumerate(grid):
            if not np.isnan(value):
                colour = "white" if value < middle else "black"
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_xticks(range(len(decoders)), decoders)
        axis.set_yticks(range(len(encoders)), encoders)
        axis.set(xlabel="decoder trained on (D1: prose)", ylabel="encoder trained on", title=label)
        axis.title.set_size(9)
        figure.colorbar(image)
    order = pd.MultiIndex.from_product([encoders, decoders], names=["encoder", "decoder"])
    save_figure(figure, folder / "heatmap.png", means.reindex(order).dropna(how="all").reset_index())


def draw_swaps(folder: Path, cells: DataFrame) -> None:
    """Qualities along the mixes: decoder varied, encoder varied, both; one dot per seed, lines through the means."""
    mixes = sorted(cells["encoder"].unique())
    first = mixes[0]
    kinds = {
        f"decoder varied, encoder {first}": [(first, mix) for mix in mixes],
        f"encoder varied, decoder {first}": [(mix, first) for mix in mixes],
        "both (matched)": [(mix, mix) for mix in mixes],
    }
    tables = []
    for kind, pairs in kinds.items():
        for mix, (encoder, decoder) in zip(mixes, pairs):
            own = cells[(cells["encoder"] == encoder) & (cells["decoder"] == decoder)]
            tables.append(own.assign(kind=kind, mix=mix)[["kind", "mix", "seed", *QUALITIES]])
    numbers = pd.concat(tables)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, len(QUALITIES))
    for axis, (quality, label) in zip(axes, QUALITIES.items()):
        for i, (kind, own) in enumerate(numbers.groupby("kind", sort=False)):
            means = own.groupby("mix")[quality].mean().reindex(mixes)
            axis.plot(range(len(mixes)), means, color=f"C{i}", label=kind)
            axis.plot(own["mix"].map(mixes.index), own[quality], ".", color=f"C{i}", alpha=0.6)
        axis.set_xticks(range(len(mixes)), mixes)
        axis.set(xlabel="mix (more formal text to the right)", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    save_figure(figure, folder / "swaps.png", numbers)


def draw_gaps(folder: Path, cells: DataFrame) -> None:
    """Quality lost against the matched pair, by each of the four gaps; one dot per cell and seed."""
    figure = Figure(figsize=(12, 2.9 * len(QUALITIES)), layout="constrained")
    axes = figure.subplots(len(QUALITIES), len(GAPS), sharey="row")
    first = cells["encoder"] == "D1"
    for line, (quality, label) in zip(axes, QUALITIES.items()):
        for axis, gap in zip(line, GAPS):
            x, y = cells[gap], cells[f"delta_{quality}"]
            for i, (name, chosen) in enumerate({"encoder D1": first, "other encoder": ~first}.items()):
                axis.plot(x[chosen], y[chosen], ".", color=f"C{i}", label=name)
            axis.axhline(0, color="grey", lw=0.8)
            rho = spearman(x.to_numpy(), y.to_numpy())[0]
            # rho is undefined for two mixes, which have one distance
            axis.set(xlabel=GAP_LABELS[gap], title=f"ρ = {rho:+.2f}" if np.isfinite(rho) else "")
        line[0].set_ylabel(f"lost against the matched pair:\n{label}", fontsize=8)
    axes[0][0].legend(fontsize=7)
    deltas = [f"delta_{name}" for name in QUALITIES]
    save_figure(figure, folder / "gaps.png", cells[["seed", "encoder", "decoder", *GAPS, *deltas]])
