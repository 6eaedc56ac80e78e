"""One fork server for all distributed tests, and fixtures that run functions on several ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from processes import launch, launch_failing, server


@pytest.fixture(scope="session")
def ranks(tmp_path_factory) -> Callable[..., str]:
    """ranks(world, function, *args): runs the function on forked ranks; returns rank 0's output."""
    return functools.partial(launch, server(), tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="session")
def failing_ranks(tmp_path_factory) -> Callable[..., dict[int, str]]:
    """failing_ranks(world, victim, function, *args): runs it on ranks that must fail; returns {rank: output}."""
    return functools.partial(launch_failing, server(), tmp_path_factory.mktemp("faults"))
