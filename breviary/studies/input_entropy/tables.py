"""Tables of the input-entropy study from its rows per document: means.csv, corr.csv and regression.csv."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray
from pandas import DataFrame, Series

from breviary.evaluation.statistics import holm_correction
from breviary.studies.documents import AS_IS
from breviary.studies.statistics import (
    NAN,
    bootstrap_spearman,
    equivalence_p,
    indicators,
    partial_correlation,
    pearson,
    spearman,
    standardised_regression,
    williams_test,
)
from breviary.studies.tables import mean_columns

SETTING = ["pair", "dec_mode", "rate", "seed"]
# Measures correlated with quality, and the measure that their partial correlation controls for.
CONTROL = {
    "nll_enc": "nll_dec",
    "nll_dec": "nll_enc",
    "h_enc": "h_dec",
    "h_dec": "h_enc",
    "nll_ref": None,
    "unigram_entropy": None,
    "zlib_ratio": None,
}
METRICS = ("neg_ce", "gain", "normalised_gain", "accuracy", "prefix_em", "bleu", "rouge_l")
MEAN_ONLY = (
    "nll_enc",
    "nll_dec",
    "nll_ref",
    "bpb_enc",
    "bpb_dec",
    "bpb_ref",
    "bytes",
    "ce",
    "ce_unconditional",
    "end_rate",
)
MEAN_WITH_INTERVAL = (*METRICS[1:], "edit_similarity", "free_accuracy")
POOLED, WITHIN, LADDER = "pooled", "within domains", "ladder"
Row = dict[str, Any]


def origins_of(transformed: DataFrame) -> Series:
    """The doc_id of the unchanged document that each transformed document comes from."""
    return transformed["doc_id"].str.rpartition("#")[0]


def groups(rows: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """Groups of one setting's rows: all unchanged documents, each domain, the ladder with its origins."""
    unchanged = rows[rows["transform"] == AS_IS]
    yield POOLED, unchanged
    yield from unchanged.groupby("domain", sort=False)
    transformed = rows[rows["transform"] != AS_IS]
    if len(transformed):
        origins = unchanged[unchanged["doc_id"].isin(origins_of(transformed))]
        yield LADDER, pd.concat([transformed, origins])


def group_means(rows: DataFrame, resamples: int) -> DataFrame:
    """means.csv: means of entropies and qualities for each setting and domain; *_lo, *_hi: the qualities' 95% bootstrap
    interval over documents."""
    columns = [name for name in MEAN_ONLY if name in rows]
    table: list[Row] = []
    for setting, own in rows.groupby(SETTING, sort=False):
        for name, group in groups(own):
            if name == LADDER:
                continue
            row = {**dict(zip(SETTING, setting)), "group": name, "n": len(group), **group[columns].mean().to_dict()}
            for metric in MEAN_WITH_INTERVAL:
                row |= mean_columns(group[metric], metric, resamples)
            table.append(row)
    return DataFrame(table)


def correlations(rows: DataFrame, resamples: int, bound: float) -> DataFrame:
    """corr.csv: one row per setting, group, measure and metric.

    r                    Pearson's, with Fisher-z interval
    rho, rho_lo, rho_hi  Spearman's, with bootstrap interval over documents; rho_*_source: over sources
    p, p_holm            of rho; p_holm is corrected over the measures and metrics of a setting's group
    partial              rho given the other side's measure
    p_equal              small where |rho| < bound (two one-sided tests)
    Group 'within domains' holds correlations given domain effects.
    Raises: ValueError where encoder and decoder are one model.
    """
    table: list[Row] = []
    for setting, own in rows.groupby(SETTING, sort=False):
        if (own["nll_enc"] == own["nll_dec"]).all():
            raise ValueError(
                f"{', '.join(map(str, setting))}: every document has the same entropy under encoder and decoder, which "
                "are one model, so the two sides cannot be compared; give two models of different training"
            )
        for name, group in groups(own):
            columns, domains = columns_of(group), group["domain"].to_numpy()
            sources = (group["domain"] + "/" + group["source"]).to_numpy()
            shared = {**dict(zip(SETTING, setting)), "group": name, "n": len(group)}
            table += holm_corrected([shared | row for row in pooled_rows(columns, sources, resamples, bound)])
            if name == POOLED and len(set(domains)) > 1:
                shared["group"] = WITHIN
                table += holm_corrected([shared | row for row in within_rows(columns, indicators(domains), bound)])
    return DataFrame(table)


def columns_of(rows: DataFrame) -> dict[str, ndarray]:
    """Measures and metrics as arrays; measures that were not taken are left out."""
    return {name: rows[name].to_numpy(dtype=float) for name in (*CONTROL, *METRICS) if name in rows}


def holm_corrected(rows: list[Row]) -> list[Row]:
    """The rows with p_holm, Holm's correction over all of them."""
    return [row | {"p_holm": p} for row, p in zip(rows, holm_correction([row["p"] for row in rows]))]


def pooled_rows(columns: dict[str, ndarray], sources: ndarray, resamples: int, bound: float) -> Iterator[Row]:
    """Rows of one group without domain effects."""
    pairs = [(measure, metric) for measure in CONTROL for metric in METRICS if measure in columns]
    by_document = bootstrap_spearman(columns, pairs, resamples, 0)
    by_source = bootstrap_spearman(columns, pairs, resamples, 0, sources)
    for measure, metric in pairs:
        x, y = columns[measure], columns[metric]
        rho, p = spearman(x, y)
        interval = by_document[measure, metric]
        control = CONTROL[measure]
        partial = partial_correlation(x, y, columns[control]) if control else None
        p_equal = equivalence_p(rho, len(x), bound)
        yield correlation_row(
            measure, metric, pearson(x, y), (rho, *interval), by_source[measure, metric], p, partial, p_equal
        )


def within_rows(columns: dict[str, ndarray], effects: ndarray, bound: float) -> Iterator[Row]:
    """Rows of all domains together, given domain effects (N, G - 1)."""
    for measure in (measure for measure in CONTROL if measure in columns):
        for metric in METRICS:
            x, y = columns[measure], columns[metric]
            values, ranks = (partial_correlation(x, y, effects, ranks) for ranks in (False, True))
            control = CONTROL[measure]
            partial = partial_correlation(x, y, np.column_stack([effects, columns[control]])) if control else None
            r = {"r": values["value"], "r_lo": values["low"], "r_hi": values["high"]}
            rho = ranks["value"], ranks["low"], ranks["high"]
            p_equal = equivalence_p(ranks["value"], len(x), bound, effects.shape[1])
            yield correlation_row(measure, metric, r, rho, (NAN, NAN), ranks["p"], partial, p_equal)


def correlation_row(
    measure: str,
    metric: str,
    r: dict[str, float],
    rho: tuple[float, float, float],
    by_source: tuple[float, float],
    p: float,
    partial: dict[str, float] | None,
    p_equal: float,
) -> Row:
    """The columns of one measure and metric, in the order of corr.csv."""
    partial = partial or dict.fromkeys(("value", "low", "high", "p"), NAN)
    return {
        "measure": measure,
        "metric": metric,
        **{key: r[key] for key in ("r", "r_lo", "r_hi")},
        **dict(zip(("rho", "rho_lo", "rho_hi"), rho)),
        **dict(zip(("rho_lo_source", "rho_hi_source"), by_source)),
        "p": p,
        "p_holm": NAN,
        "partial": partial["value"],
        "partial_lo": partial["low"],
        "partial_hi": partial["high"],
        "partial_p": partial["p"],
        "p_equal": p_equal,
    }


def regressions(rows: DataFrame) -> DataFrame:
    """regression.csv: each metric on standardised nll_enc, nll_dec and domain effects, over unchanged documents.

    williams_*: Williams' test that the metric's Pearson correlations with nll_enc and nll_dec differ, domains pooled.
    """
    table: list[Row] = []
    for setting, own in rows[rows["transform"] == AS_IS].groupby(SETTING, sort=False):
        columns, domains = columns_of(own), own["domain"].to_numpy()
        enc, dec = columns["nll_enc"], columns["nll_dec"]
        between = pearson(enc, dec)["r"]
        for metric in METRICS:
            y = columns[metric]
            fitted = standardised_regression(y, {"enc": enc, "dec": dec}, domains)
            t, p = williams_test(pearson(enc, y)["r"], pearson(dec, y)["r"], between, len(own))
            table.append(
                {
                    **dict(zip(SETTING, setting)),
                    "metric": metric,
                    "n": len(own),
                    **{f"{key}_{side}": value for side, values in fitted.items() for key, value in values.items()},
                    "r_between": between,
                    "williams_t": t,
                    "williams_p": p,
                }
            )
    return DataFrame(table)
