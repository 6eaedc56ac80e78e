"""Reports on run folders: grouping of seeds, labels, the points of the figure, the files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from breviary.evaluation.results import find_results
from breviary.evaluation.table import METRICS, row_label
from breviary.report.report_files import make_report
from breviary.report.sweep import figure_points, group_results, legend_texts, load_results, setting_row
from breviary.runtime.files import write_json
from scripts import report as script

BACKBONE = "SmolLM2-135M"


def put(
    root: Path,
    number: int,
    reader: str,
    value: float,
    ratio: float | None,
    seed: int | None,
    config: dict[str, Any] | None = None,
    data: str = "data1",
    evaluation: str = "0a1b",
    n: int = 200,
    **more: Any,
) -> Path:
    """Writes one evaluated reader in its own run folder; seed None = an untouched baseline, without configuration."""
    run = root / f"20260101T{number:06d}_{number:06x}"
    folder = run / "eval" / evaluation / reader.replace(" ", "_")
    if seed is not None:
        config = {
            "seed": seed,
            "reader": reader,
            "run": str(run),
            "name": run.name,
            "init_from": f"outputs/ae/{run.name}",
            "compressor": {"_target_": f"pkg.{reader.title()}", "ratio": ratio, "slots": None, "fine": True},
            "dataset": {
                "_target_": "data.jsonl.Jsonl",
                "train": "/somewhere/nq/train.jsonl.gz",
                "test": "/somewhere/nq/test.jsonl.gz",
            },
            "train": {"learning_rate": 0.001},
            **(config or {}),
        }
    write_json(
        folder / "results.json",
        {
            "schema": 1,
            "reader": reader,
            "n": n,
            "data_hash": data,
            "metrics": {name: {"value": value, "low": value - 0.05, "high": value + 0.04} for name in METRICS},
            "requested_ratio": ratio,
            "effective_ratio": None if ratio is None else ratio * 0.98,
            "memory_slots": 10.0,
            "memory_bytes": 10.0 * number,
            "truncated": 0,
            "peak_memory_bytes": 1,
            "commit": None,
            "dirty": None,
            "times": {"encode_ms": 1.0, "compress_ms": 1.0, "prefill_ms": 1.0, "decode_ms": float(number)},
            "hardware": {},
            "config": config,
            "run": str(run if seed is not None else folder),
            "backbone": BACKBONE,
            **more,
        },
    )
    return run


@pytest.fixture
def sweep(tmp_path) -> Path:
    """comi at 4x with three seeds and at 8x with one, mean_pool at 4x, and both untouched baselines beside each."""
    root = tmp_path / "sweep"
    places = [
        ("comi", 0.70, 4.0, 1),
        ("comi", 0.80, 4.0, 2),
        ("comi", 0.75, 4.0, 3),
        ("comi", 0.6, 8.0, 1),
        ("mean_pool", 0.5, 4.0, 1),
    ]
    for number, (reader, value, ratio, seed) in enumerate(places):
        put(root, number, reader, value, ratio, seed)
        put(root, number, "full_context", 0.9, 1.0, None)
        put(root, number, "no_context", 0.1, None, None)
    return root


def settings_of(root: Path, by: str | None = None):
    return group_results(load_results(find_results([str(root)])), by)


def labels(root: Path, by: str | None = None) -> list[str]:
    return [setting.label for setting in settings_of(root, by)[0]]


# ------------------------------------------------------------------ finding


def test_runs_are_found_by_folder_parent_and_glob_without_duplicates(sweep):
    run = sweep / "20260101T000000_000000"
    assert len(find_results([str(run)])) == 3
    assert len(find_results([str(sweep)])) == 15
    assert len(find_results([str(sweep / "*_00000[01]"), str(run), str(sweep / "*_00000[01]")])) == 6
    assert len(find_results([str(run / "eval/0a1b/comi/results.json")])) == 1


def test_folders_without_results_raise(tmp_path):
    (tmp_path / "20260101T000000_aaaaaa").mkdir()
    with pytest.raises(ValueError, match="no results.json below it"):
        find_results([str(tmp_path)])
    with pytest.raises(ValueError, match="no such folder"):
        find_results([str(tmp_path / "absent*")])


# ------------------------------------------------------------------ one setting, one row


def test_seeds_become_mean_and_standard_deviation(sweep):
    settings, notes = settings_of(sweep)
    rows = {(s.label, s.results[0]["requested_ratio"]): setting_row(s) for s in settings}
    assert list(rows) == [
        ("full_context (untrained)", 1.0),
        ("no_context (untrained)", None),
        ("comi", 4.0),
        ("comi", 8.0),
        ("mean_pool", 4.0),
    ]
    assert notes == []
    several, single = rows["comi", 4.0], rows["comi", 8.0]
    assert several["seeds"] == 3 and single["seeds"] == 1
    assert several["f1"] == pytest.approx(0.75)
    assert several["f1_std"] == pytest.approx(0.05)  # deviations .05, .05, 0; divided by 3 - 1
    assert several["f1_low"] is None and several["f1_high"] is None  # no interval over examples of a mean over seeds
    assert several["decode_ms"] == pytest.approx(1.0) and several["memory_bytes"] == pytest.approx(10.0)
    assert [Path(run).name for run in several["runs"]] == [f"20260101T{i:06d}_{i:06x}" for i in range(3)]
    assert [single[key] for key in ("f1", "f1_low", "f1_high")] == pytest.approx([0.6, 0.55, 0.64])
    assert single["f1_std"] is None


def test_untouched_baselines_of_many_runs_are_one_row(sweep):
    row = setting_row(settings_of(sweep)[0][0])
    assert row["seeds"] == 1 and row["f1"] == 0.9 and row["f1_low"] == pytest.approx(0.85)


def test_the_newest_result_of_a_setting_and_seed_counts(sweep):
    put(sweep, 50, "comi", 0.30, 8.0, 1)
    settings, notes = settings_of(sweep)
    value = [setting_row(s)["f1"] for s in settings if s.results[0]["requested_ratio"] == 8.0]
    assert value == [0.30] and notes == ["1 older results of the same setting and seed were left out"]


def test_other_differences_than_the_seed_make_rows_with_their_own_labels(sweep):
    put(sweep, 50, "comi", 0.30, 4.0, 1, {"train": {"learning_rate": 0.01}})
    assert labels(sweep) == [
        "full_context (untrained)",
        "no_context (untrained)",
        "comi, learning_rate=0.001",
        "comi, learning_rate=0.001",
        "comi, learning_rate=0.01",
        "mean_pool",
    ]
    rows = {s.label: setting_row(s) for s in settings_of(sweep)[0] if s.results[0]["requested_ratio"] == 4.0}
    assert rows["comi, learning_rate=0.001"]["seeds"] == 3 and rows["comi, learning_rate=0.01"]["f1"] == 0.30


def test_different_data_is_labelled_and_noted(sweep):
    put(sweep, 50, "comi", 0.30, 4.0, 1, {"dataset": {"test": "/somewhere/hotpotqa/test.jsonl.gz"}}, data="data2")
    put(sweep, 50, "full_context", 0.95, 1.0, None, data="data2")
    settings, notes = settings_of(sweep)
    assert {s.label for s in settings} == {
        "full_context (untrained), dataset=nq",
        "full_context (untrained), dataset=hotpotqa",
        "no_context (untrained)",
        "comi, dataset=nq",
        "comi, dataset=hotpotqa",
        "mean_pool",
    }
    assert notes == ["the rows were measured on 2 different sets of examples"]


def test_different_numbers_of_examples_are_different_settings(sweep):
    put(sweep, 0, "comi", 0.30, 4.0, 1, evaluation="ffff", n=50)
    assert {"comi, n=200", "comi, n=50"} <= set(labels(sweep))


def test_trained_and_untouched_baselines_get_distinct_labels(sweep):
    put(sweep, 60, "full_context", 0.95, 1.0, 1)
    assert {"full_context", "full_context (untrained)"} <= set(labels(sweep))


def test_a_number_of_slots_is_a_budget_like_a_ratio(tmp_path):
    for number, slots in enumerate((8, 16)):
        put(tmp_path, number, "icae", 0.5, None, 1, {"compressor": {"_target_": "x.Icae", "slots": slots}})
    assert labels(tmp_path) == ["icae", "icae"]


def test_by_labels_every_value_of_a_key(sweep):
    put(
        sweep,
        50,
        "comi",
        0.30,
        8.0,
        2,
        {"compressor": {"_target_": "pkg.Comi", "ratio": 8.0, "slots": None, "fine": False}},
    )
    assert set(labels(sweep, "compressor.fine")) == {
        "full_context (untrained)",
        "no_context (untrained)",
        "comi, fine=true",
        "comi, fine=false",
        "mean_pool, fine=true",
    }
    assert {"Mean_Pool", "full_context (untrained)"} <= set(labels(sweep, "compressor"))
    with pytest.raises(ValueError, match="--by compressor.fin: no run has this"):
        settings_of(sweep, "compressor.fin")


# ------------------------------------------------------------------ the figure and the files


def test_figure_csv_holds_the_points(sweep):
    folder = make_report([str(sweep)], metric="f1")
    with open(folder / "figure.csv", newline="") as file:
        points = list(csv.DictReader(file))
    assert [(p["line"], p["kind"]) for p in points] == [
        ("full_context (untrained)", "level"),
        ("no_context (untrained)", "level"),
        ("comi (steps unknown)", "line"),
        ("comi (steps unknown)", "line"),
        ("mean_pool (steps unknown)", "line"),
    ]
    several, single = points[2], points[3]
    assert float(several["effective_ratio"]) == pytest.approx(3.92) and several["seeds"] == "3"
    assert [float(several[key]) for key in ("low", "value", "high")] == pytest.approx([0.70, 0.75, 0.80])
    assert [float(single[key]) for key in ("effective_ratio", "low", "value", "high")] == pytest.approx(
        [7.84, 0.55, 0.6, 0.64]
    )
    assert points[1]["effective_ratio"] == ""


def test_a_line_states_the_training_of_all_its_points(sweep):
    """One line over ratios whose best checkpoints differ; an untrained compressor is another line."""
    for number, (ratio, steps) in enumerate(((4.0, 200), (8.0, 400))):
        training = {"trained": True, "steps": steps, "examples": 8 * steps, "data": "nq", "init_from": None}
        put(sweep, 80 + number, "icae", 0.5, ratio, 1, training=training)
    put(sweep, 90, "icae", 0.1, 4.0, None)
    settings, _ = settings_of(sweep)
    legend = [text for label, text in legend_texts(settings).items() if label.startswith("icae")]
    assert sorted(legend) == ["icae (200 to 400 steps, 1,600 to 3,200 examples)", "icae (untrained)"]
    rows = [setting_row(s) for s in settings if s.label == "icae"]
    assert [row_label(row) for row in rows] == ["icae (200 steps, 1,600 examples)", "icae (400 steps, 3,200 examples)"]


def test_lines_of_different_backbones_and_training_sets_name_them(sweep):
    training = {"trained": True, "steps": 1, "examples": 1, "data": "hotpotqa", "init_from": None}
    put(sweep, 80, "icae", 0.5, 4.0, 1, training=training, backbone="Qwen3-4B")
    legend = legend_texts(settings_of(sweep)[0])
    assert legend["icae"] == "icae (1 step, 1 example), Qwen3-4B, trained on hotpotqa"
    assert legend["mean_pool"] == f"mean_pool (steps unknown), {BACKBONE}, trained on nq"


def test_the_report_is_written_beside_the_runs(sweep, capsys):
    folder = make_report([str(sweep)])
    assert folder == sweep.resolve() / "report"
    assert sorted(path.name for path in folder.iterdir()) == [
        "figure.csv",
        "figure.png",
        "report.csv",
        "report.html",
        "report.json",
        "report.md",
    ]
    report = json.loads((folder / "report.json").read_text())
    assert report["title"] == f"nq, {BACKBONE}" and len(report["rows"]) == 5
    with open(folder / "report.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["reader"] for row in table] == [row["reader"] for row in report["rows"]]
    assert float(table[2]["f1"]) == pytest.approx(0.75) and len(table[2]["runs"].split()) == 3
    text = (folder / "report.md").read_text()
    assert "| comi (steps unknown) | 3.9x | .750 ± .050 |" in text and "(figure.png)" in text
    printed = capsys.readouterr().out
    assert ".750 ± .050" in printed and "of 3 seeds: mean ± standard deviation" in printed


def test_the_figure_uses_the_colours_of_its_lines(sweep):
    pixels = imread(make_report([str(sweep)]) / "figure.png")[..., :3]
    height, width = pixels.shape[:2]
    assert height > 600 and width > 1000
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # comi, mean_pool
        assert (np.abs(pixels - np.array(colour) / 255).max(-1) < 0.02).sum() > 50, colour


@pytest.mark.parametrize("readers", [("no_context",), ("comi",), ("full_context", "comi")])
def test_any_subset_of_readers_can_be_drawn(tmp_path, readers):
    for reader in readers:
        put(tmp_path, 1, reader, 0.5, {"no_context": None, "full_context": 1.0}.get(reader, 4.0), 1)
    folder = make_report([str(tmp_path)], tmp_path / "out", metric="nll")
    assert folder == tmp_path / "out" and (folder / "figure.png").stat().st_size > 5000


def test_readers_without_the_metric_have_no_point(sweep):
    settings, _ = settings_of(sweep)
    for result in settings[-1].results:
        del result["metrics"]["rouge_l"]
    assert "mean_pool (steps unknown)" not in {point["line"] for point in figure_points(settings, "rouge_l")}


def test_what_cannot_be_used_costs_one_line(sweep, tmp_path, capsys):
    unfinished, damaged, broken = (sweep / f"20270101T00000{i}_00000{i}" for i in range(3))
    for folder in (unfinished, broken):
        folder.mkdir()
        (folder / "config.yaml").write_text("schema: 3\nname: x\n")
    (broken / "finished").touch()
    (damaged / "eval").mkdir(parents=True)
    (damaged / "eval/results.json").write_text("{")
    folder = make_report([str(sweep)], tmp_path / "before", skipped=script.evaluate_missing([str(sweep)], None))
    script.main([str(sweep), str(tmp_path / "absent"), "--output", str(tmp_path / "out")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped ")]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert len(report["rows"]) == len(json.loads((folder / "report.json").read_text())["rows"]) == 5
    assert len(lines) == 3 + 4 and [f"skipped {text}" for text in report["skipped"]] == lines[3:]
    for folder, reason in (
        (unfinished, f"not finished; resume={unfinished} continues it"),
        (broken, "not a run's configuration"),
        (damaged, "is not JSON"),
        (tmp_path / "absent", "no such folder"),
    ):
        [line] = [line for line in lines[3:] if str(folder) in line]
        assert reason in line


def test_a_sweep_stands_for_its_runs(sweep, tmp_path):
    home = tmp_path / "outputs/sweeps/ratios"
    for run in sorted(sweep.iterdir())[:2]:
        write_json(home / f"{run.name}.run.json", {"run": f"../../../sweep/{run.name}", "settings": []})
    folder = make_report([str(home)])
    assert folder == home / "report"
    rows = json.loads((folder / "report.json").read_text())["rows"]
    assert [row["seeds"] for row in rows if row["reader"].startswith("comi")] == [2]
    assert len(find_results([str(sweep), str(home)])) == len(find_results([str(sweep)]))


def test_own_files_have_their_names_as_labels(sweep):
    put(sweep, 50, "comi", 0.30, 4.0, 1, {"dataset": {"_target_": "data.jsonl.Jsonl", "test": "mine.jsonl"}}, "data2")
    assert {"comi, dataset=nq", "comi, dataset=mine.jsonl"} <= set(labels(sweep))


def test_the_script_exits_with_code_2_and_a_message(sweep, tmp_path, capsys):
    script.main([str(sweep), "--output", str(tmp_path / "out"), "--metric", "em"])
    assert capsys.readouterr().out.splitlines()[-2] == f"report {tmp_path / 'out'}"
    for arguments, message in (
        ([str(tmp_path / "absent")], "no such folder"),
        ([str(sweep), "--metric", "blue"], "--metric blue: allowed are em"),
        ([str(sweep), "--metric", "bleu"], "--metric bleu: none of the 15 results has it"),
        ([str(sweep), "--by", "x"], "--by x"),
    ):
        with pytest.raises(SystemExit) as stop:
            script.main(arguments)
        assert stop.value.code == 2 and message in capsys.readouterr().err
