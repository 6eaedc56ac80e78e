"""What rows state beside their scores: training, backbone, data; and the warning about untrained weights."""

from __future__ import annotations

import io
import types
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn

from breviary.evaluation.facts import (
    mixed_facts,
    row_facts,
    shared_facts,
    stored_training,
    training_record,
    training_text,
    with_training,
)
from breviary.evaluation.session import print_untrained
from breviary.evaluation.table import markdown_table, print_table, row_label
from breviary.runs.folders import write_config
from breviary.runtime.files import write_json
from tests.tiny import composed_choice

RECORD = {"trained": True, "steps": 400, "examples": 3200, "data": "nq", "init_from": None}


def record(**changes):
    return {**RECORD, **changes}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with a checkpoint after 400 steps of 8 examples, without weights."""
    folder = tmp_path / "outputs/comi_facts/20260101T000000_abcdef"
    checkpoint = folder / "checkpoints/checkpoint-400"
    checkpoint.mkdir(parents=True)
    write_config(folder, composed_choice("experiment=comi_facts"))
    write_json(checkpoint / "trainer_state.json", {"global_step": 400})
    write_json(checkpoint / "processes.json", {"processes": 2, "global_batch": 8})
    return folder


def test_a_checkpoint_s_record_states_steps_examples_and_data(run):
    found = training_record(run, run / "checkpoints/checkpoint-400")
    assert found == record(data="invented_facts")
    assert with_training("comi", training_text([found])) == "comi (400 steps, 3,200 examples)"


def test_without_a_checkpoint_a_reader_is_untrained():
    assert training_text([training_record(None, None)]) == "untrained"


def test_a_checkpoint_of_an_early_version_states_no_examples(run):
    checkpoint = run / "checkpoints/checkpoint-400"
    (checkpoint / "processes.json").unlink()
    assert training_text([training_record(run, checkpoint)]) == "400 steps"
    (checkpoint / "trainer_state.json").unlink()
    assert training_text([training_record(run, checkpoint)]) == "steps unknown"


def test_imported_and_exported_weights(run, tmp_path):
    checkpoint = run / "checkpoints/checkpoint-400"
    write_json(run / "imported.json", {"format": "comi"})
    assert training_text([training_record(run, checkpoint)]) == "imported weights"
    write_json(tmp_path / "export/training.json", record(steps=7, examples=None))
    assert training_text([training_record(tmp_path / "export", tmp_path / "export")]) == "7 steps"


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([record(steps=1, examples=1)], "1 step, 1 example"),
        ([record(steps=200), record()], "200 to 400 steps, 3,200 examples"),
        ([record(), None], "steps unknown"),
        ([None], "steps unknown"),
        ([record(init_from="gmsa_stage1/20260101T000000_abcdef")], "400 steps, 3,200 examples after gmsa_stage1"),
    ],
)
def test_training_in_words(records, text):
    assert training_text(records) == text


def test_results_of_earlier_versions_state_what_is_known():
    """Without "training": a baseline (no configuration) is untrained; of a run the steps are unknown."""
    old = {"config": None, "data_hash": "0123456789abcdef", "backbone": "B"}
    assert training_text([stored_training(old)]) == "untrained"
    assert row_facts(old) == {"training": "untrained", "backbone": "B", "data": None, "trained_on": None}
    dataset = {"_target_": "data.jsonl.Jsonl", "train": "/x/nq/train.jsonl.gz", "test": "/x/nq/test.jsonl.gz"}
    facts = row_facts({**old, "config": {"dataset": dataset}})
    assert facts == {"training": "steps unknown", "backbone": "B", "data": "nq", "trained_on": "nq"}


def test_a_name_that_states_its_training_is_not_repeated():
    assert row_label({"reader": "full_context (untrained)", "training": "untrained"}) == "full_context (untrained)"
    assert row_label({"reader": "a row of an earlier file"}) == "a row of an earlier file"


def flat(reader, **changes):
    """A row as of table_row, with the keys that tables need."""
    scores = dict.fromkeys(("em", "em_contains", "f1", "rouge_l", "nll"), 0.5)
    costs = dict.fromkeys(("requested_ratio", "effective_ratio", "memory_slots", "memory_bytes"))
    times = dict.fromkeys(("read_ms", "compress_ms", "prefill_ms", "decode_ms", "encode_ms"))
    facts = {"training": "untrained", "backbone": "A-135M", "data": "nq/test.jsonl.gz", "trained_on": None}
    return {"reader": reader, "n": 200, **facts, **scores, **costs, **times, "truncated": 0, "run": "r", **changes}


def printed(rows) -> str:
    out = io.StringIO()
    print_table(rows, "title", console=Console(file=out, width=1000))
    return out.getvalue()


def test_every_row_of_every_block_states_its_training():
    rows = [flat("comi", training="400 steps, 3,200 examples", trained_on="nq/train.jsonl.gz"), flat("no_context")]
    text = printed(rows)
    for label in ("comi (400 steps, 3,200 examples) ", "no_context (untrained) "):
        assert sum(line.startswith(label) for line in text.splitlines()) == 2, text
        assert f"| {label}|" in markdown_table(rows)
    caption = "backbone: A-135M; data: nq/test.jsonl.gz; trained on: nq/train.jsonl.gz"
    assert caption in text.splitlines() and f"- {caption}" in markdown_table(rows)


def test_rows_of_a_mixed_table_name_backbone_data_and_training_set():
    rows = [
        flat("comi", training="4 steps", trained_on="nq/train.jsonl.gz"),
        flat("ram", training="4 steps", trained_on="mine/train.jsonl", backbone="B-4B", data="mine/test.jsonl", n=7),
        flat("no_context"),
    ]
    assert mixed_facts(rows) == ["backbone", "data", "n", "trained_on"] and shared_facts(rows) == ""
    lines = printed(rows).splitlines()
    [header] = [line for line in lines if "F1" in line]
    assert all(title in header for title in ("backbone", "data", "trained on"))
    ram = next(line for line in lines if line.startswith("ram"))
    assert "B-4B" in ram and "mine/test.jsonl" in ram and "mine/train.jsonl" in ram
    assert "| backbone | data | trained on |" in markdown_table(rows)


def test_the_warning_names_untrained_weights_of_the_method(capsys):
    class Method(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(2, 2).requires_grad_(False)
            self.compressor = nn.ModuleDict({"encoder": nn.Linear(1000, 20), "alignment": nn.Linear(100, 100)})

    print_untrained("comi", Method())
    line = capsys.readouterr().out
    assert line.startswith(
        "warning: comi is untrained: compressor.encoder (0.02 M weights), compressor.alignment (0.01"
    )
    assert "decoder" not in line
    print_untrained("full_context", types.SimpleNamespace(named_parameters=lambda: iter([])))
    assert capsys.readouterr().out == ""
