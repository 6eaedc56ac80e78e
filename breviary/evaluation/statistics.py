"""Bootstrap intervals over questions or documents.

Pure functions of numpy arrays, one value per question, (N,). Intervals are 95% percentile bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy import ndarray
from scipy import stats


def resampled(
    columns: Sequence[ndarray], statistic: Callable[..., ndarray], seed: int, resamples: int
) -> dict[str, float]:
    """statistic(*columns, axis) with its interval: {"value", "low", "high"}; rows are resampled.

    columns  (N,) each; one row of all columns is one question or document. Equal seeds resample the same rows
    All three are equal where resampling is pointless: one row, constant columns, or a value that is not finite.
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
    """Ratio of sums of numerator (N,) and denominator (N,), with its interval. A mean has a denominator of ones."""
    return resampled(
        (numerator, denominator), lambda top, bottom, axis: top.sum(axis) / bottom.sum(axis), seed, resamples
    )


def difference(
    ours: tuple[ndarray, ndarray], other: tuple[ndarray, ndarray], seed: int, resamples: int
) -> dict[str, float]:
    """Difference of two ratios of sums on the same rows, each (numerator (N,), denominator (N,)), with its interval."""

    def statistic(top, bottom, other_top, other_bottom, axis):
        return top.sum(axis) / bottom.sum(axis) - other_top.sum(axis) / other_bottom.sum(axis)

    return resampled((*ours, *other), statistic, seed, resamples)


def paired_bootstrap(differences: ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Mean of paired differences (N,) with its interval; nan for an empty array."""
    if not len(differences):
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    return interval(differences, np.ones(len(differences)), seed, resamples)
