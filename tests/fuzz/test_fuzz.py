"""The short form of the tests of random input; `make fuzz` runs the long one."""

import pytest

from tests.fuzz.__main__ import run_cases

CASES = {"configurations": 3, "data": 300, "folders": 5}


@pytest.mark.parametrize("name", CASES)
def test_random_input_runs_or_is_refused_by_name(name):
    report = run_cases(name, CASES[name], seed=1)
    assert not report.faults, "\n\n".join(report.faults)
    assert report.counts["ran"] and report.counts["refused"], report.counts
