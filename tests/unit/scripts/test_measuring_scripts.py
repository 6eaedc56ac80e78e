"""gold_recall.py, curves.py and bench/end_to_end.py on runs of the tiny backbone."""

import csv
import json

import pytest
import torch
from calling import call
from matplotlib import pyplot

import eval as evaluating
import train as training
from breviary.report.curves import draw_curves, read_curve
from ram.segments import select_segments
from scripts import curves, gold_recall
from scripts.bench import compress, end_to_end

RAM = [
    "compressor=ram",
    "compressor.encoder_layers=2",
    "compressor.segment_size=8",
    "backbone.layers=4",
    "objective=answer_and_copy",
    "train.steps=3",
    "train.batch_size=2",
    "train.log_every=1",
    "train.eval_examples=4",
    "eval_batch_size=2",
    "generation.max_new_tokens=2",
]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    assert call(monkeypatch, tmp_path, training, *RAM) == 0, capsys.readouterr().err
    [folder] = (tmp_path / "outputs" / "default").iterdir()
    return folder


def test_recall_of_gold_segments(run, tmp_path):
    file = tmp_path / "recall.json"
    gold_recall.main(
        [
            str(run),
            "--examples",
            "12",
            "--ratios",
            "1",
            "2",
            "100",
            "--output",
            str(file),
            f"paths.cache={tmp_path}/cache",
        ]
    )
    found = json.loads(file.read_text())
    rows = {row["ranker"]: row["recall"] for row in found["rows"]}
    assert list(rows) == ["ram", "ram (untrained)", "BM25", "chance", "best possible"]
    assert all(recall["1"]["value"] == 1 for recall in rows.values())  # everything is kept
    best = rows["best possible"]
    assert best["2"]["value"] == 1 and all(best["100"]["value"] >= recall["100"]["value"] for recall in rows.values())
    over = found["rows"][0]["over"]
    assert list(over) == ["ram (untrained)", "BM25"] and all("over" not in row for row in found["rows"][1:])
    for other, differences in over.items():
        assert differences["1"] == {"value": 0, "low": 0, "high": 0}
        assert differences["2"]["value"] == pytest.approx(rows["ram"]["2"]["value"] - rows[other]["2"]["value"])
        assert differences["2"]["low"] <= differences["2"]["value"] <= differences["2"]["high"]
    # The name asked for stands in the gold sentence alone, and one segment is always kept.
    assert rows["BM25"]["2"]["value"] > rows["chance"]["2"]["value"] and rows["BM25"]["100"]["value"] > 0
    assert all(recall["100"]["low"] <= recall["100"]["value"] <= recall["100"]["high"] for recall in rows.values())


def test_a_key_that_only_the_run_has_is_set_as_any_other(run, monkeypatch, tmp_path, capsys):
    """compressor.keep is no key of what eval.py composes before it knows the run."""
    words = [f"run={run}", "examples=2", "baselines=[]", "compressor.keep=none", "compressor.ratio=2"]
    assert call(monkeypatch, tmp_path, evaluating, *words) == 0, capsys.readouterr().err
    [file] = run.glob("eval/*/*/results.json")
    assert {key: json.loads(file.read_text())["config"]["compressor"][key] for key in ("keep", "ratio")} == {
        "keep": "none",
        "ratio": 2,
    }
    assert call(monkeypatch, tmp_path, evaluating, f"run={run}", "compressor.kep=none") == 2
    assert "the nearest right one is compressor.keep" in capsys.readouterr().err
    gold_recall.main([str(run), "--examples", "2", "compressor.keep=none", f"paths.cache={tmp_path}/cache"])


def test_recall_counts_gold_segments_that_are_kept():
    relevance, gold = torch.tensor([[0.9, 0.1, 0.8, 0.7]]), torch.tensor([[True, True, False, True]])
    lengths = torch.full((1, 4), 8)
    assert gold_recall.recalls(relevance, gold, lengths, [1, 2, 9]) == {
        1: 1.0,
        2: pytest.approx(1 / 3),
        9: pytest.approx(1 / 3),
    }
    assert select_segments(relevance, lengths, 4.0).tolist() == [[True, False, False, False]]


def test_a_run_that_ranks_no_segments_is_refused(monkeypatch, tmp_path, capsys):
    words = ["compressor=mean_pool", *RAM[1:2], *RAM[3:]]
    assert call(monkeypatch, tmp_path, training, *words) == 0, capsys.readouterr().err
    [folder] = (tmp_path / "outputs" / "default").iterdir()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        gold_recall.main([str(folder)])
    assert ended.value.code == 2 and "ranks no segments" in capsys.readouterr().err


def test_further_readers_are_refused(run, capsys):
    with pytest.raises(SystemExit) as ended:
        gold_recall.main([str(run), "variants=[{compressor.ratio: 8}]"])
    assert ended.value.code == 2
    assert "variants=[{'compressor.ratio': 8}]: name further runs, or call this again" in capsys.readouterr().err


def test_curves_hold_every_logged_number(run, tmp_path, capsys):
    curves.main([str(run), "--output", str(tmp_path / "curves.png"), "--level", "decoder=alone=3.5"])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "curves.csv").open()))
    steps = [row for row in rows if row["loss"]]
    assert [row["examples"] for row in steps] == ["2", "4", "6"]
    for row in steps:
        terms = sum(float(row[term]) for term in ("answer", "copy", "contrastive"))
        assert terms == pytest.approx(float(row["loss"]), rel=1e-3)
    assert any(row["eval_nll"] for row in rows)
    for words in ([str(tmp_path)], [str(run), "--level", "3.5"], [str(run), "--level", "decoder=nan"]):
        with pytest.raises(SystemExit) as ended:
            curves.main(words)
        assert ended.value.code == 2
    assert "--level 'decoder=nan': must be NAME=NATS" in capsys.readouterr().err


def test_a_level_is_drawn_where_it_lies(monkeypatch, run, tmp_path):
    assert curves.parse_level("decoder=alone=3.5") == ("decoder=alone", 3.5)
    drawn = {}
    monkeypatch.setattr(pyplot.Axes, "axhline", lambda axis, y, **style: drawn.update({style["label"]: y}))
    draw_curves(tmp_path / "curves.png", {"run": read_curve(run)}, {"decoder alone": 3.5})
    assert drawn == {"decoder alone": 3.5}


def test_every_reader_is_timed_beside_full_context(monkeypatch, tmp_path, capsys):
    """The benchmark's rows: one for each ratio that a reader can be asked for, slots and both times as they must be."""
    file = tmp_path / "end_to_end.json"
    monkeypatch.setattr(
        "sys.argv",
        [
            "end_to_end.py",
            "--backbone",
            "tiny",
            "--dtype",
            "float32",
            "--lengths",
            "90",
            "--runs",
            "1",
            "--output",
            str(file),
            "--readers",
            "comet",
            "no_context",
            "mean_pool-depth",
            "icae",
            "--keys",
            "backbone.layers=9",
        ],
    )
    with torch.no_grad():
        end_to_end.main()
    rows = json.loads(file.read_text())["rows"]
    context = 90 - compress.QUESTION
    assert [(row["reader"], row["ratio"]) for row in rows] == [
        ("comet", None),
        ("no_context", None),
        ("mean_pool-depth", 4),
        ("mean_pool-depth", 8),
        ("icae", 4),
        ("icae", 8),
    ]
    assert [row["slots"] for row in rows[:4]] == [
        context,
        0,
        -(-context // 4),
        -(-context // 8),
    ]  # one chunk: all tokens
    assert all(0 < row["ours_1_s"] < row["ours_32_s"] and 0 < row["full_1_s"] < row["full_32_s"] for row in rows)
    assert len({row["full_32_s"] for row in rows}) == 1 and "mean_pool-depth" in capsys.readouterr().out
