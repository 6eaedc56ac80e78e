"""Measured tables: rows from configuration to files."""

import json
from pathlib import Path

import pytest
from omegaconf import open_dict

from breviary.evaluation.resolve import compose_evaluation
from breviary.evaluation.session import EvaluationSession
from breviary.report.tables.measured import (
    evaluate_part,
    is_measured,
    load_measured_table,
    part_command,
    part_rows,
    part_words,
    row_variant,
    run_parts,
    write_part,
)
from breviary.report.tables.trainings import Tools
from data.text_pipeline import TEXT

TABLE = """
title: Test
notes: [one note]
readers:
  full: {title: full context, kind: bound, question: null, variant: {compressor: full_context}}
  snapkv: {title: SnapKV, kind: cache, question: known, variant: {compressor: snapkv}}
  truncate: {title: both ends, kind: text, question: unknown, variant: {compressor: truncate}}
parts:
  tiny:
    title: Tiny
    backbone: tiny
    train: []
    settings: {compressor: full_context, reader: full_context, backbone: tiny, examples: 4}
    rows: {1: [full], 4: [snapkv, truncate], 8: [snapkv]}
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE)
    return path


def evaluate(words, variants):
    cfg = compose_evaluation(words)
    with open_dict(cfg):
        cfg.variants = variants
    return EvaluationSession(TEXT).evaluate(cfg)


def test_a_part_becomes_files(table, tmp_path):
    loaded = load_measured_table(str(table))
    [part] = loaded["parts"]
    words = part_words(part, str(tmp_path / "outputs"))
    results, failures = evaluate_part(loaded, part, words, evaluate, tmp_path / "log")
    assert failures == [], (tmp_path / "log").read_text()
    rows = part_rows(loaded, part, results)
    assert [(row["reader"], row["ratio"]) for row in rows] == [
        ("full context", 1),
        ("SnapKV", 4),
        ("both ends", 4),
        ("SnapKV", 8),
    ]
    assert rows[0]["f1_minus_first"] is None and rows[1]["f1_minus_first_low"] <= rows[1]["f1_minus_first_high"]
    assert rows[3]["memory_bytes"] < rows[1]["memory_bytes"] < rows[0]["memory_bytes"]
    assert all(row["training"] == "untrained" and row["n"] == 4 for row in rows)
    files = write_part(tmp_path / "written", loaded, part, rows)
    assert [file.name for file in files] == [f"tiny.{end}" for end in ("json", "png", "md", "csv", "tex", "html")]
    assert json.loads(files[0].read_text())["rows"][1]["reader"] == "SnapKV"
    assert "| 8x | SnapKV (untrained) | known |" in files[2].read_text() and "- one note" in files[2].read_text()
    assert files[1].stat().st_size > 5000 and "<td" in files[5].read_text()


def test_a_part_trains_what_it_needs_and_a_failed_row_costs_itself_alone(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table.write_text(TABLE.replace("train: []", "train: [[experiment=x]]").replace("examples: 4}", "run: outputs/x}"))
    loaded, printed, calls = load_measured_table(str(table)), [], []

    def failing(words, variants):
        calls.append((words[-3], len(variants)))
        if {"compressor": "truncate"} in variants:
            raise RuntimeError("no memory left")
        return [row(number) for number in range(len(variants) + 1)]

    def row(number):
        folder = tmp_path / f"results{number}"
        folder.mkdir(exist_ok=True)
        (folder / "predictions.jsonl").write_text("")
        return {"folder": str(folder)}

    tools = Tools(None, lambda words: Path("outputs/x/run"), failing, None, printed.append)
    monkeypatch.setattr("breviary.report.tables.measured.part_rows", lambda table, part, results: results)
    monkeypatch.setattr("breviary.report.tables.measured.write_part", lambda *given: [given[2:]])
    [(part, rows, failures)] = run_parts(loaded, tmp_path / "files", "outputs", tools)
    assert [one is None for one in rows] == [False, False, True, False]
    [failure] = failures
    assert failure.startswith("both ends at 4x failed: no memory left; log: ")
    assert calls == [("run=outputs/x/run", 4), *[("run=outputs/x/run", 1)] * 4]


def test_rows_name_their_variant(table):
    loaded = load_measured_table(str(table))
    assert row_variant(loaded, "snapkv", 4) == {"compressor": "snapkv"}
    assert row_variant(loaded, "snapkv", 8) == {"compressor": "snapkv", "compressor.ratio": 8}
    assert "{compressor: snapkv, compressor.ratio: 8}" in part_command(loaded, loaded["parts"][0], "outputs")


def test_the_committed_table_is_measured_and_complete():
    assert is_measured("alternatives") and is_measured("ruler") and not is_measured("comi_main")
    loaded = load_measured_table("alternatives")
    assert {reader for part in loaded["parts"] for reader, _ in part.rows} == loaded["readers"].keys()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: cache", "kind: cash", "readers.snapkv.kind=cash: allowed are bound"),
        ("[snapkv, truncate]", "[snapkw]", r"rows names \['snapkw'\]"),
        ("    train: []\n", "", r"parts.tiny: missing \['train'\]"),
    ],
)
def test_wrong_tables_are_refused(table, old, new, message):
    table.write_text(TABLE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_measured_table(str(table))
