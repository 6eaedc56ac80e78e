"""Correlations with intervals, what is left of them beside other columns, and when one may be called none.

Pure functions of numpy arrays, one value a document, (N,). Ranks are midranks. Intervals are 95% unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy import ndarray
from scipy import stats

CHUNK = 500  # resamples in memory at once


def fisher_interval(
    r: float, n: int, level: float = 0.95, covariates: int = 0, variance: float = 1.0
) -> tuple[float, float]:
    """Interval of a correlation by Fisher's z: atanh(r) has variance `variance` / (n - 3 - covariates).

    (nan, nan) where n is too small for one.
    """
    if n - 3 - covariates < 1 or not np.isfinite(r):
        return float("nan"), float("nan")
    half = stats.norm.ppf(0.5 + level / 2) * np.sqrt(variance / (n - 3 - covariates))
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def pearson(x: ndarray, y: ndarray) -> dict[str, float]:
    """{r, r_lo, r_hi, p}: Fisher-z interval, two-sided p; all nan where a column is constant or N < 4."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(("r", "r_lo", "r_hi", "p"), float("nan"))
    found = stats.pearsonr(x, y)
    low, high = fisher_interval(found.statistic, len(x))
    return {"r": float(found.statistic), "r_lo": low, "r_hi": high, "p": float(found.pvalue)}


def spearman(x: ndarray, y: ndarray) -> tuple[float, float]:
    """(rho, two-sided p); nan where a column is constant or N < 4."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    found = stats.spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)


def resampled_spearman(
    columns: dict[str, ndarray],
    pairs: Sequence[tuple[str, str]],
    resamples: int,
    seed: int,
    clusters: ndarray | None = None,
) -> dict[tuple[str, str], tuple[float, float]]:
    """Percentile bootstrap intervals of rho for many pairs, the same resamples for all: {pair: (low, high)}.

    Documents are resampled, or with `clusters` (N,) whole clusters (what was cut from one source is not independent).
    Ranks are taken anew in each resample: counting a document c times is weighting it with c.
    Costs `resamples` * N for each column and each pair.
    """
    rng, n = np.random.default_rng(seed), len(next(iter(columns.values())))
    labels = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    groups = labels.max() + 1
    found: dict[tuple[str, str], list[ndarray]] = {pair: [] for pair in pairs}
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        counts = rng.multinomial(groups, np.full(groups, 1 / groups), size=rows)[:, labels].astype(float)
        weights = counts / counts.sum(1, keepdims=True)
        ranks = {}
        for name in {name for pair in pairs for name in pair}:
            rank = _weighted_midranks(columns[name], weights)
            rank -= (weights * rank).sum(1, keepdims=True)
            # A resample in which a column is constant has no rank correlation; it counts as none.
            spread = np.sqrt((weights * rank**2).sum(1, keepdims=True))
            ranks[name] = np.divide(rank, spread, out=np.zeros_like(rank), where=spread > 1e-12)
        for pair in pairs:
            found[pair].append((weights * ranks[pair[0]] * ranks[pair[1]]).sum(1))
    return {
        pair: tuple(float(q) for q in np.quantile(np.concatenate(values), [0.025, 0.975]))
        for pair, values in found.items()
    }


def _weighted_midranks(x: ndarray, weights: ndarray) -> ndarray:
    """Midranks of x (N,) in each resample of weights (R, N) that sum to 1: (R, N), from 0 to 1."""
    order = np.argsort(x, kind="stable")
    first = np.flatnonzero(np.diff(x[order], prepend=-np.inf))  # where each distinct value begins
    masses = np.add.reduceat(weights[:, order], first, axis=1)
    middles = np.cumsum(masses, 1) - masses / 2
    value_of = np.empty(len(x), dtype=int)
    value_of[order] = np.repeat(np.arange(len(first)), np.diff(first, append=len(x)))
    return middles[:, value_of]


def residuals(x: ndarray, others: ndarray) -> ndarray:
    """What ordinary least squares on a constant and `others` (N, K) leaves of x."""
    design = np.column_stack([np.ones(len(x)), others])
    return x - design @ np.linalg.lstsq(design, x, rcond=None)[0]


def dummies(groups: ndarray) -> ndarray:
    """(N, G - 1) indicator columns of all groups but the first: domain effects."""
    names = np.unique(groups)
    return (np.asarray(groups)[:, None] == names[None, 1:]).astype(float)


def partial(x: ndarray, y: ndarray, others: ndarray, ranks: bool = True) -> dict[str, float]:
    """Correlation of x and y beside `others` (N, K): {value, low, high, p}; of ranks (Spearman) or values (Pearson).

    The columns of `others` are ranked too, except indicators. p by t with N - 2 - K degrees of freedom; interval by
    Fisher's z, for ranks with Bonett and Wright's variance (2000).
    """
    rank = {True: stats.rankdata, False: np.asarray}[ranks]
    others = np.asarray(others, dtype=float).reshape(len(x), -1)
    others = np.column_stack([column if set(np.unique(column)) <= {0, 1} else rank(column) for column in others.T])
    n, k = len(x), others.shape[1]
    left = residuals(rank(x).astype(float), others), residuals(rank(y).astype(float), others)
    spread = [np.sqrt((column**2).sum()) for column in left]
    if n - 2 - k < 2 or min(spread) < 1e-9 * n:
        return dict.fromkeys(("value", "low", "high", "p"), float("nan"))
    value = float(np.clip((left[0] * left[1]).sum() / np.prod(spread), -1, 1))
    t = value * np.sqrt((n - 2 - k) / max(1 - value**2, 1e-15))
    low, high = fisher_interval(value, n, covariates=k, variance=1 + value**2 / 2 if ranks else 1.0)
    return {"value": value, "low": low, "high": high, "p": float(2 * stats.t.sf(abs(t), n - 2 - k))}


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) corrected p of a family of tests, in their order; nan is no test and stays."""
    values = np.asarray(p, dtype=float)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    corrected, highest = values.copy(), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[index]))
        corrected[index] = highest
    return corrected.tolist()


def equivalence(r: float, n: int, bound: float = 0.1, covariates: int = 0, ranks: bool = True) -> float:
    """p of two one-sided tests (TOST) that |correlation| < bound: small = no more than that; nan where n is too small.

    By Fisher's z. "Not significant" alone says nothing: with few documents everything is.
    """
    if n - 3 - covariates < 1 or not np.isfinite(r):
        return float("nan")
    error = np.sqrt((1 + r**2 / 2 if ranks else 1.0) / (n - 3 - covariates))
    z, edge = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), np.arctanh(bound)
    return float(max(stats.norm.sf((z + edge) / error), stats.norm.cdf((z - edge) / error)))


def williams(r_xy: float, r_zy: float, r_xz: float, n: int) -> tuple[float, float]:
    """(t, two-sided p) that two correlations with the same y differ: Williams' test (Steiger 1980, equation 7), n - 3
    degrees of freedom. nan where x and z are the same."""
    determinant = 1 - r_xy**2 - r_zy**2 - r_xz**2 + 2 * r_xy * r_zy * r_xz
    below = 2 * (n - 1) / (n - 3) * determinant + ((r_xy + r_zy) / 2) ** 2 * (1 - r_xz) ** 3
    if n < 4 or below < 1e-12:
        return float("nan"), float("nan")
    t = (r_xy - r_zy) * np.sqrt((n - 1) * (1 + r_xz) / below)
    return float(t), float(2 * stats.t.sf(abs(t), n - 3))


def regression(y: ndarray, columns: dict[str, ndarray], groups: ndarray | None = None) -> dict[str, dict[str, float]]:
    """Least squares of standardised y on standardised columns and group effects: {column: {beta, low, high, p, vif}}.

    Errors are robust to unequal variances (HC3). vif: how often the variance is what it would be without the other
    columns and effects. All nan where a column, or y, is constant or told by the others.
    """
    nothing = dict.fromkeys(("beta", "low", "high", "p", "vif"), float("nan"))
    n, effects = len(y), np.zeros((len(y), 0)) if groups is None else dummies(groups)
    freedom = n - 1 - len(columns) - effects.shape[1]
    if freedom < 1 or min(np.ptp(v) for v in (y, *columns.values())) == 0:
        return {name: dict(nothing) for name in columns}
    z = [(v - v.mean()) / v.std() for v in columns.values()]
    design = np.column_stack([np.ones(n), *z, effects])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return {name: dict(nothing) for name in columns}
    inverse = np.linalg.inv(design.T @ design)
    target = (y - y.mean()) / y.std()
    beta = inverse @ design.T @ target
    leverage = np.clip((design @ inverse * design).sum(1), 0, 1 - 1e-9)
    scaled = (target - design @ beta) / (1 - leverage)
    errors = np.sqrt(np.diag(inverse @ (design.T * scaled**2) @ design @ inverse))
    half = stats.t.ppf(0.975, freedom)
    return {
        name: {
            "beta": float(beta[i]),
            "low": float(beta[i] - half * errors[i]),
            "high": float(beta[i] + half * errors[i]),
            "p": float(2 * stats.t.sf(abs(beta[i] / errors[i]), freedom)) if errors[i] > 0 else 0.0,
            "vif": float(n * inverse[i, i]),
        }
        for i, name in enumerate(columns, start=1)
    }


def line_with_band(x: ndarray, y: ndarray, at: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Least-squares line of y on x at the points `at`, and its 95% band: (line, low, high)."""
    found, n = stats.linregress(x, y), len(x)
    line = found.intercept + found.slope * at
    spread = np.sqrt(((y - found.intercept - found.slope * x) ** 2).sum() / max(n - 2, 1))
    away = np.sqrt(1 / n + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, max(n - 2, 1)) * spread * away
    return line, line - half, line + half
