"""Figures of the input-entropy study, each with the CSV of its numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas import DataFrame

from breviary.evaluation.statistics import paired_bootstrap
from breviary.studies.documents import AS_IS
from breviary.studies.figures import save_figure
from breviary.studies.frame import Tables
from breviary.studies.input_entropy.tables import POOLED, SETTING, WITHIN, origins_of
from breviary.studies.statistics import line_with_band

# The quality that figures show. Information gain is relative to the decoder's loss before training: the gain of a
# trained decoder grows with that loss by construction.
QUALITY = "accuracy"
QUALITY_LABEL = "token accuracy (teacher-forced)"
SIDES = {"nll_enc": "encoder", "nll_dec": "decoder"}


def draw_figures(folder: Path, inputs: Tables, tables: Tables) -> None:
    """scatter, correlations, ladder (where there is one) and loss."""
    rows, corr = inputs["per_doc.parquet"], tables["corr.csv"]
    draw_scatter(folder, rows, corr)
    draw_correlations(folder, corr)
    if (rows["transform"] != AS_IS).any():
        draw_ladder(folder, rows)
    draw_losses(folder, inputs["loss.csv"])


def setting_title(setting: Sequence[Any]) -> str:
    """A setting as text, e.g. 'prose → formal, decoder full, 4x, seed 0'."""
    pair, mode, rate, seed = setting
    return f"{pair.replace('>', ' → ')}, decoder {mode}, {rate:g}x, seed {seed:g}"


def colours(settings: Sequence[tuple]) -> dict[tuple, str]:
    """{setting: colour}, equal for all seeds of a pair, decoder training and rate."""
    kinds = list(dict.fromkeys(setting[:3] for setting in settings))
    return {setting: f"C{kinds.index(setting[:3])}" for setting in settings}


def legend_label(setting: tuple, settings: Sequence[tuple]) -> str | None:
    """The setting without its seed, for the first seed; None for other seeds, which have the same colour."""
    return setting_title(setting).rpartition(", seed")[0] if setting[3] == settings[0][3] else None


def draw_scatter(folder: Path, rows: DataFrame, corr: DataFrame) -> None:
    """Quality against entropy under the encoder (left) and the decoder (right), one row per setting of the first seed.

    Least-squares line with its 95% band; rho of corr.csv over all domains.
    """
    first = rows[(rows["seed"] == rows["seed"].iloc[0]) & (rows["transform"] == AS_IS)]
    groups = first.groupby(SETTING, sort=False)
    rho = corr[(corr["group"] == POOLED) & (corr["metric"] == QUALITY)].set_index([*SETTING, "measure"])["rho"]
    figure = Figure(figsize=(9, 2.9 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 2, sharey="row", squeeze=False)
    points = []
    for line, (setting, own) in zip(axes, groups):
        for axis, (measure, side) in zip(line, SIDES.items()):
            draw_cloud(axis, own[measure].to_numpy(), own[QUALITY].to_numpy(), own["domain"].to_numpy())
            axis.set_title(f"{setting_title(setting)}: ρ = {rho[(*setting, measure)]:+.2f}", fontsize=8)
            axis.set_xlabel(f"entropy under the {side} (NLL, bits per token)", fontsize=8)
            renamed = own.rename(columns={measure: "x", QUALITY: "y"}).assign(measure=measure)
            points.append(renamed[[*SETTING, "measure", "domain", "x", "y"]])
        line[0].set_ylabel(QUALITY_LABEL, fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, markerscale=2, ncols=7, loc="outside lower center")
    save_figure(figure, folder / "scatter.png", pd.concat(points))


def draw_cloud(axis: Any, x: np.ndarray, y: np.ndarray, domains: np.ndarray) -> None:
    """Points coloured by domain, the line through all of them and its band; qualities are not negative."""
    for i, domain in enumerate(dict.fromkeys(domains)):
        chosen = domains == domain
        axis.scatter(x[chosen], y[chosen], s=7, alpha=0.6, color=f"C{i}", label=domain, linewidths=0)
    at = np.linspace(x.min(), x.max(), 50)
    line, low, high = line_with_band(x, y, at)
    axis.plot(at, line, color="black", lw=1)
    axis.fill_between(at, low, high, color="black", alpha=0.15, linewidth=0)
    axis.set_ylim(-0.03, 1.03 * y.max() + 0.01)
    axis.tick_params(labelsize=7)


def draw_correlations(folder: Path, corr: DataFrame) -> None:
    """rho of quality with both entropies, alone and given the other, pooled and within domains; one row per setting."""
    chosen = corr[
        (corr["metric"] == QUALITY) & corr["measure"].isin(list(SIDES)) & corr["group"].isin([POOLED, WITHIN])
    ]
    settings = list(dict.fromkeys(chosen[SETTING].itertuples(index=False, name=None)))
    settings.sort(key=lambda setting: (setting[1], setting[0], setting[3]))
    figure = Figure(figsize=(12, 1.6 + 0.34 * len(settings)), layout="constrained")
    axes, numbers = figure.subplots(1, 4, sharey=True), []
    for axis, (group, partial) in zip(axes, itertools.product((POOLED, WITHIN), (False, True))):
        names = ("partial", "partial_lo", "partial_hi") if partial else ("rho", "rho_lo", "rho_hi")
        for offset, measure, colour in ((-0.13, "nll_enc", "C0"), (0.13, "nll_dec", "C3")):
            own = chosen[(chosen["group"] == group) & (chosen["measure"] == measure)].assign(partial_given=partial)
            own = own[[*SETTING, "group", "measure", "partial_given", *names]]
            own.columns = [*SETTING, "group", "measure", "partial", "value", "low", "high"]
            numbers.append(own)
            for i, row in enumerate(own.itertuples()):
                place = settings.index((row.pair, row.dec_mode, row.rate, row.seed)) + offset
                if not np.isnan(row.value):
                    axis.plot([row.low, row.high], [place, place], color=colour, lw=1.5)
                    axis.plot(row.value, place, "o", color=colour, ms=4, label=None if i else SIDES[measure])
        axis.axvspan(-0.1, 0.1, color="grey", alpha=0.2, linewidth=0)
        axis.axvline(0, color="grey", lw=0.8)
        given = ", given the other side" if partial else ""
        axis.set(title=f"{group}{given}", xlabel=f"ρ with {QUALITY}", xlim=(-1, 1))
        axis.title.set_size(8)
    axes[0].set_yticks(range(len(settings)), [setting_title(setting) for setting in settings], fontsize=7)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7, loc="upper right")
    save_figure(figure, folder / "correlations.png", pd.concat(numbers))


def draw_ladder(folder: Path, rows: DataFrame) -> None:
    """Mean entropy under the encoder and mean quality on each rung, over the same documents; 95% bootstrap."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axis, groups = figure.subplots(), list(rows.groupby(SETTING, sort=False))
    tables: list[DataFrame] = []
    settings = [setting for setting, _ in groups]
    colour = colours(settings)
    for setting, own in groups:
        means = rung_means(own)
        spread = [means["value"] - means["low"], means["high"] - means["value"]]
        label, x, y = legend_label(setting, settings), means["nll_enc"], means["value"]
        axis.errorbar(x, y, spread, marker="o", ms=3, lw=1, alpha=0.8, color=colour[setting], label=label)
        if not tables:
            for row, offset in zip(means.itertuples(), itertools.cycle((6, -12))):
                place = (row.nll_enc, row.value)
                axis.annotate(row.transform, place, fontsize=7, xytext=(3, offset), textcoords="offset points")
        tables.append(DataFrame([dict(zip(SETTING, setting))]).merge(means, how="cross"))
    axis.set(xlabel="entropy under the encoder (NLL, bits per token)", ylabel=QUALITY_LABEL)
    axis.legend(fontsize=7)
    save_figure(figure, folder / "ladder.png", pd.concat(tables))


def rung_means(rows: DataFrame) -> DataFrame:
    """One row per rung of one setting, by rising entropy; only unchanged documents that have transformed copies."""
    origins = origins_of(rows[rows["transform"] != AS_IS])
    rows = rows[(rows["transform"] != AS_IS) | rows["doc_id"].isin(origins)]
    means = [
        {"transform": rung, "n": len(own), "nll_enc": own["nll_enc"].mean()}
        | paired_bootstrap(own[QUALITY].to_numpy(), 2000, 0)
        for rung, own in rows.groupby("transform", sort=False)
    ]
    return DataFrame(means).sort_values("nll_enc", kind="stable")


def draw_losses(folder: Path, losses: DataFrame) -> None:
    """Training loss of every autoencoder, from loss.csv."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis, groups = figure.subplots(), list(losses.groupby(SETTING, sort=False))
    settings = [setting for setting, _ in groups]
    colour = colours(settings)
    for setting, own in groups:
        axis.plot(own["step"], own["loss"], lw=1, color=colour[setting], label=legend_label(setting, settings))
    axis.set(xlabel="step", ylabel="reconstruction loss, nats per token")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    save_figure(figure, folder / "loss.png")
