"""Tables of the data-gap study: gap.csv, gap_regression.csv, asymmetry.csv and mitigation.csv.

Mixes are named D1 (prose alone) to D6 (five sixths formal text); RANDOM is a model trained on random tokens.
"""

from __future__ import annotations

from typing import Any

from pandas import DataFrame, Series

from breviary.evaluation.statistics import holm_correction
from breviary.studies.autoencoders import QUALITIES
from breviary.studies.statistics import NAN, pearson, spearman, standardised_regression
from breviary.studies.tables import mean_by_document, paired_difference

RANDOM = "random"
GAPS = ["mix_distance", "kl", "nll", "cka"]
CELL = ["seed", "encoder", "decoder", "mitigation"]
PARTS = ("all", "prose", "formal")
METRICS = ["gain", "accuracy", "normalised_gain", "bleu"]  # qualities of all tables but gap.csv
Row = dict[str, Any]


def mix_name(share: int | str) -> str:
    """The name of the mix with `share` sixths of formal text, e.g. D6 for 5; RANDOM stays."""
    return share if isinstance(share, str) else f"D{share + 1}"


def rows_of_part(rows: DataFrame, part: str) -> DataFrame:
    """The rows of one part of the documents: all, prose or formal."""
    return rows if part == "all" else rows[rows["part"] == part]


def cell_table(rows: DataFrame, gaps: DataFrame) -> DataFrame:
    """gap.csv: one row per cell and part of the documents: mean qualities, the gaps between the models, and delta_*.

    delta_* is the quality of the matched pair (the decoder with itself, same seed) minus the cell's; nan where there is
    no matched pair.
    """
    means = []
    for cell, own in rows.groupby(CELL, sort=False):
        for part in ("all", *own["part"].unique()):
            chosen = rows_of_part(own, part)
            shared = {**dict(zip(CELL, cell)), "part": part, "n": len(chosen)}
            means.append({**shared, **dict(zip(QUALITIES, chosen[list(QUALITIES)].to_numpy().mean(0)))})
    table = DataFrame(means).merge(gaps, how="left", on=CELL, validate="many_to_one")
    is_matched = (table["encoder"] == table["decoder"]) & (table["mitigation"] == "none")
    key = ["seed", "decoder", "part"]
    matched = table[is_matched][[*key, *METRICS]]
    matched = table[key].merge(matched, how="left", on=key, validate="many_to_one")
    return table.assign(**{f"delta_{name}": matched[name] - table[name] for name in METRICS})


def unmatched_cells(table: DataFrame) -> DataFrame:
    """Cells of different mixes without mitigation. The random control has no matched pair and is left out."""
    return table[
        (table["mitigation"] == "none") & (table["encoder"] != table["decoder"]) & (table["decoder"] != RANDOM)
    ]


def gap_regressions(table: DataFrame) -> DataFrame:
    """gap_regression.csv: correlation and standardised slope of delta_* on each gap, over unmatched cells of all seeds.

    p_holm is corrected over the gaps. Cells share models, so the intervals are too narrow.
    """
    regressions: list[Row] = []
    for part in PARTS:
        cells = unmatched_cells(table[table["part"] == part])
        for metric in METRICS:
            family = [gap_regression(cells, part, metric, gap) for gap in GAPS]
            corrected = holm_correction([row["p_rho"] for row in family])
            regressions += [row | {"p_holm": p} for row, p in zip(family, corrected)]
    return DataFrame(regressions)


def gap_regression(cells: DataFrame, part: str, metric: str, gap: str) -> Row:
    """One row of gap_regression.csv; p_holm is nan."""
    x, y = cells[gap].to_numpy(), cells[f"delta_{metric}"].to_numpy()
    rho, p = spearman(x, y)
    slope = standardised_regression(y, {"x": x})["x"]
    return {
        "part": part,
        "metric": metric,
        "gap": gap,
        "n": len(cells),
        **pearson(x, y),
        "rho": rho,
        "p_rho": p,
        "p_holm": NAN,
        "beta": slope["beta"],
        "beta_lo": slope["low"],
        "beta_hi": slope["high"],
    }


def cell_means(rows: DataFrame, metric: str, part: str, encoder: str, decoder: str, mitigation: str = "none") -> Series:
    """The metric's mean over seeds of each document of one cell, indexed by doc_id."""
    is_cell = (rows["encoder"] == encoder) & (rows["decoder"] == decoder) & (rows["mitigation"] == mitigation)
    return mean_by_document(rows_of_part(rows[is_cell], part), metric)


def asymmetries(rows: DataFrame, resamples: int) -> DataFrame:
    """asymmetry.csv: quality lost against the first mix's matched pair by swapping the decoder, or the encoder, for
    another mix, and the difference (positive: swapping the decoder costs more).

    Paired over documents; means over seeds.
    """
    mixes = sorted(set(rows["decoder"]) - {RANDOM})
    first, table = mixes[0], []
    for part in PARTS:
        for metric in METRICS:
            matched = cell_means(rows, metric, part, first, first)
            for mix in mixes[1:]:
                decoder = cell_means(rows, metric, part, first, mix)
                encoder = cell_means(rows, metric, part, mix, first)
                for what, pair in (
                    ("decoder swapped", (matched, decoder)),
                    ("encoder swapped", (matched, encoder)),
                    ("difference", (encoder, decoder)),
                ):
                    shared = {"part": part, "metric": metric, "mix": mix, "what": what}
                    table.append(shared | paired_difference(*pair, resamples))
    return DataFrame(table)


def mitigation_effects(rows: DataFrame, resamples: int) -> DataFrame:
    """mitigation.csv: quality that each mitigation adds to its pair.

    matched_*: quality of the decoder's matched pair minus that of the pair without mitigation.
    """
    pairs = rows.loc[rows["mitigation"] != "none", ["encoder", "decoder", "mitigation"]].drop_duplicates()
    pairs, table = sorted(pairs.itertuples(index=False, name=None)), []
    for part in PARTS:
        for metric in METRICS:
            for encoder, decoder, mitigation in pairs:
                before = cell_means(rows, metric, part, encoder, decoder)
                after = cell_means(rows, metric, part, encoder, decoder, mitigation)
                matched = cell_means(rows, metric, part, decoder, decoder)
                added, lost = (paired_difference(one, before, resamples) for one in (after, matched))
                table.append(
                    {
                        "part": part,
                        "metric": metric,
                        "pair": f"{encoder}>{decoder}",
                        "mitigation": mitigation,
                        **added,
                        "matched_minus_unmended": lost["value"],
                        "matched_lo": lost["low"],
                        "matched_hi": lost["high"],
                    }
                )
    return DataFrame(table)
