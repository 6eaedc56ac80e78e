"""TODO DOC"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy import ndarray
from scipy import stats

# ---- intervals by resampling questions or documents ----


def resampled(
    columns: Sequence[ndarray], statistic: Callable[..., ndarray], seed: int, resamples: int
) -> dict[str, float]:
    """statistic(*columns, axis) with its 95% percentile bootstrap interval: {"value", "low", "high"}; rows are resampled.

    columns  (N,) each, a row of all of them is one question or document; equal seeds resample the same rows
    The three are equal where there is nothing to resample: one row, all alike, a value that is not finite.
    """
    value = float(statistic(*columns, axis=-1))
    if len(columns[0]) < 2 or not np.isfinite(value) or not any(np.ptp(column) for column in columns):
        return {"value": value, "low": value, "high": value}
    low, high = stats.bootstrap(
        columns,
        statistic,
        n_resamples=resamples,
        batch=100,  # 100 resamples in memory at a time, not all
        vectorized=True,
        paired=True,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"value": value, "low": float(low), "high": float(high)}


def interval(numerator: ndarray, denominator: ndarray, seed: int, resamples: int) -> dict[str, float]:
    """Ratio of sums (N,), (N,) with its interval, see `resampled`; a mean is the case of a denominator of ones."""
    return resampled(
        (numerator, denominator), lambda top, bottom, axis: top.sum(axis) / bottom.sum(axis), seed, resamples
    )


def difference(
    ours: tuple[ndarray, ndarray], other: tuple[ndarray, ndarray], seed: int, resamples: int
) -> dict[str, float]:
    """Ratio of sums minus ratio of sums on the same rows, each (top (N,), bottom (N,)), with its interval, see `resampled`."""

    def statistic(top, bottom, other_top, other_bottom, axis):
        return top.sum(axis) / bottom.sum(axis) - other_top.sum(axis) / other_bottom.sum(axis)

    return resampled((*ours, *other), statistic, seed, resamples)


def paired_bootstrap(differences: ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Mean of paired differences (N,) with its interval, see `resampled`; nan where there is none."""
    if not len(differences):
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    return interval(differences, np.ones(len(differences)), seed, resamples)
