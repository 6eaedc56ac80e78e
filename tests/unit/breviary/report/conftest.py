"""Evaluated readers, and the page that report.py writes of them."""

import pytest
from report_pages import Page, page_of, write_readers


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return write_readers(tmp_path_factory.mktemp("readers"))


@pytest.fixture(scope="module")
def written(readers, tmp_path_factory):
    """(the page's file, the page) of the four readers."""
    file = page_of(readers, tmp_path_factory.mktemp("page"), skipped=["a run: not finished"])
    return file, Page(file.read_text())
