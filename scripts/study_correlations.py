"""Tables of the input-entropy study, made of per_doc rows: means.csv, corr.csv and regression.csv.

No entry point of its own; see study_input_entropy.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from breviary.evaluation.statistics import paired_bootstrap
from breviary.studies.documents import AS_IS
from breviary.studies.statistics import (
    dummies,
    equivalence,
    holm,
    partial,
    pearson,
    regression,
    resampled_spearman,
    spearman,
    williams,
)

SETTING = ("pair", "dec_mode", "rate", "seed")
# What is correlated with quality, and beside which other one its partial correlation is taken.
BESIDE = {
    "nll_enc": "nll_dec",
    "nll_dec": "nll_enc",
    "h_enc": "h_dec",
    "h_dec": "h_enc",
    "nll_ref": None,
    "unigram_entropy": None,
    "zlib_ratio": None,
}
METRICS = ("neg_ce", "gain", "normalised_gain", "accuracy", "prefix_em", "bleu", "rouge_l")
MEASURED = (
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
POOLED, WITHIN, LADDER = "pooled", "within domains", "ladder"
Row = dict[str, Any]


def settings(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """{(pair, dec_mode, rate, seed): its rows}, in the order of the rows."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in SETTING), []).append(row)
    return found


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Groups of one setting's documents: all as they are, each domain, the ladder (with the documents it's made of)."""
    plain = [row for row in rows if row["transform"] == AS_IS]
    yield POOLED, plain
    for domain in dict.fromkeys(row["domain"] for row in plain):
        yield domain, [row for row in plain if row["domain"] == domain]
    changed = [row for row in rows if row["transform"] != AS_IS]
    origins = {row["doc_id"].rpartition("#")[0] for row in changed}
    if changed:
        yield LADDER, changed + [row for row in plain if row["doc_id"] in origins]


def means(rows: Sequence[Row], resamples: int) -> list[Row]:
    """means.csv: for each setting, and each domain in it, the means of entropies and qualities; *_lo, *_hi: the
    qualities' 95% bootstrap interval over documents."""
    found: list[Row] = []
    for setting, own in settings(rows).items():
        for name, group in groups(own):
            if name == LADDER:
                continue
            row = {**dict(zip(SETTING, setting)), "group": name, "n": len(group)}
            row |= {key: float(np.mean([r[key] for r in group])) for key in MEASURED if key in group[0]}
            for metric in (*METRICS[1:], "edit_similarity", "free_accuracy"):
                about = paired_bootstrap(np.array([r[metric] for r in group]), resamples, 0)
                row |= {metric: about["value"], f"{metric}_lo": about["low"], f"{metric}_hi": about["high"]}
            found.append(row)
    return found


def columns_of(rows: Sequence[Row]) -> dict[str, ndarray]:
    """Measures and metrics as columns; measures that were not taken are left out."""
    names = [name for name in (*BESIDE, *METRICS) if name in rows[0]]
    return {name: np.array([row[name] for row in rows], dtype=float) for name in names}


def correlations(rows: Sequence[Row], resamples: int, bound: float) -> list[Row]:
    """corr.csv: a row for each setting, group, measure and metric.

    r with Fisher-z interval, rho with bootstrap interval over documents and over sources (rho_*_source), their p;
    p_holm over the measures and metrics of a setting's group; partial: rho beside the other side's measure; p_equal:
    small where rho is within +-bound for sure (two one-sided tests). Group 'within domains' takes domain effects out of
    both first.
    Raises ValueError where encoder and decoder are one model.
    """
    found: list[Row] = []
    for setting, own in settings(rows).items():
        if all(row["nll_enc"] == row["nll_dec"] for row in own):
            raise ValueError(
                f"{setting[0]}: every document has the same entropy under encoder and decoder, which are "
                "one model: what belongs to one side cannot be told from the other; give two models of "
                "different training"
            )
        for name, group in groups(own):
            columns, domains = columns_of(group), np.array([row["domain"] for row in group])
            sources = np.array([f"{row['domain']}/{row['source']}" for row in group])
            shared = {**dict(zip(SETTING, setting)), "group": name, "n": len(group)}
            found += family([{**shared, **row} for row in marginal(columns, sources, resamples, bound)])
            if name == POOLED and len(set(domains)) > 1:
                shared["group"] = WITHIN
                found += family([{**shared, **row} for row in within(columns, dummies(domains), bound)])
    return found


def family(rows: list[Row]) -> list[Row]:
    """The rows with Holm's correction over all of them."""
    for row, corrected in zip(rows, holm([row["p"] for row in rows])):
        row["p_holm"] = corrected
    return rows


def marginal(columns: dict[str, ndarray], sources: ndarray, resamples: int, bound: float) -> Iterator[Row]:
    """Rows of one group, domains not looked at."""
    pairs = [(measure, metric) for measure in BESIDE for metric in METRICS if measure in columns]
    documents, n = resampled_spearman(columns, pairs, resamples, 0), len(sources)
    by_source = resampled_spearman(columns, pairs, resamples, 0, sources)
    for measure, metric in pairs:
        x, y = columns[measure], columns[metric]
        straight, (rho, p) = pearson(x, y), spearman(x, y)
        beside = BESIDE[measure]
        left = partial(x, y, columns[beside]) if beside else None
        yield row_of(
            measure,
            metric,
            straight,
            (rho, *documents[measure, metric]),
            by_source[measure, metric],
            p,
            left,
            equivalence(rho, n, bound),
        )


def within(columns: dict[str, ndarray], effects: ndarray, bound: float) -> Iterator[Row]:
    """Rows of all domains together, domain effects taken out."""
    n = len(effects)
    for measure in (measure for measure in BESIDE if measure in columns):
        for metric in METRICS:
            x, y = columns[measure], columns[metric]
            straight, ranked = partial(x, y, effects, ranks=False), partial(x, y, effects)
            beside = BESIDE[measure]
            left = partial(x, y, np.column_stack([effects, columns[beside]])) if beside else None
            straight = {"r": straight["value"], "r_lo": straight["low"], "r_hi": straight["high"]}
            yield row_of(
                measure,
                metric,
                straight,
                (ranked["value"], ranked["low"], ranked["high"]),
                (np.nan, np.nan),
                ranked["p"],
                left,
                equivalence(ranked["value"], n, bound, effects.shape[1]),
            )


def row_of(
    measure: str,
    metric: str,
    straight: dict[str, float],
    rho: tuple[float, float, float],
    by_source: tuple[float, float],
    p: float,
    left: dict[str, float] | None,
    p_equal: float,
) -> Row:
    """One row's own columns."""
    left = left or dict.fromkeys(("value", "low", "high", "p"), float("nan"))
    return {
        "measure": measure,
        "metric": metric,
        **{key: straight[key] for key in ("r", "r_lo", "r_hi")},
        "rho": rho[0],
        "rho_lo": rho[1],
        "rho_hi": rho[2],
        "rho_lo_source": by_source[0],
        "rho_hi_source": by_source[1],
        "p": p,
        "p_holm": np.nan,
        "partial": left["value"],
        "partial_lo": left["low"],
        "partial_hi": left["high"],
        "partial_p": left["p"],
        "p_equal": p_equal,
    }


def regressions(rows: Sequence[Row]) -> list[Row]:
    """regression.csv: metric on z(nll_enc), z(nll_dec) and domain effects, and Williams' test that the two correlations
    of a metric differ (of values, domains pooled)."""
    found: list[Row] = []
    for setting, own in settings(rows).items():
        plain = [row for row in own if row["transform"] == AS_IS]
        columns, domains = columns_of(plain), np.array([row["domain"] for row in plain])
        enc, dec = columns["nll_enc"], columns["nll_dec"]
        between = pearson(enc, dec)["r"]
        for metric in METRICS:
            fitted = regression(columns[metric], {"enc": enc, "dec": dec}, domains)
            t, p = williams(pearson(enc, columns[metric])["r"], pearson(dec, columns[metric])["r"], between, len(plain))
            found.append(
                {
                    **dict(zip(SETTING, setting)),
                    "metric": metric,
                    "n": len(plain),
                    **{f"{key}_{side}": value for side, of in fitted.items() for key, value in of.items()},
                    "r_between": between,
                    "williams_t": t,
                    "williams_p": p,
                }
            )
    return found
