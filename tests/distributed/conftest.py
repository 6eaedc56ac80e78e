"""One fork server for all distributed tests, and fixtures that run functions on several ranks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import pytest
from processes import launch, launch_failing, relayed, server


@pytest.fixture(scope="session")
def ranks(tmp_path_factory) -> Callable[..., str]:
    """ranks(world, function, *args): runs the function on forked ranks; returns rank 0's output."""
    return functools.partial(launch, server(), tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="session")
def failing_ranks(tmp_path_factory) -> Callable[..., dict[int, str]]:
    """failing_ranks(world, victim, function, *args): runs it on ranks that must fail; returns {rank: output}."""
    return functools.partial(launch_failing, server(), tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def relay(tmp_path_factory) -> Callable[[str], contextlib.AbstractContextManager]:
    """relay(script): a context with a script for launchers that runs `script` on forked ranks, and its environment."""
    return lambda script: relayed(server(), tmp_path_factory.mktemp("relay"), script)
