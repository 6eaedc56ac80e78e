"""breviary.training.watchdog within one process: who is named, and who tells first. Dying and hanging: tests/distributed."""

import pytest
import torch.distributed as dist

from breviary.training import watchdog as watch
from breviary.training.watchdog import ProcessFailure, Watchdog


@pytest.fixture
def pair(monkeypatch):
    """Rank 0 and rank 1 on one store, quick, and without the process's end."""
    for name, value in (("BEAT", 0.02), ("GRACE", 0.3)):
        monkeypatch.setattr(watch, name, value)
    ended = []
    monkeypatch.setattr(watch, "exit_after", ended.append)
    monkeypatch.setattr(watch, "_end", ended.append)
    store = dist.HashStore()
    return Watchdog(0, 2, 60, store, "a test"), Watchdog(1, 2, 60, store, "a test"), ended


def test_who_fails_is_named_with_where_it_stood(pair):
    first, second, ended = pair
    with second:
        with pytest.raises(ProcessFailure, match="^rank 0 failed in step 3, forward, chunk 2, layer 1: too large$") as raised:
            with first:
                first.set_state("in step 3, forward, chunk 2, layer 1", is_computing=True)
                raise MemoryError("too large")
        assert isinstance(raised.value.__cause__, MemoryError)
        for thread in second._threads[:1]:
            thread.join(2)
    assert ended[0] == watch.LAST_RESORT and ended[1] == str(
        raised.value
    )  # the other process ends with the same sentence


def test_what_was_told_first_counts(pair):
    first, second, _ = pair
    with pytest.raises(ProcessFailure, match="^rank 1 made NaN$"):
        with second:
            raise ProcessFailure("rank 1 made NaN")
    with pytest.raises(ProcessFailure, match="^rank 1 made NaN$"):
        with first:
            raise RuntimeError("connection closed")


def test_a_cell_that_takes_too_long(pair):
    first, _, ended = pair
    first.timeout = 0.2
    with first:
        first.set_state("waiting for a message")  # however long: it waits for another
        first._threads[0].join(0.5)
        assert ended == []
        first.set_state("in step 1, backward, chunk 0, layer 2", is_computing=True)
        first._threads[0].join(2)
    assert set(ended) == {"rank 0 hangs: for 0.2 s (engine.timeout) in step 1, backward, chunk 0, layer 2"}


def test_a_rank_that_is_through_is_not_looked_for(pair):
    first, second, ended = pair
    first.timeout = 0.2
    with first:
        with second:
            first._threads[0].join(0.1)
        first._threads[0].join(0.6)
        assert second.rank in first._seen and ended == []


def test_a_person_s_mistake_is_told_as_it_is(pair):
    first, _, _ = pair
    with pytest.raises(ValueError, match="^resume: no such run$"):
        with first:
            raise ValueError("resume: no such run")
