"""Helpers for tests of command lines: train.py and eval.py called in this process, and small files for them."""

import json
import sys

from breviary.config.errors import run_cli

ROW = {"context": "The sky is blue.", "question": "What colour is the sky?", "answers": ["blue"]}
SMALL = [
    "backbone.layers=4",
    "compressor.encoder_layers=2",
    "train.steps=2",
    "train.batch_size=2",
    "eval_batch_size=2",
    "generation.max_new_tokens=2",
]


def call(monkeypatch, tmp_path, entry, *words):
    """Runs train.py or eval.py with these overrides in this process, below tmp_path. Returns the exit code."""
    paths = [f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}/cache"]
    monkeypatch.setattr(sys, "argv", [entry.__file__, *words, *paths])
    try:
        run_cli(entry.main, entry.CONFIG)
    except SystemExit as exit:
        return exit.code
    return 0


def write(path, rows):
    """Writes a JSONL file of dictionaries, or of lines as given. Returns its path as text."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def jsonl(tmp_path, rows):
    """Overrides for training on these rows."""
    return ["dataset=jsonl", f"dataset.train={write(tmp_path / 'train.jsonl', rows)}", "train.eval_examples=0"]
