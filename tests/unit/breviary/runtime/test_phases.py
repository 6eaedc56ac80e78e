"""Phases: exclusive of one another, and everything that happens while a context is read counts as reading."""

import time

import pytest

from breviary.runtime.timing import add_phase_seconds, phase, timed_phases


def test_the_time_of_an_inner_phase_counts_once():
    with timed_phases() as seconds, phase("prefill"):
        time.sleep(0.01)
        with phase("compress"):
            time.sleep(0.05)
    assert seconds.keys() == {"prefill", "compress"}
    assert 0.01 <= seconds["prefill"] < 0.05 <= seconds["compress"]


def test_all_phases_inside_read_are_reading():
    with timed_phases() as seconds, phase("prefill"), phase("read"):
        with phase("compress"), phase("prefill"):
            time.sleep(0.02)
        add_phase_seconds("read", 1)
    assert seconds["read"] >= 1.02 and seconds["prefill"] < 0.02 and "compress" not in seconds


def test_an_error_leaves_no_phase_open():
    with timed_phases() as seconds:
        with pytest.raises(KeyError), phase("read"):
            raise KeyError
        with phase("decode"):
            pass
    assert "read" not in seconds and "decode" in seconds
