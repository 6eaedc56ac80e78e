"""The demo with two steps per reader on the tiny backbone."""

import json
import sys

from scripts import demo

OVERRIDES = [
    "backbone=tiny",
    "train.steps=2",
    "train.batch_size=2",
    "eval_batch_size=4",
    "dataset.facts=4",
    "dataset.train_size=8",
    "dataset.validation_size=4",
    "dataset.test_size=4",
]


def test_the_demo_prints_and_writes_its_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "get_backbone", lambda name: None)  # the tiny backbone needs no download
    paths = [f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}/cache"]
    monkeypatch.setattr(sys, "argv", ["demo.py", *OVERRIDES, *paths])
    demo.main()
    rows = json.loads((tmp_path / "outputs" / "demo" / "table.json").read_text())
    assert [row["reader"] for row in rows] == list(demo.READERS)
    assert all(
        {"em", "em_low", "em_high", "nll", "nll_low", "nll_high", "f1", "effective_ratio"} <= row.keys() for row in rows
    )
    assert "Five readers after 2 steps" in capsys.readouterr().out
