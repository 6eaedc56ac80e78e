"""breviary.training.watchdog within one process: which failure is reported. tests/distributed kills processes."""

import pytest
import torch.distributed as dist

from breviary.training import watchdog
from breviary.training.watchdog import ProcessFailure, Watchdog


@pytest.fixture
def pair(monkeypatch):
    """Watchdogs of rank 0 and rank 1 on one store, with short intervals, which record exits instead of exiting."""
    for name, value in (("HEARTBEAT_S", 0.02), ("GRACE_S", 0.3)):
        monkeypatch.setattr(watchdog, name, value)
    exits = []
    monkeypatch.setattr(watchdog, "exit_after", exits.append)
    monkeypatch.setattr(watchdog, "_exit_with_error", exits.append)
    store = dist.HashStore()
    return Watchdog(0, 2, 60, store, "a test"), Watchdog(1, 2, 60, store, "a test"), exits


def test_a_failure_names_the_rank_and_its_state(pair):
    first, second, exits = pair
    with second:
        with (
            pytest.raises(
                ProcessFailure, match="^rank 0 failed in step 3, forward, chunk 2, layer 1: too large$"
            ) as raised,
            first,
        ):
            first.set_state("in step 3, forward, chunk 2, layer 1", is_computing=True)
            raise MemoryError("too large")
        assert isinstance(raised.value.__cause__, MemoryError)
        for thread in second._threads[:1]:
            thread.join(2)
    assert exits[:2] == [watchdog.FORCED_EXIT_S, str(raised.value)]  # the other process ends with the same message


def test_the_first_reported_failure_is_raised_by_all_processes(pair):
    first, second, _ = pair
    with pytest.raises(ProcessFailure, match="^rank 1 made NaN$"), second:
        raise ProcessFailure("rank 1 made NaN")
    with pytest.raises(ProcessFailure, match="^rank 1 made NaN$"), first:
        raise RuntimeError("connection closed")


def test_a_computation_longer_than_the_timeout_is_reported(pair):
    first, _, exits = pair
    first.timeout = 0.2
    with first:
        first.set_state("waiting for a message")  # no timeout: the process waits for another one
        first._threads[0].join(0.5)
        assert exits == []
        first.set_state("in step 1, backward, chunk 0, layer 2", is_computing=True)
        first._threads[0].join(2)
    assert set(exits) == {"rank 0 hangs: more than 0.2 s (engine.timeout) in step 1, backward, chunk 0, layer 2"}


def test_a_finished_rank_is_no_longer_watched(pair):
    first, second, exits = pair
    first.timeout = 0.2
    with first:
        with second:
            first._threads[0].join(0.1)
        first._threads[0].join(0.6)
        assert second.rank in first._heartbeats and exits == []


def test_a_user_error_keeps_its_message(pair):
    first, _, _ = pair
    with pytest.raises(ValueError, match="^resume: no such run$"), first:
        raise ValueError("resume: no such run")
