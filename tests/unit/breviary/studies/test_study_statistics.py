"""Correlations, tests and regressions against hand-worked numbers, scipy, and random data of known distribution."""

import numpy as np
import pytest
from scipy import stats

from breviary.studies import statistics as s


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_pearson_by_hand():
    # Deviations of x: -2 -1 0 1 2, of y: -1.8 .2 -.8 2.2 .2; products sum to 3.6 - .2 + 2.2 + .4 = 6; squares: 10, 8.8.
    result = s.pearson(np.array([1.0, 2, 3, 4, 5]), np.array([1.0, 3, 2, 5, 3]))
    assert result["r"] == pytest.approx(6 / np.sqrt(88))
    z, half = np.arctanh(result["r"]), 1.959964 / np.sqrt(2)  # n - 3 = 2
    assert (result["r_lo"], result["r_hi"]) == pytest.approx((np.tanh(z - half), np.tanh(z + half)))


def test_pearson_interval_equals_scipy_s(rng):
    x, y = rng.normal(size=(2, 40))
    expected = stats.pearsonr(x, y)
    result, interval = s.pearson(x, y), expected.confidence_interval(0.95)
    assert tuple(result.values()) == pytest.approx((expected.statistic, interval.low, interval.high, expected.pvalue))


def test_spearman_by_hand_with_a_tie():
    # Ranks 1 2 3 4 and 1 2.5 2.5 4: products of deviations 2.25 + 0 + 0 + 2.25 = 4.5, squares 5 and 4.5.
    rho, _ = s.spearman(np.array([1.0, 2, 3, 4]), np.array([0.0, 5, 5, 9]))
    assert rho == pytest.approx(4.5 / np.sqrt(5 * 4.5))
    assert np.isnan(s.spearman(np.ones(9), np.arange(9.0))[0])


def test_weighted_ranks_are_the_ranks_of_repeated_documents(rng):
    x, counts = np.array([3.0, 1, 2, 2, 7]), np.array([[2.0, 1, 0, 3, 1]])
    repeated = np.repeat(x, counts[0].astype(int))
    expected = {value: rank for value, rank in zip(repeated, stats.rankdata(repeated))}
    result = s._weighted_midranks(x, counts / counts.sum())[0] * counts.sum() + 0.5
    assert [result[i] for i in (0, 1, 3, 4)] == pytest.approx([expected[x[i]] for i in (0, 1, 3, 4)])


def test_bootstrap_of_rho_equals_scipy_s(rng):
    x = rng.normal(size=60)
    y = np.round(x + rng.normal(size=60))  # with ties
    [result] = s.bootstrap_spearman({"x": x, "y": y}, [("x", "y")], 4000, 0).values()
    expected = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1500,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert result == pytest.approx((expected.low, expected.high), abs=0.03)


def test_documents_of_one_source_count_as_one(rng):
    """20 sources of 20 equal documents are 20 observations: the interval is wider, about 1 / sqrt(20), not 400."""
    x, y = np.repeat(rng.normal(size=(2, 20)), 20, axis=1)
    sources = np.repeat(np.arange(20), 20)
    columns, pair = {"x": x, "y": y}, ("x", "y")
    apart = s.bootstrap_spearman(columns, [pair], 1000, 0)[pair]
    together = s.bootstrap_spearman(columns, [pair], 1000, 0, sources)[pair]
    assert together[1] - together[0] > 3 * (apart[1] - apart[0])


def test_intervals_have_the_nominal_coverage(rng):
    truth, inside, sets = 0.5, [], 300
    for _ in range(sets):
        x = rng.normal(size=50)
        result = s.pearson(x, truth * x + np.sqrt(1 - truth**2) * rng.normal(size=50))
        inside.append(result["r_lo"] < truth < result["r_hi"])
    assert 0.91 < np.mean(inside) < 0.985


def test_partial_correlation_by_its_formula(rng):
    z = rng.normal(size=80)
    x, y = z + rng.normal(size=80), z + rng.normal(size=80)
    for ranks in (True, False):
        r = (lambda a, b: s.spearman(a, b)[0]) if ranks else (lambda a, b: s.pearson(a, b)["r"])
        expected = (r(x, y) - r(x, z) * r(y, z)) / np.sqrt((1 - r(x, z) ** 2) * (1 - r(y, z) ** 2))
        result = s.partial_correlation(x, y, z, ranks)
        assert result["value"] == pytest.approx(expected)
        assert result["low"] < expected < result["high"]
    # x and y depend on z only.
    assert s.spearman(x, y)[1] < 0.01 < 0.05 < s.partial_correlation(x, y, z)["p"]


def test_domain_effects_undo_simpson(rng):
    """Within both domains y falls with x, between them it rises."""
    x = np.concatenate([np.arange(20.0), np.arange(20.0) + 40])
    y = np.concatenate([-np.arange(20.0), 100 - np.arange(20.0)]) + rng.normal(size=40)
    domain = np.repeat(["a", "b"], 20)
    assert s.pearson(x, y)["r"] > 0.7
    assert s.partial_correlation(x, y, s.indicators(domain), ranks=False)["value"] < -0.9
    within, pooled = (s.standardised_regression(y, {"x": x}, groups)["x"] for groups in (domain, None))
    assert within["high"] < 0 < pooled["low"]


def test_undefined_statistics_are_nan(rng):
    x, y = rng.normal(size=(2, 30))
    assert np.isnan(s.partial_correlation(x, y, x)["value"])
    assert np.isnan(s.standardised_regression(y, {"a": x, "b": 2 * x})["a"]["beta"])
    one_document = np.eye(30)[0]  # it alone determines the slope
    assert np.isnan(s.standardised_regression(y, {"a": one_document})["a"]["beta"])
    assert np.isnan(s.williams_test(0.3, 0.3, 1.0, 30)[0])
    assert all(np.isnan(v) for v in s.pearson(x[:3], y[:3]).values())


def test_equivalence_needs_many_documents():
    few, many = s.equivalence_p(0.0, 50), s.equivalence_p(0.0, 2000)
    assert few > 0.05 > many
    # z = 0 against atanh(.1) with error 1 / sqrt(1997)
    assert many == pytest.approx(stats.norm.sf(np.arctanh(0.1) * np.sqrt(1997)))
    assert s.equivalence_p(0.3, 2000) > 0.99


def test_williams_test_equals_published_values():
    """n 103, .4 against .5, the two correlated .1: t = -.89, p = .37 (psych's r.test gives the same)."""
    t, p = s.williams_test(0.4, 0.5, 0.1, 103)
    assert (t, p) == pytest.approx((-0.8913, 0.375), abs=0.001)


def test_regression_recovers_the_betas_of_random_data(rng):
    a = rng.normal(size=500)
    b = 0.6 * a + 0.8 * rng.normal(size=500)
    y = 2 * a - b + 0.5 * rng.normal(size=500)
    result = s.standardised_regression(y, {"a": a, "b": b})
    for name, weight, column in (("a", 2, a), ("b", -1, b)):
        assert result[name]["beta"] == pytest.approx(weight * column.std() / y.std(), abs=0.05)
        assert result[name]["low"] < weight * column.std() / y.std() < result[name]["high"]
    r = s.pearson(a, b)["r"]
    assert result["a"]["vif"] == pytest.approx(1 / (1 - r**2))


def test_regression_line_and_band(rng):
    x = np.arange(5.0)
    line, low, high = s.line_with_band(x, 3 - 2 * x, np.array([0.0, 10]))
    assert line == pytest.approx([3, -17]) and low == pytest.approx(line) and high == pytest.approx(line)
    y = x + rng.normal(size=5)
    _, low, high = s.line_with_band(x, y, np.array([2.0, 8.0]))
    assert (high - low)[1] > (high - low)[0] > 0  # narrowest at the mean
