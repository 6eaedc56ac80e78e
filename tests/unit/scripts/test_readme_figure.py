"""scripts/readme_figure.py draws the numbers of the committed results, and refuses results that differ in setting."""

import csv
import json
import shutil

import pytest

from breviary.runtime.checkout import ROOT
from scripts.readme_figure import CURVES, MARKS, main

RESULTS = ROOT / "results"


def rows_of(file, panel):
    with open(file, newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["panel"] == panel]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The figure, drawn into an empty folder."""
    file = tmp_path_factory.mktemp("figure") / "images" / "overview.png"
    main(["--output", str(file)])
    return file


def test_the_committed_figure_is_up_to_date(drawn):
    committed = ROOT / "docs" / "images" / "overview.csv"
    assert drawn.with_suffix(".csv").read_text() == committed.read_text()
    assert drawn.stat().st_size > 10_000 and committed.with_suffix(".png").is_file()


def test_quality_is_that_of_the_result_files(drawn):
    rows = rows_of(drawn.with_suffix(".csv"), "quality")
    assert [row["reader"] for row in rows] == list(MARKS)
    for row in rows:
        results = json.loads((RESULTS / "ram_small" / row["source"]).read_text())
        f1 = results["metrics"]["f1"]
        assert [float(row[key]) for key in ("f1", "f1_low", "f1_high")] == [f1["value"], f1["low"], f1["high"]]
        assert float(row["memory_bytes"]) == results["memory_bytes"] and int(row["n"]) == results["n"] == 100


def test_speed_is_that_of_the_benchmark(drawn):
    rows = rows_of(drawn.with_suffix(".csv"), "speed")
    assert {row["reader"] for row in rows} == set(CURVES)
    for row in rows:
        measured = json.loads((RESULTS / "bench" / row["source"]).read_text())
        [one] = [
            one
            for one in measured["rows"]
            if (one["reader"], one["tokens"]) == (CURVES[row["reader"]].reader, int(row["context_tokens"]))
        ]
        assert float(row["speedup"]) == one["speedup_1"] and float(row["first_token_s"]) == one["ours_1_s"]
        assert int(row["runs"]) == one.get("runs", measured.get("runs"))


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("ram_small/full_context.json", {"n": 99}, "evaluated on different questions"),
        ("bench/end_to_end_16k.json", {"dtype": "bfloat16"}, "different backbones or dtypes"),
        ("bench/end_to_end.json", {"rows": []}, "no measurement of CoMeT, ICAE 8x"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(tmp_path, capsys, file, change, message):
    for folder in ("ram_small", "bench"):
        (tmp_path / folder).mkdir()
        for source in (RESULTS / folder).glob("*.json"):
            shutil.copy(source, tmp_path / folder)
    changed = json.loads((tmp_path / file).read_text()) | change
    (tmp_path / file).write_text(json.dumps(changed))
    with pytest.raises(SystemExit) as left:
        main(["--results", str(tmp_path), "--output", str(tmp_path / "figure.png")])
    assert left.value.code == 2 and message in capsys.readouterr().err
