"""Bootstrap intervals against hand-worked numbers, direct resampling, and known distributions."""

import warnings

import numpy as np
import pytest
from scipy import stats

from breviary.evaluation.statistics import (
    cluster_codes,
    difference,
    effective_size,
    holm_correction,
    interval,
    paired_bootstrap,
    paired_p,
    paired_ratio,
)


def test_paired_differences():
    found = paired_bootstrap(np.array([1.0, 2, 3, 2]), 1000, 0)
    assert found["value"] == 2 and 1 <= found["low"] < 2 < found["high"] <= 3
    assert paired_bootstrap(np.array([4.0]), 1000, 0) == {"value": 4, "low": 4, "high": 4}


def test_diverged_loss_is_reported_as_it_is_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = interval(np.array([1.0, np.inf, 2.0]), np.ones(3), seed=0, resamples=100)
    assert found == {"value": np.inf, "low": np.inf, "high": np.inf}


def test_intervals_follow_the_seed_alone_and_match_a_direct_bootstrap():
    draw = np.random.default_rng(3)
    nats, tokens = draw.random(60) * 5, draw.integers(1, 9, 60).astype(float)
    found = interval(nats, tokens, seed=0, resamples=4000)
    assert found == interval(nats, tokens, seed=0, resamples=4000)
    index = draw.integers(0, 60, (4000, 60))
    direct = np.percentile(nats[index].sum(1) / tokens[index].sum(1), [2.5, 97.5])
    # two bootstraps of 4000 differ by about 1% of the interval's width at each end
    assert [found["low"], found["high"]] == pytest.approx(direct, abs=0.05 * (direct[1] - direct[0]))


def test_intervals_cover_a_known_bernoulli_mean():
    draw = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        sample = (draw.random(100) < 0.3).astype(float)
        found = interval(sample, np.ones(100), seed=trial, resamples=400)
        covered += found["low"] <= 0.3 <= found["high"]
    assert 0.90 <= covered / 200 <= 0.985  # 95% nominal; the percentile bootstrap at n = 100 reaches about 93-95%


def test_the_interval_of_a_difference_is_that_of_resampled_questions():
    rng = np.random.default_rng(3)
    top, other, bottom = rng.normal(1, 1, 80), rng.normal(0, 1, 80), rng.integers(1, 6, 80).astype(float)
    found = difference((top, bottom), (other, bottom), seed=0, resamples=4000)
    picks = rng.integers(0, 80, (4000, 80))
    values = (top[picks] - other[picks]).sum(1) / bottom[picks].sum(1)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.03)


# ------------------------------------------------------------------ questions on shared contexts


def clustered(rng, contexts, questions):
    """0/1 scores of two readers: as in contract_nli, each context has a hit rate of its own. Both means are .5."""
    codes = np.repeat(np.arange(contexts), questions)
    one = rng.random(len(codes)) < rng.beta(0.4, 0.4, contexts)[codes]
    same = rng.random(len(codes)) < rng.beta(0.4, 0.4, contexts)[codes]
    other = np.where(same, one, rng.random(len(codes)) < 0.5)
    return one.astype(float), other.astype(float), codes


def coverage(contexts, trials, by_contexts=True, resamples=400):
    """Shares of trials in which the interval of a mean and of a difference hold the truth."""
    held = np.zeros(2)
    for trial in range(trials):
        one, other, codes = clustered(np.random.default_rng(trial), contexts, 17)
        ones, codes = np.ones(len(one)), codes if by_contexts else None
        mean = interval(one, ones, trial, resamples, codes)
        minus = difference((one, ones), (other, ones), trial, resamples, codes)
        held += mean["low"] <= 0.5 <= mean["high"], minus["low"] <= 0 <= minus["high"]
    return held / trials


def test_intervals_over_contexts_hold_the_truth_in_95_percent():
    assert coverage(contexts=60, trials=400) == pytest.approx([0.95, 0.95], abs=0.02)
    by_questions = coverage(contexts=60, trials=40, by_contexts=False)
    assert by_questions[0] < 0.6 and by_questions[1] < 0.8  # the fault: as if each question had its own context


def test_intervals_over_few_contexts_are_not_too_narrow():
    assert (coverage(contexts=8, trials=100) >= 0.93).all()


def test_a_cluster_is_a_row_of_sums():
    rng = np.random.default_rng(0)
    top, bottom = rng.random(90), rng.integers(1, 5, 90).astype(float)
    names = [f"c{i % 30}" for i in range(90)]
    codes = cluster_codes(names)
    found = interval(top, bottom, 0, 1000, codes)
    assert found["value"] == top.sum() / bottom.sum()
    sums = [column.reshape(3, 30).sum(0) for column in (top, bottom)]
    expected = interval(*sums, 0, 1000)
    assert found["value"] == pytest.approx(expected["value"])
    # Few clusters: the level is expanded, 2% wider at 30.
    assert found["high"] - found["low"] == pytest.approx(expected["high"] - expected["low"], rel=0.1)
    assert cluster_codes("abcab").tolist() == [0, 1, 2, 0, 1]
    assert cluster_codes("abc") is None and cluster_codes("aaa") is None


def test_effective_size_is_between_clusters_and_rows():
    codes = np.repeat(np.arange(50), 10)
    rng = np.random.default_rng(0)
    alike = effective_size((np.arange(50) % 2).astype(float)[codes], codes)
    free = effective_size((rng.random(500) < 0.5).astype(float), codes)
    assert alike == pytest.approx(50, rel=0.1) and 350 < free <= 500
    assert effective_size(np.zeros(500), codes) == 50 and effective_size(np.zeros(500), None) == 500


# ------------------------------------------------------------------ shares near 0 and 1, and few rows


def test_a_share_of_zero_or_one_has_wilsons_interval():
    zeros, ones = np.zeros(200), np.ones(200)
    bound = 1.959964**2 / (200 + 1.959964**2)
    assert interval(zeros, ones, 0, 100) == {"value": 0, "low": 0, "high": pytest.approx(bound)}
    assert interval(ones, ones, 0, 100) == {"value": 1, "low": pytest.approx(1 - bound), "high": 1}
    codes = np.repeat(np.arange(50), 4)  # at 0 nothing is known of dependence: a context counts once
    assert interval(zeros, ones, 0, 100, codes)["high"] == pytest.approx(1.959964**2 / (50 + 1.959964**2))
    # 3 of 10, by Wilson's formula
    found = interval(np.array([1.0] * 3 + [0] * 7), np.ones(10), 0, 100)
    assert (found["low"], found["high"]) == (pytest.approx(0.1078, abs=1e-4), pytest.approx(0.6032, abs=1e-4))
    # A difference is no share, neither is a ratio of other sums.
    assert paired_bootstrap(zeros, 100, 0) == {"value": 0, "low": 0, "high": 0}
    assert interval(zeros, 2 * ones, 0, 100)["high"] == 0


def test_a_difference_of_equal_shares_is_not_certain():
    ones, zeros = np.ones(50), np.zeros(50)
    for one, other, value in ((zeros, zeros, 0), (ones, zeros, 1), (zeros, ones, -1)):
        found = difference((one, ones), (other, ones), 0, 100)
        assert found["value"] == value and 0.05 < found["high"] - found["low"] < 0.15
        assert -1 <= found["low"] <= value <= found["high"] <= 1


def test_intervals_of_few_rows_hold_the_truth_in_95_percent():
    """Exact: every outcome of 12 rows, weighted by its probability."""
    n = 12
    held = [interval(np.repeat([1.0, 0.0], [k, n - k]), np.ones(n), 0, 10) for k in range(n + 1)]
    rates = np.linspace(0.02, 0.98, 49)
    share = [
        sum(stats.binom.pmf(k, n, p) for k, found in enumerate(held) if found["low"] <= p <= found["high"])
        for p in rates
    ]
    assert np.mean(share) == pytest.approx(0.95, abs=0.02)

    def outcome(gained, lost):
        one, other = np.zeros(n), np.zeros(n)
        one[:gained], other[gained : gained + lost] = 1, 1
        return difference((one, np.ones(n)), (other, np.ones(n)), 0, 10)

    outcomes = {(g, k): outcome(g, k) for g in range(n + 1) for k in range(n + 1 - g)}
    paired = [
        sum(
            stats.multinomial.pmf([g, k, n - g - k], n, [up, down, 1 - up - down])
            for (g, k), found in outcomes.items()
            if found["low"] <= up - down <= found["high"]
        )
        for up in (0.2, 0.35, 0.45)
        for down in (0.2, 0.35, 0.45)
    ]
    assert np.mean(paired) == pytest.approx(0.95, abs=0.02)


def test_means_of_few_values_hold_the_truth():
    held = 0
    for trial in range(300):
        values = np.random.default_rng(trial).beta(2, 3, 8)
        found = interval(values, np.ones(8), trial, 300)
        held += found["low"] <= 0.4 <= found["high"]
    assert held / 300 >= 0.92  # 88% without the expanded level


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, never falling: .04 .06 .06 .06.
    assert holm_correction([0.04, 0.01, float("nan"), 0.03, 0.02]) == pytest.approx(
        [0.06, 0.04, float("nan"), 0.06, 0.06], nan_ok=True
    )


def test_p_of_a_paired_difference_by_hand():
    """Differences 1, 2, 3: of the 8 ways to swap, two have a sum as far from 0 as 6."""
    zero, one = np.zeros(3), np.ones(3)
    assert paired_p((np.array([1.0, 2, 3]), one), (zero, one), seed=0, resamples=999) == pytest.approx(2 / 8)
    assert paired_p((one, one), (one, one), seed=0, resamples=999) == 1.0
    assert np.isnan(paired_p((zero[:0], zero[:0]), (zero[:0], zero[:0]), seed=0, resamples=9))


def test_p_swaps_whole_contexts_and_ratios_of_sums():
    """Two contexts of two questions: 4 ways to swap, and both or none are as extreme."""
    ours, other, tokens = np.array([1.0, 1, 1, 1]), np.zeros(4), np.array([1.0, 2, 3, 4])
    codes = np.array([0, 0, 1, 1])
    assert paired_p((ours, tokens), (other, tokens), 0, 999, codes) == pytest.approx(2 / 4)
    assert paired_p((ours, tokens), (other, tokens), 0, 999) == pytest.approx(2 / 16)


def test_p_of_many_questions_agrees_with_a_t_test():
    draw = np.random.default_rng(0)
    ours, other = draw.random(80), draw.random(80) * 0.8
    found = paired_p((ours, np.ones(80)), (other, np.ones(80)), seed=0, resamples=9999)
    assert found == pytest.approx(stats.ttest_rel(ours, other).pvalue, abs=0.02)


def test_a_share_of_paired_means_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        other = rng.random(60)
        ours = 0.9 * other + 0.1 * rng.standard_normal(60)
        found = paired_ratio(ours, other, 0, 300)
        covered += found["low"] <= 0.9 <= found["high"]
    assert 0.89 <= covered / 200 <= 1
    assert paired_ratio(np.array([1.0, 0]), np.array([1.0, 1]), 0, 100)["value"] == 0.5
