"""CONTRIBUTING.md: the table "Where to edit" names functions, classes and constants that are in the named files."""

import re

import pytest

from breviary.runtime.checkout import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## Where to edit\n")[2].partition("\n## ")[0]
NAMED = re.findall(r"\[`[^`]+`\]\(([^)]+\.py)\): ((?:(?:, | or | and )?`\w+`)+)", TABLE)
PLACES = [(file, name) for file, names in NAMED for name in re.findall(r"`(\w+)`", names)]


def test_the_table_names_places():
    assert len(PLACES) >= 10 and ("comi/mig.py", "merge_weights") in PLACES


@pytest.mark.parametrize("file, name", PLACES)
def test_a_named_place_exists(file, name):
    code = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(def |class )?{name}\b", code, re.MULTILINE), f"{file} defines no {name}"
