"""The comparison of a long-running process's last samples with its first."""

from __future__ import annotations

import os

import pytest

from breviary.evaluation.bench.soak import Sample, drift, take_sample


def samples(resident=lambda n: 1000, files=lambda n: 5, cpu=lambda n: 0.1 * n, count=100):
    return [Sample(resident(n), files(n), cpu(n), 10 * n) for n in range(count)]


def test_a_steady_process_does_not_drift():
    found = drift(samples())
    assert (found["resident_ratio"], found["files"], found["done"]) == (1.0, [5, 5], 990)
    assert found["cpu_ratio"] == pytest.approx(1)


def test_what_grows_after_the_warm_up_is_found():
    found = drift(samples(resident=lambda n: 1000 + 10 * n, files=lambda n: 5 + n // 50, cpu=lambda n: 0.001 * n * n))
    assert found["resident_ratio"] > 1.5 and found["files"] == [5, 6] and found["cpu_ratio"] > 3


def test_growth_within_the_warm_up_does_not_count():
    assert drift(samples(resident=lambda n: min(n, 19) * 100))["resident_ratio"] == 1


def test_a_sample_of_this_process():
    before = take_sample(0)
    with open(os.devnull):
        after = take_sample(1)
    assert after.files == before.files + 1 and after.cpu >= before.cpu and after.resident > 10**6
