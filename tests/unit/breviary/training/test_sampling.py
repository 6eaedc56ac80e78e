"""The order of the data: what it depends on, and length-grouped batches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
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


@pytest.mark.parametrize("grouped", [False, True])
def test_the_data_order_depends_on_seed_and_position_only(grouped):
    lengths = [(7 * i) % 23 for i in range(50)]
    short, long = StepSampler(lengths, 4, 60, 3, grouped), StepSampler(lengths, 4, 180, 3, grouped)
    assert len(long) == len(list(long)) == 180
    assert list(short) == list(long)[:60] == list(short)  # a resumed run skips the first examples
    assert list(short) != list(StepSampler(lengths, 4, 60, 4, grouped))


@pytest.mark.parametrize("grouped", [False, True])
def test_every_pass_yields_every_example_once(grouped):
    indices = list(StepSampler(list(range(40)), 2, 120, 0, grouped))
    passes = [indices[start : start + 40] for start in (0, 40, 80)]
    assert all(sorted(one) == list(range(40)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    batches = [{frozenset(one[i : i + 2]) for i in range(0, 40, 2)} for one in passes]
    assert batches[0] != batches[1]  # other batches, not only another order of the same ones


def test_grouped_batches_hold_similar_lengths():
    lengths = torch.randint(0, 1000, (640,), generator=torch.Generator().manual_seed(0)).tolist()

    def spread(grouped):
        indices = list(StepSampler(lengths, 8, 640, 0, grouped))
        batches = [[lengths[i] for i in indices[start : start + 8]] for start in range(0, 640, 8)]
        return sum(max(batch) - min(batch) for batch in batches) / len(batches)

    assert spread(True) < spread(False) / 5
