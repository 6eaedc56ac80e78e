"""Small trainings for tests, and what their folders hold."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from breviary.runs.checkpoints import WEIGHTS, last_checkpoint

DATA = ["dataset.facts=2", "dataset.train_size=24", "dataset.validation_size=4", "generation.max_new_tokens=2"]
SMALL = [
    *DATA,
    "reader=comi",
    "compressor.join=depth",
    "backbone.width=32",
    "train.steps=6",
    "train.batch_size=2",
    "train.log_every=1",
    "train.eval_every=2",
    "train.eval_examples=2",
]


def weights(folder):
    return load_file(last_checkpoint(folder) / WEIGHTS)


def metrics(folder):
    """Training rows and validation rows of metrics.jsonl, by step."""
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    kinds = [row for row in rows if "loss" in row], [row for row in rows if "eval_nll" in row]
    assert sum(map(len, kinds)) == len(rows)
    for kind in kinds:
        steps = [row["step"] for row in kind]
        assert steps == sorted(set(steps)), steps
    return [{row["step"]: row for row in kind} for kind in kinds]


def assert_same(folder, other, rel=0.0):
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys() and ours
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=rel, atol=rel)
