"""What the page of report.py shows: rankings, differences, heat maps, curves, maps, provenance."""

import json
import re

import numpy as np
import pytest
from evaluated import CONDITIONS, prediction, write_reader
from report_pages import Page, Row, a_card, groups_of, page_of

from breviary.evaluation.comparison import EvaluatedReader, paired_differences
from breviary.evaluation.statistics import holm_correction
from breviary.report.page import runs as page_runs
from breviary.report.page.breakdown import heat_map, joint_maps, length_bins, position_bins
from breviary.report.page.charts import AXES, curve_chart, scatter, spread
from breviary.report.page.differences import check_reference, compare, reference_of
from breviary.report.page.provenance import NOT_RECORDED, provenance
from breviary.report.page.ranking import overview, ranking
from breviary.report.page.runs import reading_maps, training_curves
from breviary.report.reading_map_cards import CARDS, read_cards, write_cards

# ------------------------------------------------------------------ rows and tables


def test_the_ranking_is_by_the_metric_best_first(readers):
    [group] = groups_of(readers)
    table = ranking(group)
    assert (group.metric, group.title) == ("f1", "F1")
    assert [row["reader"].split(" (")[0] for row in table["rows"]] == [
        "full_context",
        "snapkv",
        "snapkv, ratio=8",
        "no_context",
    ]
    assert [row["rank"] for row in table["rows"]] == [1, 2, 3, 4]
    columns = [column["title"] for column in table["columns"]]
    assert columns[0] == "F1" and {"EM", "ratio", "memory", "first token", "decode", "n"} <= set(columns)
    first = dict(zip(columns, table["rows"][0]["cells"]))
    assert first["F1"]["text"] == ".88" and first["F1"]["sort"] == pytest.approx(0.875)
    assert re.fullmatch(r"\[\.\d\d, (\.\d\d|1\.00)\]", first["F1"]["spread"])
    assert first["first token"]["text"] == "121 ms" and first["first token"]["sort"] == 121
    orders = {column["title"]: column["first"] for column in table["columns"]}
    assert orders["F1"] == "descending" and orders["NLL/token"] == orders["memory"] == "ascending"


def test_lower_is_better_for_losses(readers):
    [group] = groups_of(readers, "nll")
    assert group.rows[0].row["reader"].startswith("full_context") and ranking(group)["ascending"]


def test_budgets_of_one_reader_are_one_line(readers):
    [group] = groups_of(readers)
    assert group.lines == ["full_context (untrained)", "snapkv (untrained)", "no_context (untrained)"]
    chart = scatter(group, AXES[0])
    assert [point["number"] for point in chart["points"]] == [2, 2] and len(chart["paths"]) == 1
    assert [level["number"] for level in chart["levels"]] == [1, 3]
    left, right = chart["points"]
    assert left["x"] < right["x"] and left["y"] < right["y"] and left["high"] <= left["y"] <= left["low"]
    assert "snapkv (untrained): F1 .62" in left["note"] and "4.0x" in left["note"]
    assert len(scatter(group, AXES[1])["points"]) == 3 and len(scatter(group, AXES[2])["points"]) == 4


def test_untrained_readers_of_other_settings_are_rows_of_their_own(tmp_path):
    """The newest does not stand for both; full context has no such settings."""
    for number, layer in enumerate((9, 18)):
        conditions = CONDITIONS | {"compressor": {"_target_": "pkg.Attention", "layer": layer, "ratio": 4}}
        for reader in ("attention", "full_context"):
            write_reader(tmp_path / f"{reader}{number}", reader, [prediction(0, number)], conditions=conditions)
    [group] = groups_of(tmp_path)
    assert sorted(one.row["reader"] for one in group.rows) == [
        "attention (untrained), layer=18",
        "attention (untrained), layer=9",
        "full_context (untrained)",
    ]


def test_points_are_moved_apart_as_little_as_needed():
    assert spread([10, 50], 13, 0, 100) == [10, 50]
    assert spread([50, 50, 10], 10, 0, 100) == [45, 55, 10]
    crowded = sorted(spread([0] * 20, 13, 0, 100))
    assert crowded[0] == 0 and crowded[-1] == 100 and min(np.diff(crowded)) > 5


def test_data_sets_have_a_table_of_readers_by_data_sets(tmp_path):
    for number, (data, value) in enumerate((("a", 0.5), ("b", 1.0))):
        dataset = {"_target_": "data.jsonl.Jsonl", "test": f"{data}.jsonl"}
        more = {"data_hash": data * 64, "conditions": CONDITIONS | {"dataset": dataset}}
        write_reader(tmp_path / data, "bm25", [prediction(i, value) for i in range(3)], **more)
        if number:
            write_reader(tmp_path / "other", "truncate", [prediction(i, 0.0) for i in range(3)], **more)
    groups = groups_of(tmp_path)
    assert [group.name for group in groups] == ["a.jsonl", "b.jsonl"]
    table = overview(groups)
    assert table["columns"] == ["mean of 2", "a.jsonl: F1", "b.jsonl: F1"]
    cells = {row["reader"]: [cell["text"] for cell in row["cells"]] for row in table["rows"]}
    assert cells == {"bm25 (untrained)": [".75", ".50", "1.00"], "truncate (untrained)": ["-", "-", ".00"]}
    assert "Readers by data sets" in Page(page_of(tmp_path, tmp_path / "page").read_text()).text
    assert overview(groups[:1]) is None
    groups[0].metric = "em"  # as in RULER: shares of 1 have a mean, whichever metric ranks each data set
    assert overview(groups)["columns"][0] == "mean of 2"
    groups[0].metric = "nll"
    assert overview(groups)["columns"][0] == "a.jsonl: NLL/token"


# ------------------------------------------------------------------ differences


def test_differences_are_those_of_compare_with_holms_correction(readers):
    [group] = groups_of(readers)
    found = compare(group)
    assert found["minus"] == "full_context (untrained)" and found["n"] == 8 and len(found["rows"]) == 3
    one, other = (EvaluatedReader("x", {}, group.rows[i].predictions[0]) for i in (1, 0))
    expected = paired_differences(one, other)["f1"]
    row = next(row for row in found["rows"] if row["reader"] == group.rows[1].label)
    assert {key: row[key] for key in expected} == expected
    assert [row["p_holm"] for row in found["rows"]] == holm_correction([row["p"] for row in found["rows"]])
    last = found["rows"][-1]  # no context: lower on all eight questions, two of the 256 swaps are as extreme
    assert last["p"] == pytest.approx(2 / 256) and last["p_holm"] == pytest.approx(6 / 256)
    assert last["verdict"] == "lower" and found["rows"][0]["verdict"] == "no difference shown"


def test_the_reference_can_be_chosen_and_others_questions_are_left_out(readers, tmp_path):
    [group] = groups_of(readers)
    assert reference_of(group, "snapkv").row["reader"].startswith("snapkv")
    with pytest.raises(ValueError, match="--against bm26: no reader has this name; there are: 'full_context"):
        check_reference([group], "bm26")
    assert reference_of(group, "bm26").row["reader"].startswith("full_context")  # another data set has it
    write_reader(tmp_path / "a", "bm25", [prediction(i, 1.0) for i in range(3)])
    write_reader(tmp_path / "b", "other", [prediction(i, 0.0) for i in range(1, 4)])
    [group] = groups_of(tmp_path)
    found = compare(group)
    assert found["minus"].startswith("bm25") and found["rows"] == [] and found["left_out"] == ["other (untrained)"]


# ------------------------------------------------------------------ heat maps


def test_scores_by_length_and_by_position_by_hand(readers):
    [group] = groups_of(readers)
    lengths, positions = length_bins(group), position_bins(group)
    assert [name for name, _ in lengths] == ["100 to 110", "120 to 130", "140 to 150", "160 to 170"]
    assert [(name, len(ids)) for name, ids in positions] == [
        ("0 to 20%", 2),
        ("20 to 40%", 1),
        ("40 to 60%", 2),
        ("60 to 80%", 1),
        ("80 to 100%", 2),
    ]
    found = heat_map(group, lengths)
    assert (found["worst"], found["best"]) == (".00", "1.00")
    values = {row["reader"]: [cell["value"] for cell in row["cells"]] for row in found["rows"]}
    assert values["snapkv (untrained)"] == [1.0, 0.25, 0.5, 0.75]
    levels = {row["reader"]: [cell["level"] for cell in row["cells"]] for row in found["rows"]}
    assert levels["full_context (untrained)"] == [7, 5, 7, 5] and levels["no_context (untrained)"] == [0, 0, 0, 2]
    grid = joint_maps(group, positions, lengths)[0]["rows"]
    assert [(cell["value"], cell["n"]) for cell in grid[0]["cells"]] == [(1.0, 2), (None, 0), (None, 0), (None, 0)]


def test_lengths_that_differ_much_have_bins_of_powers_of_two(tmp_path):
    sizes = (900, 1000, 2000, 4000, 4096, 16000)
    write_reader(tmp_path, "bm25", [prediction(i, 1.0, tokens) for i, tokens in enumerate(sizes)])
    [group] = groups_of(tmp_path)
    assert [name for name, _ in length_bins(group)] == ["900 to 1,000", "2,000", "4,000 to 4,096", "16,000"]
    assert position_bins(group) == [] and joint_maps(group, [], length_bins(group)) == []


# ------------------------------------------------------------------ runs: curves and reading maps


def test_curves_are_running_means_with_a_number_each(monkeypatch, tmp_path):
    logged = [{"kind": "training", "examples": 8 * i, "answer": 5.0 - i} for i in range(1, 4)]
    logged.append({"kind": "validation", "examples": 24, "eval_nll": 1.5})
    monkeypatch.setattr(page_runs, "read_curve", lambda run: logged if run.name == "a" else logged[:2])
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").touch()
    found = training_curves({tmp_path / name: Row("comi") for name in "ab"})
    assert [line["name"] for line in found["legend"]] == ["comi, a", "comi, b"]
    loss, validation = found["charts"]
    assert [point["number"] for point in loss["points"]] == [1, 2]
    assert [point["number"] for point in validation["points"]] == [1]
    assert "comi, a: nats per token 2.00 after 24 examples" in loss["description"]
    assert training_curves({tmp_path: Row("x")}) is None


def test_long_curves_keep_their_last_point():
    chart = curve_chart("t", "l", [("a", [(float(i), 1.0) for i in range(1001)])])
    assert chart["paths"][0]["d"].count("L") < 202 and "after 1,000 examples" in chart["description"]


def test_cards_are_read_as_they_were_written(tmp_path):
    cards = [a_card(), a_card("\u00e9 <b>\U0001f600 \x00 \ud800 half")]
    write_cards(tmp_path / CARDS, [("Reader", "ram")], cards)
    assert read_cards(tmp_path / CARDS) == ([("Reader", "ram")], cards)
    for text in ("{", "[]", json.dumps({"schema": 9}), json.dumps({"schema": 1, "facts": [], "cards": [{}]})):
        (tmp_path / CARDS).write_text(text)
        with pytest.raises(ValueError, match=f"{CARDS} is no reading map"):
            read_cards(tmp_path / CARDS)


def test_maps_of_runs_are_shown_and_the_others_named(tmp_path):
    with_map, without = tmp_path / "a b", tmp_path / "c"
    for folder in (with_map, without):
        folder.mkdir()
    write_cards(with_map / CARDS, [("Reader", "ram")], [a_card()] * 5)
    found = reading_maps({with_map: Row("ram"), without: Row("comi")}, 3)
    assert [len(one["cards"]) for one in found["maps"]] == [3] and found["kinds"] == {"kept", "skimmed"}
    assert len(found["missing"]) == 1 and found["missing"][0].endswith(f"scripts/reading_map.py {without} n=3")


# ------------------------------------------------------------------ provenance


def test_what_is_not_recorded_is_said(tmp_path):
    write_reader(tmp_path / "a", "bm25", [prediction(0, 1.0)], commit=None, hardware={}, conditions={})
    [group] = groups_of(tmp_path)
    facts = dict(provenance(group.rows[0])[0])
    for name in ("Prompt", "Chat format", "Example prompt", "Stop rule", "Command", "Commit", "Hardware"):
        assert facts[name] == NOT_RECORDED, name
    assert facts["Truncation"] == f"0 of 1 prompts cut\nrule {NOT_RECORDED}"


def test_each_number_states_what_made_it(tmp_path):
    record = {
        "example": "q0",
        "first": "It begins",
        "last": "it ends",
        "characters": 900,
        "sha256": "ab12",
        "tokens": {"context": 1200, "all": 1250},
        "context_tokens": {"mean": 1100.4, "max": 1300},
    }
    scoring = {"names": ["f1"], "details": {"f1": {"rule": "SQuAD", "version": 2}}, "aggregates": {}}
    more = {"prompt": record, "scoring": scoring, "command": "python eval.py x"}
    write_reader(tmp_path / "a", "bm25", [prediction(0, 1.0)], **more)
    [group] = groups_of(tmp_path)
    facts = dict(provenance(group.rows[0])[0])
    assert facts["Prompt of q0"] == "It begins\n[...]\nit ends" and "context 1,200" in facts["Its tokens"]
    assert "template: '\\nQuestion: {question}'" in facts["Prompt"] and facts["Chat format"] == "yes"
    assert facts["Stop rule"] == "stop: ['\\n']\nmax_new_tokens: 16"
    assert facts["Truncation"] == "0 of 1 prompts cut\nmax_context_tokens: null\ntruncation: 'middle'"
    assert facts["Command"] == "python eval.py x" and facts["Commit"] == "0123abcd, no uncommitted changes"
    assert "f1: rule SQuAD, version 2" in facts["Metric versions"] and "cores: 2" in facts["Hardware"]
