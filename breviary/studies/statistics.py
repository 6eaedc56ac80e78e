"""Correlations with intervals, partial correlations, equivalence tests and robust regression.

Pure functions of numpy arrays with one value per document, (N,). Ranks are midranks. Intervals are 95% by default.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy import ndarray
from scipy import stats
from statsmodels.stats.outliers_influence import variance_inflation_factor

CHUNK = 500  # resamples in memory at once
NAN = float("nan")


def fisher_interval(
    r: float, n: int, level: float = 0.95, covariates: int = 0, variance: float = 1.0
) -> tuple[float, float]:
    """Interval of a correlation by Fisher's z: atanh(r) has variance `variance` / (n - 3 - covariates).

    Returns (nan, nan) where n is too small.
    """
    if n - 3 - covariates < 1 or not np.isfinite(r):
        return NAN, NAN
    half = stats.norm.ppf(0.5 + level / 2) * np.sqrt(variance / (n - 3 - covariates))
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def pearson(x: ndarray, y: ndarray) -> dict[str, float]:
    """{r, r_lo, r_hi, p}: Fisher-z interval, two-sided p. All nan where a column is constant or N < 4."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(("r", "r_lo", "r_hi", "p"), NAN)
    result = stats.pearsonr(x, y)
    low, high = fisher_interval(result.statistic, len(x))
    return {"r": float(result.statistic), "r_lo": low, "r_hi": high, "p": float(result.pvalue)}


def spearman(x: ndarray, y: ndarray) -> tuple[float, float]:
    """(rho, two-sided p). Both nan where a column is constant or N < 4."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return NAN, NAN
    result = stats.spearmanr(x, y)
    return float(result.statistic), float(result.pvalue)


def bootstrap_spearman(
    columns: dict[str, ndarray],
    pairs: Sequence[tuple[str, str]],
    resamples: int,
    seed: int,
    clusters: ndarray | None = None,
) -> dict[tuple[str, str], tuple[float, float]]:
    """Percentile bootstrap intervals of rho for many pairs, from the same resamples: {pair: (low, high)}.

    clusters  (N,) labels; whole clusters are resampled instead of documents, because documents cut from one source
              are not independent
    Ranks are computed anew in each resample; a document drawn c times has weight c.
    Costs `resamples` * N for each column and each pair.
    """
    rng, n = np.random.default_rng(seed), len(next(iter(columns.values())))
    labels = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    groups = labels.max() + 1
    samples: dict[tuple[str, str], list[ndarray]] = {pair: [] for pair in pairs}
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        counts = rng.multinomial(groups, np.full(groups, 1 / groups), size=rows)[:, labels].astype(float)
        weights = counts / counts.sum(1, keepdims=True)
        ranks = {}
        for name in {name for pair in pairs for name in pair}:
            rank = _weighted_midranks(columns[name], weights)
            rank -= (weights * rank).sum(1, keepdims=True)
            # A resample in which a column is constant has no rank correlation and counts as 0.
            spread = np.sqrt((weights * rank**2).sum(1, keepdims=True))
            ranks[name] = np.divide(rank, spread, out=np.zeros_like(rank), where=spread > 1e-12)
        for pair in pairs:
            samples[pair].append((weights * ranks[pair[0]] * ranks[pair[1]]).sum(1))
    intervals = {pair: np.quantile(np.concatenate(values), [0.025, 0.975]) for pair, values in samples.items()}
    return {pair: (float(low), float(high)) for pair, (low, high) in intervals.items()}


def _weighted_midranks(x: ndarray, weights: ndarray) -> ndarray:
    """Midranks of x (N,) in each resample of weights (R, N) that sum to 1: (R, N), from 0 to 1."""
    order = np.argsort(x, kind="stable")
    first = np.flatnonzero(np.diff(x[order], prepend=-np.inf))  # start of each distinct value
    masses = np.add.reduceat(weights[:, order], first, axis=1)
    middles = np.cumsum(masses, 1) - masses / 2
    value_of: ndarray = np.empty(len(x), dtype=int)
    value_of[order] = np.repeat(np.arange(len(first)), np.diff(first, append=len(x)))
    return middles[:, value_of]


def indicators(groups: ndarray) -> ndarray:
    """(N, G - 1) indicator columns of all groups but the first: group effects."""
    return pd.get_dummies(np.asarray(groups), drop_first=True, dtype=float).to_numpy()


def partial_correlation(x: ndarray, y: ndarray, controls: ndarray, ranks: bool = True) -> dict[str, float]:
    """Correlation of x and y given `controls` (N, K): {value, low, high, p}; of ranks (Spearman) or values (Pearson).

    Indicator columns of `controls` are not ranked. p by t with N - 2 - K degrees of freedom. Interval by Fisher's z,
    for ranks with the variance of Bonett and Wright (2000). All nan where x or y follows from the controls.
    """
    rank = stats.rankdata if ranks else np.asarray
    controls = np.asarray(controls, dtype=float).reshape(len(x), -1)
    n, k = controls.shape
    design = np.column_stack([np.ones(n), *(c if set(np.unique(c)) <= {0, 1} else rank(c) for c in controls.T)])
    residuals = [sm.OLS(rank(column).astype(float), design).fit().resid for column in (x, y)]
    norms = [np.linalg.norm(column) for column in residuals]
    if n - 2 - k < 2 or min(norms) < 1e-9 * n:
        return dict.fromkeys(("value", "low", "high", "p"), NAN)
    value = float(np.clip(residuals[0] @ residuals[1] / np.prod(norms), -1, 1))
    t = value * np.sqrt((n - 2 - k) / max(1 - value**2, 1e-15))
    low, high = fisher_interval(value, n, covariates=k, variance=1 + value**2 / 2 if ranks else 1.0)
    return {"value": value, "low": low, "high": high, "p": float(2 * stats.t.sf(abs(t), n - 2 - k))}


def equivalence_p(r: float, n: int, bound: float = 0.1, covariates: int = 0, ranks: bool = True) -> float:
    """p of two one-sided tests (TOST) of |correlation| < bound, by Fisher's z: a small p supports equivalence to 0.

    nan where n is too small. A correlation that is not significant does not support equivalence by itself.
    """
    if n - 3 - covariates < 1 or not np.isfinite(r):
        return NAN
    error = np.sqrt((1 + r**2 / 2 if ranks else 1.0) / (n - 3 - covariates))
    z, edge = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), np.arctanh(bound)
    return float(max(stats.norm.sf((z + edge) / error), stats.norm.cdf((z - edge) / error)))


def williams_test(r_xy: float, r_zy: float, r_xz: float, n: int) -> tuple[float, float]:
    """(t, two-sided p) of Williams' test that two correlations with the same y differ (Steiger 1980, equation 7).

    n - 3 degrees of freedom. Both nan where x and z are equal.
    """
    determinant = 1 - r_xy**2 - r_zy**2 - r_xz**2 + 2 * r_xy * r_zy * r_xz
    below = 2 * (n - 1) / (n - 3) * determinant + ((r_xy + r_zy) / 2) ** 2 * (1 - r_xz) ** 3
    if n < 4 or below < 1e-12:
        return NAN, NAN
    t = (r_xy - r_zy) * np.sqrt((n - 1) * (1 + r_xz) / below)
    return float(t), float(2 * stats.t.sf(abs(t), n - 3))


def standardised_regression(
    y: ndarray, columns: dict[str, ndarray], groups: ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Least squares of standardised y on standardised columns and group effects: {column: {beta, low, high, p, vif}}.

    Standard errors are robust to heteroscedasticity (HC3). vif is the variance inflation factor. All values are nan
    where a column or y is constant, a column is a linear combination of the others, or one document alone determines
    a coefficient (leverage 1).
    """
    undefined = {name: dict.fromkeys(("beta", "low", "high", "p", "vif"), NAN) for name in columns}
    effects = np.zeros((len(y), 0)) if groups is None else indicators(groups)
    if len(y) - 1 - len(columns) - effects.shape[1] < 1 or min(np.ptp(v) for v in (y, *columns.values())) == 0:
        return undefined
    design = np.column_stack([np.ones(len(y)), *(stats.zscore(v) for v in columns.values()), effects])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return undefined
    fit = sm.OLS(stats.zscore(y), design).fit()
    if fit.get_influence().hat_matrix_diag.max() > 1 - 1e-9:
        return undefined
    fit = fit.get_robustcov_results("HC3", use_t=True)
    low, high = fit.conf_int().T
    return {
        name: {
            "beta": float(fit.params[i]),
            "low": float(low[i]),
            "high": float(high[i]),
            "p": float(fit.pvalues[i]),
            "vif": float(variance_inflation_factor(design, i)),
        }
        for i, name in enumerate(columns, start=1)
    }


def line_with_band(x: ndarray, y: ndarray, at: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Least-squares line of y on x at the points `at`, and its 95% confidence band: (line, low, high)."""
    prediction = sm.OLS(y, sm.add_constant(x)).fit().get_prediction(sm.add_constant(at, has_constant="add"))
    low, high = prediction.conf_int().T
    return prediction.predicted, low, high
