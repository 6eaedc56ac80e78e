"""Grids: readers by data set with their mean, and by the place of the gold passage."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from evaluated import prediction, write_reader
from hydra.errors import HydraException

from breviary.evaluation.results import read_results
from breviary.evaluation.statistics import mean_of_means
from breviary.report.tables.command import read_words
from breviary.report.tables.grid import run_grid
from breviary.report.tables.grid_form import is_grid, load_grid
from breviary.report.tables.measured import part_command
from breviary.report.tables.plan import find_device, measured_plan_lines
from breviary.report.tables.trainings import Tools
from data.ruler.tasks import TASKS

TABLE = """
title: Suite
notes: [one note]
readers:
  full: {title: full context, kind: bound, question: null, variant: {compressor: full_context}}
  snapkv: {title: SnapKV, kind: cache, question: known, variant: {compressor: snapkv}}
grid:
  by: dataset
  datasets:
    one: {title: first task, metrics: null, tokens: [100, 10, 5]}
    two: {title: second task, metrics: [f1], tokens: [100, 10, 5]}
  settings: {compressor: full_context, reader: full_context, backbone: tiny, examples: 4}
  rows: {1: [full], 4: [snapkv], 8: [snapkv]}
"""
SCORES = {"one": {1: (1, 1, 0, 1), 4: (1, 0, 0, 1), 8: (0, 0, 0, 0)}, "two": {1: (1, 1), 4: (1, 0), 8: (0, 0)}}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(TABLE)
    return path


@pytest.fixture
def evaluated(tmp_path):
    """(calls, evaluate): results of SCORES, the gold passage of question i at (i + .5) / 4."""
    calls = []

    def evaluate(words, variants):
        dataset = next(word for word in words if word.startswith("dataset=")).partition("=")[2]
        calls.append((dataset, len(variants)))
        return [result(dataset, variant.get("compressor.ratio", 4)) for variant in [{"compressor.ratio": 1}, *variants]]

    def result(dataset, ratio):
        folder = tmp_path / "results" / dataset / str(ratio)
        if not folder.exists():
            scores = SCORES[dataset][1 if ratio == 1 else ratio]
            rows = [prediction(i, f1, position=(i + 0.5) / 4) for i, f1 in enumerate(scores)]
            scoring = {"names": ["f1"]}
            write_reader(folder, "reader", rows, ratio, data_hash=dataset * 8, run=str(folder), scoring=scoring)
        return read_results(folder) | {"folder": str(folder)}

    return calls, evaluate


def made(table, tmp_path, evaluate):
    printed = []
    files = list(run_grid(table, tmp_path / "files", "outputs", Tools(None, None, evaluate, None, printed.append)))
    return {file.suffix: file for file in files}, "\n".join(printed)


def test_readers_by_data_set_and_their_mean(table, tmp_path, evaluated):
    calls, evaluate = evaluated
    loaded = load_grid(str(table))
    # In this test the row of full context is the variant of ratio 4 in the form: give it its own scores.
    loaded["readers"]["full"]["variant"] = {"compressor.ratio": 1}
    files, printed = made(loaded, tmp_path, evaluate)
    assert calls == [("one", 3), ("two", 3)]
    rows = json.loads(files[".json"].read_text())["rows"]
    means = {row["reader"]: row for row in rows if row["dataset"] == "mean of 2"}
    # Each data set counts alike, whatever its questions: (3/4 + 1) / 2, (1/2 + 1/2) / 2, 0.
    assert [means[name]["value"] for name in ("full context", "SnapKV, 4x", "SnapKV, 8x")] == [0.875, 0.5, 0]
    assert means["SnapKV, 4x"]["low"] < 0.5 < means["SnapKV, 4x"]["high"] and means["SnapKV, 8x"]["high"] > 0
    assert [row["value"] for row in rows if row["dataset"] == "one"] == [0.75, 0.5, 0]
    assert "| mean of 2 |  | .88 [" in files[".md"].read_text() and "minus full context" in printed
    assert "| first task | F1 | .75 [" in files[".md"].read_text() and "- one note" in files[".md"].read_text()
    assert len(list(csv.DictReader(files[".csv"].open()))) == len(rows) == 9
    assert files[".tex"].is_file() and "<td" in files[".html"].read_text()


def test_a_reader_that_fails_costs_itself_alone_and_the_mean_says_so(table, tmp_path, evaluated):
    _, evaluate = evaluated

    def failing(words, variants):
        if "dataset=two" in words and {"compressor": "snapkv", "compressor.ratio": 8} in variants:
            raise RuntimeError("no memory left")
        return evaluate(words, variants)

    files, printed = made(load_grid(str(table)), tmp_path, failing)
    assert "failed: two: SnapKV: no memory left; log: " in printed
    assert "the mean is over 1 of 2 data sets, those of every reader" in printed
    values = {(row["dataset"], row["reader"]): row["value"] for row in json.loads(files[".json"].read_text())["rows"]}
    assert values["two", "SnapKV, 4x"] == 0.5 and ("two", "SnapKV, 8x") not in values
    assert values["mean of 1", "SnapKV, 8x"] == 0


def test_scores_by_the_place_of_the_gold_passage(table, tmp_path, evaluated):
    table.write_text(TABLE.replace("by: dataset", "by: position").replace("metrics: null", "metrics: [f1, em]"))
    loaded = load_grid(str(table), wanted=["one"], only=["snapkv"])
    files, printed = made(loaded, tmp_path, evaluated[1])
    rows = json.loads(files[".json"].read_text())["rows"]
    places = {row["gold_at"]: row for row in rows if row["metric"] == "f1" and row["reader"] == "SnapKV, 4x"}
    assert {place: row["value"] for place, row in places.items()} == {
        "0 to 20%": 1,
        "20 to 40%": 0,
        "60 to 80%": 0,
        "80 to 100%": 1,
        "all": 0.5,
    }
    assert [row["n"] for row in places.values()] == [1, 1, 1, 1, 4] and "first task: EM" in printed
    assert "| 80 to 100% | 1.00 [" in files[".md"].read_text()


def test_runs_are_readers_too(table, tmp_path, evaluated):
    """run=RUN is a reader of its own where no row of the table is the same evaluation, compare=[RUN] another one."""
    other = write_reader(tmp_path / "other", "ram", [prediction(i, 1) for i in range(4)], scoring={"names": ["f1"]})
    (tmp_path / "run").mkdir()

    def evaluate(words, variants):
        assert not [word for word in words if word.startswith(("compressor=", "backbone="))]
        return [*evaluated[1](words, variants), read_results(other) | {"folder": str(other)}]

    loaded = load_grid(str(table), wanted=["one"], only=["snapkv"])
    loaded["parts"][0].words = ("run=outputs/x", "compare=[outputs/ram]")
    loaded["parts"][0].settings = {"dataset": "one"}
    files, _ = made(loaded, tmp_path, evaluate)
    names = [row["reader"] for row in json.loads(files[".json"].read_text())["rows"] if row["dataset"] == "one"]
    assert names == ["reader (untrained)", "SnapKV, 4x", "SnapKV, 8x", "ram (untrained)"]


def test_words_replace_settings(table):
    table.write_text(TABLE.replace("    one:", "    invented_facts:"))
    [one, _] = load_grid(str(table), ["backbone=smollm2_135m", "examples=2"])["parts"]
    command = part_command(load_grid(str(table)), one, "outputs")
    assert "backbone=smollm2_135m examples=2" in command and "backbone=tiny" not in command
    assert one.tokens == (100, 10, 5) and "compressor=full_context" in command and one.value("examples") == "2"
    for words, message in ((["dataset=nq"], "choose by --part invented_facts"), (["exmples=2"], "exmples")):
        with pytest.raises((ValueError, HydraException), match=message):  # both are user errors of a command line
            load_grid(str(table), words)
    for options, message in (
        ({"wanted": ["three"]}, "--part three: allowed are invented_facts, two"),
        ({"only": ["x"]}, "--only"),
    ):
        with pytest.raises(ValueError, match=message):
            load_grid(str(table), **options)
    table.write_text(TABLE.replace("by: dataset", "by: task"))
    with pytest.raises(ValueError, match="grid.by=task: allowed are dataset, position"):
        load_grid(str(table))


@pytest.mark.parametrize(("backbone", "hours"), [("tiny", "# not estimated"), ("smollm2_135m", "# about 1 minute")])
def test_the_plan_of_a_grid_is_its_evaluations(table, backbone, hours):
    table.write_text(TABLE.replace("    one:", "    invented_facts:"))
    loaded = load_grid(str(table), [f"backbone={backbone}", "examples=2"], ["invented_facts"])
    lines = measured_plan_lines(loaded, "outputs", find_device(None, "small"))
    assert lines[4] == hours and f"backbone={backbone} examples=2" in lines[5] and len(lines) == 6


def test_only_grids_take_settings():
    assert read_words(["ruler", "examples=2", "backbone=tiny"]) == (
        "ruler",
        None,
        None,
        ["examples=2", "backbone=tiny"],
    )
    with pytest.raises(ValueError, match="examples=2: no key of this command"):
        read_words(["alternatives", "examples=2"])


def test_the_committed_grids_are_complete():
    ruler = load_grid("ruler")
    assert [part.name for part in ruler["parts"]] == [f"ruler_{task}" for task in TASKS] and len(TASKS) == 13
    assert load_grid("lost_in_the_middle")["by"] == "position" and not is_grid("alternatives")
    assert all(Path(f"configs/dataset/{part.name}.yaml").is_file() for part in load_grid("lost_in_the_middle")["parts"])


def test_a_mean_of_means_weighs_data_sets_alike():
    ones = lambda scores: np.array([(score, 1) for score in scores], dtype=float)
    found = mean_of_means([ones([1, 1]), ones([0] * 30 + [1] * 10)], [None, None], 0, 1000)
    assert found["value"] == 0.625 and 0.55 < found["low"] < 0.625 < found["high"] < 0.7
    zero = mean_of_means([ones([0, 0]), ones([0] * 8)], [None, None], 0, 1000)
    assert zero["value"] == zero["low"] == 0 and 0.2 < zero["high"] < 0.3  # Wilson's, of ten questions
    same = mean_of_means([ones([0, 0]), ones([0] * 8)], [None, None], 0, 1000, are_differences=True)
    assert same["value"] == 0 and -0.3 < same["low"] == -same["high"] < -0.1  # Bonett and Price's
    # Questions of one context are resampled together: two contexts, so much less is known.
    shared = mean_of_means([ones([1, 1]), ones([0] * 20 + [1] * 20)], [None, np.repeat([0, 1], 20)], 0, 1000)
    assert (shared["low"], shared["high"]) == (0.5, 1)
