"""scripts/bench/loss_memory.py and training_step.py at toy size."""

import json

import pytest
import torch

from breviary.backbones import head
from breviary.evaluation.bench import rows
from breviary.evaluation.bench.training_step import _floor, record_passes
from breviary.evaluation.timing import random_batch, reader_from_overrides
from scripts.bench import loss_memory, training_step

TINY = ["--backbone", "tiny", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def no_processes(monkeypatch):
    """The real one starts processes."""
    monkeypatch.setattr(rows, "environment", lambda: {"commit": "x", "hardware": {}, "versions": {}})


def test_loss_memory_compares_all_rows_with_one_chunk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(head, "CHUNK_LOGITS", 2**18)
    file = tmp_path / "loss_memory.json"
    options = ["--vocabulary", "2048", "--width", "8", "--tokens", "1024", "--dtypes", "float32", "--output", str(file)]
    loss_memory.main(options)
    content = json.loads(file.read_text())
    assert [(row["loss"], row["head"]) for row in content["rows"]] == [
        ("answer", "frozen"),
        ("answer", "trained"),
        ("distill", "frozen"),
    ]
    for row in content["rows"]:
        assert row["chunk_rows"] == 128 and row["logits_mib"] == 1 and 0 < row["ours_mib"] < row["plain_mib"]
    assert "distill" in capsys.readouterr().out
    monkeypatch.setattr(loss_memory, "measure_loss_memory", None)  # finished rows are not measured again
    loss_memory.main(options)


def test_training_step_writes_every_turn_and_repeats_no_finished_row(tmp_path, monkeypatch, capsys):
    file = tmp_path / "training_step.json"
    options = [*TINY, "--lengths", "64", "--rows", "2", "--readers", "mean_pool-depth", "comet", "--output", str(file)]
    options += ["--keys", "backbone.layers=9"]
    training_step.main([*options, "--runs", "1"])
    written = json.loads(file.read_text())["rows"]
    assert [(row["reader"], row["batch"], row["tokens"], row["turns"]) for row in written] == [
        ("mean_pool-depth", 2, 64, 1),
        ("comet", 2, 64, 1),
    ]
    assert all(row["ratio"] > 0 and row["ours_cpu_s"] > 0 for row in written) and "comet" in capsys.readouterr().out
    monkeypatch.setattr(training_step, "measure_step", None)
    training_step.main([*options, "--runs", "1"])


def test_passes_of_a_join_at_depth_are_counted_by_layer():
    """8 layers below the join encode the context and read [prompt ; answer]; the one above reads the slots too."""
    reader = reader_from_overrides("compressor=mean_pool", "compressor.join=depth", "backbone.layers=9").train()
    batch = random_batch(reader, 96 + 32, question=24, answer=8)
    passes = record_passes(reader, batch)
    assert [(each.rows, each.columns, len(each.layers)) for each in passes] == [(1, 96, 8), (1, 32, 8), (1, 64, 1)]
    assert sum(each.token_layers for each in passes) == 96 * 8 + 32 * 8 + 64
    _floor(reader, passes, supervised=8)()
    assert any(parameter.grad is not None for parameter in reader.decoder.parameters())
    assert torch.is_grad_enabled()
