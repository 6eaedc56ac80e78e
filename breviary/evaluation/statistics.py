"""95% intervals of means, ratios of sums and paired differences over questions, documents or contexts.

Pure functions of numpy arrays, one value per question, (N,). Questions on one context are not independent: `codes`
(N,) number their contexts, and whole contexts are resampled. U counts what is resampled: contexts, or rows without
codes. The rules, in this order:

Wilson         a share of 0/1 values that is exactly 0 or 1, or has U < 20 (Wilson 1927). Also a share of tokens that
               is 0 or 1. Values in contexts count as their effective number (`effective_size`)
Bonett-Price   the paired difference of two such shares, where every pair differs alike or U < 20: the adjusted Wald
               interval (Bonett and Price 2012, doi 10.3102/1076998611411915)
percentile     everything else: the percentile bootstrap. Where U < 20 or with codes, its level is expanded for few
               units (the expanded percentile interval of Hesterberg 2015, arXiv 1411.5279)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy import ndarray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

SMALL = 20  # units below which the percentile bootstrap is too narrow
LEVEL = 0.95
_Z = stats.norm.ppf((1 + LEVEL) / 2)


def cluster_codes(names: Sequence[Hashable]) -> ndarray | None:
    """The number of each row's cluster, (N,), from 0 in order of first occurrence.

    None where rows are resampled one by one: no two rows share a cluster, or all do. In the second case an interval
    holds for further questions on this one context, not for further contexts.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if len(numbers) in (1, len(names)):
        return None
    return np.array([numbers[name] for name in names])


def interval(
    numerator: ndarray,
    denominator: ndarray,
    seed: int,
    resamples: int,
    codes: ndarray | None = None,
    token_share: bool = False,
) -> dict[str, float]:
    """Ratio of sums of numerator (N,) and denominator (N,): {"value", "low", "high"}. A mean has denominators of 1.

    token_share  the numerator counts some of the denominator's tokens, so the ratio is in [0, 1]
    """
    if not uses_wilson(numerator, denominator, codes, token_share):
        return _bootstrap((numerator, denominator), _ratio, seed, resamples, codes)
    value = float(numerator.sum() / denominator.sum())
    size = _units(numerator, codes) if value in (0, 1) else effective_size(numerator, codes)
    low, high = proportion_confint(value * size, size, alpha=1 - LEVEL, method="wilson")
    return {"value": value, "low": max(0.0, min(value, float(low))), "high": min(1.0, max(value, float(high)))}


def uses_wilson(
    numerator: ndarray, denominator: ndarray, codes: ndarray | None = None, token_share: bool = False
) -> bool:
    """Whether `interval` follows Wilson's rule."""
    is_share = _is_binary(numerator, denominator)
    if is_share and _units(numerator, codes) < SMALL:
        return True
    return bool((is_share or token_share) and numerator.sum() in (0, denominator.sum()))


def difference(
    ours: tuple[ndarray, ndarray],
    other: tuple[ndarray, ndarray],
    seed: int,
    resamples: int,
    codes: ndarray | None = None,
) -> dict[str, float]:
    """Difference of two ratios of sums on the same rows, each (numerator (N,), denominator (N,)), with its interval."""
    differences = ours[0] - other[0]
    if _is_binary(*ours) and _is_binary(*other) and (np.ptp(differences) == 0 or _units(differences, codes) < SMALL):
        return _bonett_price(differences, codes)

    def statistic(top, bottom, other_top, other_bottom, axis):
        return _ratio(top, bottom, axis) - _ratio(other_top, other_bottom, axis)

    return _bootstrap((*ours, *other), statistic, seed, resamples, codes)


def mean_of_means(
    pairs: Sequence[ndarray], codes: Sequence[ndarray | None], seed: int, resamples: int, are_differences: bool = False
) -> dict[str, float]:
    """Macro average over data sets of ratios of sums, such as mean scores, with a percentile bootstrap interval.

    pairs            numerator and denominator of each question, (N, 2), for each data set
    codes            cluster codes of each data set; data sets are resampled independently
    are_differences  the numerators are paired differences of two readers
    """
    rng = np.random.default_rng(seed)
    value = float(np.mean([own[:, 0].sum() / own[:, 1].sum() for own in pairs]))
    drawn = np.zeros(resamples)
    for own, code in zip(pairs, codes):
        units = own if code is None else np.stack([np.bincount(code, column) for column in own.T], 1)
        picked = units[rng.integers(len(units), size=(resamples, len(units)))]  # (resamples, U, 2)
        drawn += picked[..., 0].sum(-1) / picked[..., 1].sum(-1) / len(pairs)
    if drawn.min() == drawn.max():  # no variance, e.g. all scores 0: the interval over the pooled questions
        pooled = np.concatenate(pairs)
        if are_differences and np.isin(pooled[:, 0], (-1, 0, 1)).all():
            return _bonett_price(pooled[:, 0], None)
        return interval(pooled[:, 0], pooled[:, 1], seed, resamples)
    low, high = (float(np.percentile(drawn, 50 * (1 + sign * LEVEL))) for sign in (-1, 1))
    return {"value": value, "low": min(value, low), "high": max(value, high)}


def geometric_mean(
    columns: Sequence[ndarray], seed: int, resamples: int, codes: ndarray | None = None
) -> dict[str, float]:
    """Geometric mean of the means of columns (N,) with values of at least 0, with its interval."""
    return _bootstrap((*columns, np.ones(len(columns[0]))), _geometric, seed, resamples, codes)


def derived_metrics(
    scores: Mapping[str, ndarray],
    metrics: Mapping[str, Mapping[str, float]],
    aggregates: Mapping[str, Sequence[str]],
    seed: int,
    resamples: int,
    codes: ndarray | None,
) -> dict[str, dict[str, float]]:
    """{name: {"value", "low", "high"}} of metrics that all examples determine together.

    Each of `aggregates`, {name: parts}: the geometric mean of the means of its parts in `scores`, (N,).
    continuation_perplexity: the exponential of continuation_nll, where `metrics` has it.
    """
    found = {
        name: geometric_mean([scores[part] for part in parts], seed, resamples, codes)
        for name, parts in aggregates.items()
    }
    if "continuation_nll" in metrics:
        found["continuation_perplexity"] = {
            key: float(np.exp(value)) for key, value in metrics["continuation_nll"].items()
        }
    return found


def geometric_difference(
    ours: Sequence[ndarray], other: Sequence[ndarray], seed: int, resamples: int, codes: ndarray | None = None
) -> dict[str, float]:
    """Difference of two `geometric_mean`s on the same rows, with its interval."""
    width, ones = len(ours), np.ones(len(ours[0]))

    def statistic(*columns: ndarray, axis: int) -> ndarray:
        *values, count = columns
        return _geometric(*values[:width], count, axis=axis) - _geometric(*values[width:], count, axis=axis)

    return _bootstrap((*ours, *other, ones), statistic, seed, resamples, codes)


def paired_p(
    ours: tuple[ndarray, ndarray],
    other: tuple[ndarray, ndarray],
    seed: int,
    resamples: int,
    codes: ndarray | None = None,
) -> float:
    """Two-sided p of the `difference` of two ratios of sums, by swapping the two readers' values of single units.

    Fisher's randomisation test: under its hypothesis it does not matter which reader a value comes from. All swaps are
    made where there are at most `resamples`, which is exact. 1 where no value differs, nan without rows.
    """
    columns = [*ours, *other]
    if not len(columns[0]):
        return float("nan")
    if all(np.array_equal(a, b) for a, b in zip(ours, other)):
        return 1.0
    if codes is not None:
        columns = [np.bincount(codes, column) for column in columns]
    units = len(columns[0])
    if units < 2:
        return 1.0  # one unit: a swap changes the sign alone
    top, bottom = np.concatenate(columns[::2]), np.concatenate(columns[1::2])

    def statistic(first: ndarray, second: ndarray, axis: int) -> ndarray:
        return _ratio(top[first], bottom[first], axis) - _ratio(top[second], bottom[second], axis)

    tested = stats.permutation_test(
        (np.arange(units), np.arange(units, 2 * units)),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=500,  # swaps in memory at a time
        rng=np.random.default_rng(seed),
    )
    return float(tested.pvalue)


def holm_correction(p: Sequence[float]) -> list[float]:
    """Holm's (1979) corrected p values of one family of tests, in their order; nan is not counted as a test."""
    corrected = np.asarray(p, dtype=float).copy()
    tested = ~np.isnan(corrected)
    if tested.any():
        corrected[tested] = multipletests(corrected[tested], method="holm")[1]
    return corrected.tolist()


def paired_bootstrap(differences: ndarray, resamples: int, seed: int, codes: ndarray | None = None) -> dict[str, float]:
    """Mean of paired differences, or of other values that are no shares, (N,), with its interval; nan where empty."""
    if not len(differences):
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    return _bootstrap((differences, np.ones(len(differences))), _ratio, seed, resamples, codes)


def paired_ratio(
    ours: ndarray, other: ndarray, seed: int, resamples: int, codes: ndarray | None = None
) -> dict[str, float]:
    """mean(ours) / mean(other) of paired scores (N,) with its interval. The other's mean must not be 0."""
    assert other.sum(), "a share of nothing"
    return _bootstrap((ours, other), _ratio, seed, resamples, codes)


def effective_size(values: ndarray, codes: ndarray | None) -> float:
    """Number of independent values whose mean is as certain as that of values (N,) in clusters; N without codes.

    N over the design effect, corrected for few clusters by Student's t, at most N (Korn and Graubard 1998, Survey
    Methodology 24). The number of clusters where all values are equal: their dependence is unknown.
    """
    n, units = len(values), _units(values, codes)
    deviations = values - values.mean()
    if codes is None or not deviations.any():
        return units
    independent = (deviations**2).sum() / (n - 1)  # n times the variance of a mean of independent values
    clustered = units / (units - 1) * (np.bincount(codes, deviations) ** 2).sum() / n
    size = n / max(1.0, clustered / independent)
    return max(1.0, size * float(_Z / stats.t.ppf((1 + LEVEL) / 2, units - 1)) ** 2)


def _is_binary(numerator: ndarray, denominator: ndarray) -> bool:
    return bool(np.isin(numerator, (0, 1)).all() and (denominator == 1).all())


def _units(values: ndarray, codes: ndarray | None) -> int:
    return len(values) if codes is None else int(codes.max()) + 1


def _ratio(top: ndarray, bottom: ndarray, axis: int) -> ndarray:
    return top.sum(axis) / bottom.sum(axis)


def _geometric(*columns: ndarray, axis: int) -> ndarray:
    """columns  values, and the count of each row last"""
    *values, count = columns
    return np.prod([_ratio(column, count, axis) for column in values], axis=0) ** (1 / len(values))


def _bonett_price(differences: ndarray, codes: ndarray | None) -> dict[str, float]:
    """Mean of differences in {-1, 0, 1} with its interval: one success is added to each kind of discordant pair."""
    size, value = effective_size(differences, codes), float(differences.mean())
    gained, lost = ((share * size + 1) / (size + 2) for share in ((differences > 0).mean(), (differences < 0).mean()))
    half = _Z * np.sqrt((gained + lost - (gained - lost) ** 2) / (size + 2))
    low, high = max(-1.0, gained - lost - half), min(1.0, gained - lost + half)
    return {"value": value, "low": min(value, float(low)), "high": max(value, float(high))}


def _bootstrap(
    columns: Sequence[ndarray], statistic: Callable[..., ndarray], seed: int, resamples: int, codes: ndarray | None
) -> dict[str, float]:
    """statistic(*columns, axis) with its percentile interval; a function of sums, so clusters are summed first.

    Equal seeds resample the same units. All three values are equal where resampling is pointless: one unit, constant
    columns, or a value that is not finite.
    """
    value = float(statistic(*columns, axis=-1))
    units = _units(columns[0], codes)
    if units < 2 or not np.isfinite(value) or not any(np.ptp(column) for column in columns):
        return {"value": value, "low": value, "high": value}
    if codes is not None:
        columns = [np.bincount(codes, column) for column in columns]
    low, high = stats.bootstrap(
        columns,
        statistic,
        n_resamples=resamples,
        batch=100,  # 100 resamples in memory at a time, not all
        vectorized=True,
        paired=True,
        confidence_level=LEVEL if codes is None and units >= SMALL else _expanded_level(units),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"value": value, "low": float(low), "high": float(high)}


def _expanded_level(units: int) -> float:
    """The percentile interval's level at which a mean of few units has the width of Student's t interval."""
    tail = stats.norm.sf(np.sqrt(units / (units - 1)) * stats.t.ppf((1 + LEVEL) / 2, units - 1))
    return 1 - 2 * max(float(tail), 1e-9)
