"""One server of ranks for the whole folder; what is trained once is looked at by many tests."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from processes import endings, launch, server


@pytest.fixture(scope="session")
def ranks(tmp_path_factory) -> Callable[..., str]:
    """ranks(world, function, *args): runs it on ranks that start in no time; gives rank 0's output."""
    return functools.partial(launch, server(), tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="session")
def ended(tmp_path_factory) -> Callable[..., dict[int, str]]:
    """ended(world, victim, function, *args): runs it on ranks that are to fail; gives {rank: output}."""
    return functools.partial(endings, server(), tmp_path_factory.mktemp("faults"))
