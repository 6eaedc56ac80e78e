"""Tables and figures of the data-gap study. No entry point of its own; see study_data_gap.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display
import numpy as np
from matplotlib import pyplot

from breviary.evaluation.statistics import paired_bootstrap
from breviary.studies.statistics import holm, pearson, regression, spearman
from scripts.study_parts import QUALITIES, mean_by_document, write_csv

RANDOM = "random"
GAPS = ("mix_distance", "kl", "nll", "cka")
CELL = ("seed", "encoder", "decoder", "mitigation")
PARTS = ("all", "prose", "formal")
TOLD = ("gain", "accuracy", "normalised_gain", "bleu")  # qualities of the small tables
SHOWN = {
    "accuracy": "token accuracy",
    "gain": "information gain, nats a token",
}  # gain: the paper's; it depends on where
# the decoder began as well, so decoders should be compared by accuracy
Row = dict[str, Any]


def mix(share: int | str) -> str:
    """A mix's name: D1 = prose alone, D6 = five sixths formal; random."""
    return share if share == RANDOM else f"D{share + 1}"


def cell_table(rows: Sequence[Row], gaps: Sequence[Row]) -> list[Row]:
    """gap.csv: a row for each cell and part of the documents: means of every quality, the models' gaps, and delta_*:
    the matched pair's (decoder with itself, same seed) minus the cell's; empty where there is no matched pair."""
    told = {tuple(row[key] for key in CELL): row for row in gaps}
    means = {}
    for row in rows:
        for part in ("all", row["part"]):
            means.setdefault((*(row[key] for key in CELL), part), []).append([row[name] for name in QUALITIES])
    means = {key: (len(values), dict(zip(QUALITIES, np.mean(values, 0).tolist()))) for key, values in means.items()}
    found = []
    for (seed, encoder, decoder, mitigation, part), (n, own) in means.items():
        _, matched = means.get((seed, decoder, decoder, "none", part), (0, dict.fromkeys(QUALITIES, float("nan"))))
        gap = told[seed, encoder, decoder, mitigation]
        found.append(
            {
                **dict(zip(CELL, (seed, encoder, decoder, mitigation))),
                "part": part,
                "n": n,
                **own,
                **{name: gap[name] if gap[name] is not None else float("nan") for name in GAPS},
                **{f"delta_{name}": matched[name] - own[name] for name in TOLD},
            }
        )
    return found


def small_tables(rows: Sequence[Row], table: Sequence[Row], resamples: int) -> dict[str, list[Row]]:
    """gap_regression: loss of quality on each gap; asymmetry: which side's swap costs more; mitigation: what mends."""
    return {
        "gap_regression": list(gap_regressions(table)),
        "asymmetry": list(asymmetries(rows, resamples)),
        "mitigation": list(mitigations(rows, resamples)),
    }


def gap_regressions(table: Sequence[Row]) -> Iterator[Row]:
    """Correlation and standardised slope of delta_* on each gap, over unmatched cells of all seeds; Holm over the gaps.

    Cells share models, so that intervals are too narrow; the random control has no matched pair and is left out.
    """
    for part in PARTS:
        cells = [
            row
            for row in table
            if row["part"] == part
            and row["mitigation"] == "none"
            and row["encoder"] != row["decoder"]
            and row["decoder"] != RANDOM
        ]
        for name in TOLD:
            y = np.array([row[f"delta_{name}"] for row in cells])
            found = []
            for gap in GAPS:
                x = np.array([row[gap] for row in cells])
                rho, p = spearman(x, y)
                slope = regression(y, {"x": x})["x"]
                found.append(
                    {
                        "part": part,
                        "metric": name,
                        "gap": gap,
                        "n": len(cells),
                        **pearson(x, y),
                        "rho": rho,
                        "p_rho": p,
                        "p_holm": np.nan,
                        "beta": slope["beta"],
                        "beta_lo": slope["low"],
                        "beta_hi": slope["high"],
                    }
                )
            for row, corrected in zip(found, holm([row["p_rho"] for row in found])):
                yield {**row, "p_holm": corrected}


def by_document(rows: Sequence[Row], metric: str, part: str, **cell: str) -> dict[str, float]:
    """{doc_id: the metric's mean over seeds} of one cell."""
    return mean_by_document(
        [row for row in rows if part in ("all", row["part"]) and all(row[key] == value for key, value in cell.items())],
        metric,
    )


def compared(one: dict[str, float], other: dict[str, float], resamples: int) -> dict[str, float]:
    """Mean paired difference one - other over documents, with its bootstrap interval, and n."""
    shared = sorted(set(one) & set(other))
    return {"n": len(shared), **paired_bootstrap(np.array([one[doc] - other[doc] for doc in shared]), resamples, 0)}


def asymmetries(rows: Sequence[Row], resamples: int) -> Iterator[Row]:
    """For each mix Dj: quality lost against the first mix's matched pair by swapping the decoder, by swapping the
    encoder, and the difference (positive: the decoder's costs more). Paired over documents, means over seeds."""
    mixes = sorted({row["decoder"] for row in rows} - {RANDOM})
    first = mixes[0]
    for part in PARTS:
        for metric in TOLD:
            matched = by_document(rows, metric, part, encoder=first, decoder=first, mitigation="none")
            for other in mixes[1:]:
                decoder = by_document(rows, metric, part, encoder=first, decoder=other, mitigation="none")
                encoder = by_document(rows, metric, part, encoder=other, decoder=first, mitigation="none")
                for what, pair in (
                    ("decoder swapped", (matched, decoder)),
                    ("encoder swapped", (matched, encoder)),
                    ("difference", (encoder, decoder)),
                ):
                    yield {"part": part, "metric": metric, "mix": other, "what": what, **compared(*pair, resamples)}


def mitigations(rows: Sequence[Row], resamples: int) -> Iterator[Row]:
    """What each mitigation changes for the pair, and what the decoder's matched pair has beyond the unmended one."""
    mended = sorted(
        {(row["encoder"], row["decoder"], row["mitigation"]) for row in rows}
        - {(row["encoder"], row["decoder"], "none") for row in rows}
    )
    for part in PARTS:
        for metric in TOLD:
            for encoder, decoder, name in mended:
                before = by_document(rows, metric, part, encoder=encoder, decoder=decoder, mitigation="none")
                after = by_document(rows, metric, part, encoder=encoder, decoder=decoder, mitigation=name)
                matched = by_document(rows, metric, part, encoder=decoder, decoder=decoder, mitigation="none")
                lost = compared(matched, before, resamples)
                yield {
                    "part": part,
                    "metric": metric,
                    "pair": f"{encoder}>{decoder}",
                    "mitigation": name,
                    **compared(after, before, resamples),
                    "matched_minus_unmended": lost["value"],
                    "matched_lo": lost["low"],
                    "matched_hi": lost["high"],
                }


# ------------------------------------------------------------------ figures


def gap_figures(folder: Path, table: Sequence[Row]) -> None:
    """heatmap, swaps and gaps, PNG and CSV; means over seeds, all documents."""
    plain = [row for row in table if row["part"] == "all" and row["mitigation"] == "none"]
    heat_map(folder, plain)
    swaps(folder, plain)
    scatter(folder, [row for row in plain if row["encoder"] != row["decoder"] and row["decoder"] != RANDOM])


def of_seeds(rows: Sequence[Row], encoder: str, decoder: str, quality: str) -> list[float]:
    """A cell's quality, one value a seed."""
    return [row[quality] for row in rows if (row["encoder"], row["decoder"]) == (encoder, decoder)]


def heat_map(folder: Path, rows: Sequence[Row]) -> None:
    """Encoder mix by decoder mix, a map a quality; cells that were not run stay white."""
    encoders = sorted({row["encoder"] for row in rows})
    decoders = sorted({row["decoder"] for row in rows}, key=lambda name: (name == RANDOM, name))
    size = len(SHOWN) * (1.3 + 0.65 * len(decoders)), 1.3 + 0.5 * len(encoders)
    figure, axes = pyplot.subplots(1, len(SHOWN), figsize=size, layout="constrained")
    grids = {}
    for axis, (quality, told) in zip(axes, SHOWN.items()):
        grid = np.array([[np.mean(of_seeds(rows, e, d, quality) or [np.nan]) for d in decoders] for e in encoders])
        grids[quality] = grid
        shown = axis.imshow(grid, cmap="viridis")
        middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
        for (i, j), value in np.ndenumerate(grid):
            if not np.isnan(value):
                axis.text(
                    j,
                    i,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value < middle else "black",
                )
        axis.set_xticks(range(len(decoders)), decoders)
        axis.set_yticks(range(len(encoders)), encoders)
        axis.set(xlabel="decoder trained on (D1: prose)", ylabel="encoder trained on", title=told)
        axis.title.set_size(9)
        figure.colorbar(shown)
    figure.savefig(folder / "heatmap.png", dpi=110)
    pyplot.close(figure)
    write_csv(
        folder / "heatmap.csv",
        [
            {"encoder": e, "decoder": d, **{name: float(grid[i, j]) for name, grid in grids.items()}}
            for i, e in enumerate(encoders)
            for j, d in enumerate(decoders)
            if not np.isnan(grids["gain"][i, j])
        ],
    )


def swaps(folder: Path, rows: Sequence[Row]) -> None:
    """Qualities along the mixes: decoder varied, encoder varied, both; a dot a seed, lines through the means."""
    mixes = sorted({row["encoder"] for row in rows})
    kinds = {
        f"decoder varied, encoder {mixes[0]}": lambda m: (mixes[0], m),
        f"encoder varied, decoder {mixes[0]}": lambda m: (m, mixes[0]),
        "both (matched)": lambda m: (m, m),
    }
    figure, axes = pyplot.subplots(1, len(SHOWN), figsize=(10, 3.8), layout="constrained")
    for axis, (quality, told) in zip(axes, SHOWN.items()):
        for colour, (kind, cell) in enumerate(kinds.items()):
            values = [of_seeds(rows, *cell(m), quality) for m in mixes]
            axis.plot(range(len(mixes)), [np.mean(v) for v in values], color=f"C{colour}", label=kind)
            for x, own in enumerate(values):
                axis.plot([x] * len(own), own, ".", color=f"C{colour}", alpha=0.6)
        axis.set_xticks(range(len(mixes)), mixes)
        axis.set(xlabel="mix (more formal text to the right)", ylabel=told)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(folder / "swaps.png", dpi=110)
    pyplot.close(figure)
    write_csv(
        folder / "swaps.csv",
        [
            {"kind": kind, "mix": m, "seed": row["seed"], **{name: row[name] for name in SHOWN}}
            for kind, cell in kinds.items()
            for m in mixes
            for row in rows
            if (row["encoder"], row["decoder"]) == cell(m)
        ],
    )


def scatter(folder: Path, rows: Sequence[Row]) -> None:
    """Quality lost against the matched pair, by each of the four gaps; a dot a cell and seed."""
    titles = {
        "mix_distance": "distance of mixes",
        "kl": "symmetric KL, nats",
        "nll": "|NLL difference|, nats a token",
        "cka": "1 - CKA",
    }
    figure, axes = pyplot.subplots(len(SHOWN), 4, figsize=(12, 2.9 * len(SHOWN)), sharey="row", layout="constrained")
    first = np.array([row["encoder"] == "D1" for row in rows])
    for line, (quality, told) in zip(axes, SHOWN.items()):
        for axis, gap in zip(line, GAPS):
            x, y = (np.array([row[key] for row in rows]) for key in (gap, f"delta_{quality}"))
            for colour, (label, chosen) in enumerate({"encoder D1": first, "other encoder": ~first}.items()):
                axis.plot(x[chosen], y[chosen], ".", color=f"C{colour}", label=label)
            axis.axhline(0, color="grey", lw=0.8)
            rho = spearman(x, y)[0]
            axis.set(
                xlabel=titles[gap], title=f"ρ = {rho:+.2f}" if np.isfinite(rho) else ""
            )  # two mixes have one distance
        line[0].set_ylabel(f"lost against the matched pair:\n{told}", fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.savefig(folder / "gaps.png", dpi=110)
    pyplot.close(figure)
    write_csv(
        folder / "gaps.csv",
        [
            {key: row[key] for key in ("seed", "encoder", "decoder", *GAPS, *(f"delta_{name}" for name in SHOWN))}
            for row in rows
        ],
    )
