"""Figures of the input-entropy study, each with the CSV of its numbers. No entry point of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display
import numpy as np
from matplotlib import pyplot

from breviary.evaluation.statistics import paired_bootstrap
from breviary.studies.documents import AS_IS
from breviary.studies.statistics import line_with_band
from scripts.study_correlations import POOLED, SETTING, WITHIN, settings
from scripts.study_parts import read_csv, write_csv

# The quality that figures show: information gain is measured against what the decoder spent before training, so that a
# trained decoder's gain grows with that by construction.
SHOWN = "accuracy"
QUALITY = "token accuracy (teacher-forced)"
Row = dict[str, Any]


def title_of(setting: Sequence[Any]) -> str:
    """A setting in words."""
    pair, mode, rate, seed = setting
    return f"{pair.replace('>', ' → ')}, decoder {mode}, {rate:g}x, seed {seed:g}"


def entropy_figures(folder: Path, rows: Sequence[Row]) -> None:
    """scatter, correlations, ladder and loss: PNG and CSV each, in `folder`."""
    corr = read_csv(folder / "corr.csv")
    scatter(folder, rows, corr)
    forest(folder, corr)
    if any(row["transform"] != AS_IS for row in rows):
        ladder(folder, rows)
    curves(folder)


def save(figure: Any, file: Path) -> None:
    """Writes and closes."""
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


# ------------------------------------------------------------------ input entropy


def colours(keys: Sequence[tuple]) -> dict[tuple, str]:
    """{setting: colour}, the same for all seeds of a pair and a decoder's training."""
    kinds = list(dict.fromkeys(key[:3] for key in keys))
    return {key: f"C{kinds.index(key[:3])}" for key in keys}


def label(key: tuple, keys: Sequence[tuple]) -> str | None:
    """The setting without its seed, for the first seed's line; None for the others'."""
    return title_of(key).rpartition(", seed")[0] if key[3] == next(iter(keys))[3] else None


def scatter(folder: Path, rows: Sequence[Row], corr: Sequence[Row]) -> None:
    """Quality against entropy under encoder (left) and decoder (right), a row a setting of the first seed.

    The line is least squares, with its 95% band; rho is corr.csv's, over all domains.
    """
    first = {
        key: [row for row in own if row["transform"] == AS_IS]
        for key, own in settings(rows).items()
        if key[3] == rows[0]["seed"]
    }
    figure, axes = pyplot.subplots(
        len(first), 2, figsize=(9, 2.9 * len(first)), sharey="row", squeeze=False, layout="constrained"
    )
    points: list[Row] = []
    for line, (key, own) in zip(axes, first.items()):
        for axis, measure, side in zip(line, ("nll_enc", "nll_dec"), ("encoder", "decoder")):
            x, y = (np.array([row[name] for row in own]) for name in (measure, SHOWN))
            cloud(axis, x, y, [row["domain"] for row in own])
            [found] = [
                c
                for c in corr
                if tuple(c[k] for k in SETTING) == key
                and c["group"] == POOLED
                and (c["measure"], c["metric"]) == (measure, SHOWN)
            ]
            axis.set_title(f"{title_of(key)}: ρ = {found['rho']:+.2f}", fontsize=8)
            axis.set_xlabel(f"entropy under the {side} (NLL, bits a token)", fontsize=8)
            points += [
                {**dict(zip(SETTING, key)), "measure": measure, "domain": row["domain"], "x": a, "y": b}
                for row, a, b in zip(own, x, y)
            ]
        line[0].set_ylabel(QUALITY, fontsize=8)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), fontsize=8, markerscale=2, ncols=7, loc="outside lower center"
    )
    save(figure, folder / "scatter.png")
    write_csv(folder / "scatter.csv", points)


def cloud(axis: Any, x: np.ndarray, y: np.ndarray, domains: Sequence[str]) -> None:
    """Points coloured by domain, the line through all and its band; qualities are 0 or more."""
    for i, domain in enumerate(dict.fromkeys(domains)):
        chosen = np.array([own == domain for own in domains])
        axis.scatter(x[chosen], y[chosen], s=7, alpha=0.6, color=f"C{i}", label=domain, linewidths=0)
    at = np.linspace(x.min(), x.max(), 50)
    fitted, low, high = line_with_band(x, y, at)
    axis.plot(at, fitted, color="black", lw=1)
    axis.fill_between(at, low, high, color="black", alpha=0.15, linewidth=0)
    axis.set_ylim(-0.03, 1.03 * y.max() + 0.01)
    axis.tick_params(labelsize=7)


def forest(folder: Path, corr: Sequence[Row]) -> None:
    """rho of quality with both entropies, alone and beside the other, pooled and within domains; a line a setting."""
    kept = [
        c
        for c in corr
        if c["metric"] == SHOWN and c["measure"] in ("nll_enc", "nll_dec") and c["group"] in (POOLED, WITHIN)
    ]
    keys = sorted(dict.fromkeys(tuple(c[k] for k in SETTING) for c in kept), key=lambda key: (key[1], key[0], key[3]))
    kinds = [(group, partial) for group in (POOLED, WITHIN) for partial in (False, True)]
    figure, axes = pyplot.subplots(1, 4, figsize=(12, 1.6 + 0.34 * len(keys)), sharey=True, layout="constrained")
    drawn: list[Row] = []
    for axis, (group, partial) in zip(axes, kinds):
        names = ("partial", "partial_lo", "partial_hi") if partial else ("rho", "rho_lo", "rho_hi")
        for offset, measure, colour, side in ((-0.13, "nll_enc", "C0", "encoder"), (0.13, "nll_dec", "C3", "decoder")):
            own = [c for c in kept if (c["group"], c["measure"]) == (group, measure)]
            for c in own:
                value, low, high = (c[name] for name in names)
                drawn.append(
                    {
                        **{k: c[k] for k in SETTING},
                        "group": group,
                        "measure": measure,
                        "partial": partial,
                        "value": value,
                        "low": low,
                        "high": high,
                    }
                )
                place = keys.index(tuple(c[k] for k in SETTING)) + offset
                if value is not None:
                    axis.plot([low, high], [place, place], color=colour, lw=1.5)
                    axis.plot(value, place, "o", color=colour, ms=4, label=side if c is own[0] else None)
        axis.axvspan(-0.1, 0.1, color="grey", alpha=0.2, linewidth=0)
        axis.axvline(0, color="grey", lw=0.8)
        axis.set(title=f"{group}{', beside the other' if partial else ''}", xlabel=f"ρ with {SHOWN}", xlim=(-1, 1))
        axis.title.set_size(9)
    axes[0].set_yticks(range(len(keys)), [title_of(key) for key in keys], fontsize=7)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7, loc="upper right")
    save(figure, folder / "correlations.png")
    write_csv(folder / "correlations.csv", drawn)


def ladder(folder: Path, rows: Sequence[Row]) -> None:
    """Mean entropy under the encoder and mean quality on each rung, over the same documents; 95% bootstrap."""
    figure, axis = pyplot.subplots(figsize=(7.5, 5), layout="constrained")
    own, drawn = settings(rows), []
    colour = colours(list(own))
    for key, items in own.items():
        means = rung_means(key, items)
        drawn += means
        x = [row["nll_enc"] for row in means]
        values = np.array([[row[name] for row in means] for name in ("value", "low", "high")])
        axis.errorbar(
            x,
            values[0],
            np.abs(values[1:] - values[0]),
            marker="o",
            ms=3,
            lw=1,
            color=colour[key],
            label=label(key, own),
            alpha=0.8,
        )
        if key == next(iter(own)):
            for row, place in zip(means, itertools.cycle((6, -12))):
                axis.annotate(
                    row["transform"],
                    (row["nll_enc"], row["value"]),
                    fontsize=7,
                    xytext=(3, place),
                    textcoords="offset points",
                )
    axis.set(xlabel="entropy under the encoder (NLL, bits a token)", ylabel=QUALITY)
    axis.legend(fontsize=7)
    save(figure, folder / "ladder.png")
    write_csv(folder / "ladder.csv", drawn)


def rung_means(key: tuple, rows: Sequence[Row]) -> list[Row]:
    """A row a rung of one setting, by rising entropy; unchanged documents only where they were changed as well."""
    origins = {row["doc_id"].rpartition("#")[0] for row in rows if row["transform"] != AS_IS}
    means = []
    for rung in dict.fromkeys(row["transform"] for row in rows):
        here = [row for row in rows if row["transform"] == rung and (rung != AS_IS or row["doc_id"] in origins)]
        means.append(
            {
                **dict(zip(SETTING, key)),
                "transform": rung,
                "n": len(here),
                "nll_enc": float(np.mean([row["nll_enc"] for row in here])),
                **paired_bootstrap(np.array([row[SHOWN] for row in here]), 2000, 0),
            }
        )
    return sorted(means, key=lambda row: row["nll_enc"])


def curves(folder: Path) -> None:
    """Training loss of every autoencoder, from loss.csv."""
    rows = read_csv(folder / "loss.csv")
    figure, axis = pyplot.subplots(figsize=(6.5, 4), layout="constrained")
    keys = list(dict.fromkeys(tuple(row[k] for k in SETTING) for row in rows))
    colour = colours(keys)
    for key in keys:
        own = [row for row in rows if tuple(row[k] for k in SETTING) == key]
        axis.plot(
            [row["step"] for row in own], [row["loss"] for row in own], lw=1, color=colour[key], label=label(key, keys)
        )
    axis.set(xlabel="step", ylabel="reconstruction loss, nats a token")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    save(figure, folder / "loss.png")
