"""A signal, a clock or a NaN of one rank: all ranks do the same after the same step."""

from __future__ import annotations

import json
import signal

from fault_cases import decide_after_steps


def test_all_ranks_decide_the_same_after_a_step(ranks, tmp_path):
    ranks(2, decide_after_steps, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first.pop("clock 0") == [True, False, 0, None]
    assert first.pop("clock 1") == [False, False, 0, None]  # the clock of rank 0 counts
    assert first.pop("signal 0") == first.pop("signal 1") == [True, True, signal.SIGTERM, None]
    for victim in range(2):
        saves, stops, number, failure = first.pop(f"nan {victim}")
        assert (saves, stops, number) == (False, True, 0)
        assert failure.startswith("step 2: the loss is nan and ") and f"the examples rank {victim}. The run" in failure
    assert not first
