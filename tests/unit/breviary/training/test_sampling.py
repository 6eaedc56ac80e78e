"""Length-grouped batches where the examples are no multiple of the batch."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breviary.training.sampling import StepSampler


def batches(lengths, batch, steps, seed=0):
    indices = list(StepSampler(lengths, batch, batch * steps, seed, True))
    assert len(indices) == batch * steps
    return [indices[start : start + batch] for start in range(0, len(indices), batch)]


@pytest.mark.parametrize("n", [641, 645, 647, 100, 9, 15])
def test_batches_hold_similar_lengths_after_a_short_one(n):
    """In each pass the last batch lacks examples; all later batches stay grouped all the same."""
    batch, passes = 8, 5
    lengths = [(i * 7919) % n for i in range(n)]  # every length once
    found = batches(lengths, batch, passes * n // batch)
    spreads = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in found]
    # 8 neighbours in a pool of 128 examples: about n / 16; the last pool of a pass is smaller.
    per_pass = -(-n // batch)
    if n > 500:
        for start in range(0, len(spreads) - per_pass, per_pass):
            own = sorted(spreads[start : start + per_pass])
            assert own[len(own) // 2] < n / 8 and own[int(0.9 * len(own))] < n / 4, (start, own)
    assert all(len(set(b)) == batch for b in found)  # no example twice in a batch


@given(n=st.integers(1, 60), batch=st.integers(1, 12), steps=st.integers(1, 30), seed=st.integers(0, 3), data=st.data())
def test_every_example_comes_equally_often_and_a_longer_run_begins_alike(n, batch, steps, seed, data):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    found = batches(lengths, batch, steps, seed)
    counts = Counter(i for b in found for i in b)
    most = max(counts.values())
    assert set(counts) <= set(range(n))
    assert most - min(counts[i] for i in range(n)) <= (2 if n > batch else 1)
    assert found == batches(lengths, batch, steps + 7, seed)[:steps]
    if n >= batch:
        assert all(len(set(b)) == batch for b in found)


def test_whole_passes_hold_every_example_equally_often():
    """10 examples in batches of 4: after 5 batches each example came twice."""
    lengths = list(range(10))
    found = batches(lengths, 4, 25, seed=1)
    for start in range(0, 25, 5):
        counts = Counter(i for b in found[start : start + 5] for i in b)
        assert counts == dict.fromkeys(range(10), 2)
