"""Measurements for benchmarks: the order of the calls, peak memory, ratios within a run."""

import numpy as np
import pytest

from breviary.evaluation.timing import measure_alternating, median_ratio, random_batch, reader_from_overrides


def test_calls_alternate_after_one_warm_up_each():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    measured = measure_alternating(calls, runs=2)
    assert order == list("ababab")
    assert all(len(one.seconds) == 2 and not one.peak_bytes and one.median_seconds >= 0 for one in measured.values())


def test_peak_memory_counts_what_a_call_allocates():
    calls = {"small": lambda: np.ones(2**17), "large": lambda: np.ones(2**22)}  # 1 MiB and 32 MiB
    measured = measure_alternating(calls, runs=3, memory=True)
    assert measured["large"].median_peak_bytes - measured["small"].median_peak_bytes == pytest.approx(2**25, rel=0.1)


def test_the_median_ratio_is_taken_within_each_run():
    assert median_ratio([1, 20, 3], [1, 10, 1]) == 2


def test_a_random_batch_has_the_requested_lengths():
    reader = reader_from_overrides("compressor=full_context", "backbone=tiny")
    batch = random_batch(reader, 64, question=8, answer=4, evidence=10)
    assert [part.ids.shape[1] for part in (batch.prefix, batch.context, batch.query, batch.answer)] == [0, 52, 8, 4]
    assert batch.evidence.sum() == 10
