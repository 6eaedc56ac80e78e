"""train.py engine=pipeline on two processes trains as one process does: losses, norms, validation and weights."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from processes import run_script

STEPS = 3
TRAIN = ["compressor=comet", "backbone.layers=2", "compressor.chunk_size=16", "compressor.stride=4",
         "compressor.global_slots=3", "compressor.queue_budget=8", "decoder.train=full", f"train.steps={STEPS}",
         "train.optimizer=sgd", "train.learning_rate=0.02", "train.batch_size=2", "train.accumulation=2", "train.log_every=1",
         "train.eval_examples=5", "eval_batch_size=2", "dataset.train_size=24", "dataset.test_size=3",
         "generation.max_new_tokens=3"]
ENGINES = {"contiguous": ["engine=pipeline", "engine.schedule=contiguous"],
           "cyclic": ["engine=pipeline", "train.gradient_checkpointing=true"],
           "zero1": ["engine=zero1", "engine.ranks=2"]}
COMPARED = ("loss", "grad_norm", "learning_rate", "eval_nll", "eval_f1")


@pytest.fixture(scope="module")
def run(ranks, tmp_path_factory):
    """run(name, world, overrides): the rows of metrics.jsonl, the trained weights, rank 0's output."""
    home, kept = tmp_path_factory.mktemp("home"), {}

    def trained(name, world, *overrides):
        if name not in kept:
            output = ranks(world, run_script, "train.py", (f"name={name}", *TRAIN, f"paths.outputs={home}/runs",
                                                           f"paths.cache={home}/cache", *overrides))
            [folder] = (home / "runs" / name).glob("*_*")
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            kept[name] = rows, load_file(folder / "checkpoints" / f"checkpoint-{STEPS}" / "trained.safetensors"), output
        return kept[name]

    return trained


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one(run, engine):
    """float32: 1e-5 is a hundred roundings."""
    rows, weights, output = run(engine, 2, *ENGINES[engine])
    wanted, expected, _ = run("single", None)
    assert "pipeline 0: ranks 0, 1" in output
    assert len(rows) == len(wanted) == STEPS + 1
    for one, other in zip(rows, wanted):
        assert one.keys() == other.keys()
        for key in one.keys() & set(COMPARED):
            assert one[key] == pytest.approx(other[key], rel=1e-5), (key, one, other)
    off = {name: float((weights[name] - value).norm() / value.norm()) for name, value in expected.items()}
    print(engine, max(off.values()), [(one["loss"], other["loss"]) for one, other in zip(rows, wanted) if "loss" in one])
    assert weights.keys() == expected.keys() and max(off.values()) < 1e-5
