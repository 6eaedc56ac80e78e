"""Lowest and newest versions for `make test-lowest` and `make test-newest`."""

import pytest

from tests.requirements import PROJECT, requirements

TEXT = """
[project]
dependencies = ["torch >= 2.6, <2.14", "bm25s>=0.2"]
[project.optional-dependencies]
test = ["pytest>=8"]
"""


def test_lowest_is_the_lower_bound():
    assert requirements(TEXT, "lowest") == ["torch==2.6", "bm25s==0.2", "pytest>=8"]


def test_newest_has_no_bound():
    assert requirements(TEXT, "newest") == ["torch", "bm25s", "pytest>=8"]


def test_a_dependency_without_a_lower_bound_is_named():
    with pytest.raises(ValueError, match="torch<3: a dependency needs a lower bound"):
        requirements(TEXT.replace("torch >= 2.6, <2.14", "torch<3"), "lowest")


def test_this_project_has_lower_bounds():
    assert any(line.startswith("transformers==") for line in requirements(PROJECT.read_text(), "lowest"))
