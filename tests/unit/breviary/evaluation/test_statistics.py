"""Bootstrap intervals against hand-worked numbers, direct resampling, and known distributions."""

import warnings

import numpy as np
import pytest

from breviary.evaluation.statistics import difference, interval, paired_bootstrap


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
