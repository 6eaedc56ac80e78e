"""train.py engine=pipeline equals training on one process, with DDP and with ZeRO: losses, norms, validation, weights.

Its checkpoints are resumed with the same number of processes and the same global batch only.
"""

from __future__ import annotations

import json
import shutil

import pytest
from processes import run_script

from breviary.runs.checkpoints import read_weights
from breviary.runs.sealing import MANIFEST

STEPS = 3
TRAIN = [
    "compressor=comet",
    "backbone.layers=2",
    "compressor.chunk_size=16",
    "compressor.stride=4",
    "compressor.global_slots=3",
    "compressor.queue_budget=8",
    "decoder.train=full",
    f"train.steps={STEPS}",
    "train.optimizer=sgd",
    "train.learning_rate=0.02",
    "train.batch_size=2",
    "train.accumulation=2",
    "train.log_every=1",
    "eval_batch_size=2",
    "dataset.train_size=24",
    "dataset.test_size=3",
    "generation.max_new_tokens=3",
]
VALIDATED, NOT_VALIDATED = ["train.eval_examples=5"], ["train.eval_examples=0"]
PIPELINE = ["engine=pipeline", "engine.ranks=2"]
# Buckets of few weights: ranks that filled them in different orders would sum gradients of different weights.
ZERO2 = ["engine=zero2", "engine.ranks=2", "engine.deepspeed.zero_optimization.reduce_bucket_size=5000", *NOT_VALIDATED]
# name: (processes, overrides). Two pipelines side by side have the same examples per step, with batches of one.
ENGINES = {
    "contiguous": (2, [*PIPELINE, *VALIDATED, "engine.schedule=contiguous"]),
    "cyclic": (2, [*PIPELINE, *VALIDATED, "train.gradient_checkpointing=true"]),
    "zero1": (2, ["engine=zero1", "engine.ranks=2", *NOT_VALIDATED]),
    "zero2": (2, [*ZERO2, "engine.schedule=contiguous"]),
    "zero2_side_by_side": (
        4,
        [
            *ZERO2,
            "train.batch_size=1",
            "train.gradient_checkpointing=true",
            "engine.deepspeed.zero_optimization.overlap_comm=true",
        ],
    ),
}
COMPARED = ("examples", "loss", "grad_norm", "learning_rate", "eval_nll", "eval_f1")
# AdamW: a resumed run depends on weights, moments and the position in the data.
ADAM = [
    "train.optimizer=adamw",
    "train.learning_rate=1e-3",
    "train.steps=4",
    "train.eval_every=2",
    "train.eval_examples=1",
]


class Runs:
    """Trainings of this module; each runs once."""

    def __init__(self, ranks, home):
        self.ranks, self.home, self.outputs = ranks, home, {}

    def train(self, name, world, *overrides):
        """The run folder of training `name`."""
        if name not in self.outputs:
            self.outputs[name] = AssertionError(f"{name} failed in an earlier test")
            self.outputs[name] = self.ranks(
                world,
                run_script,
                "train.py",
                (
                    f"name={name}",
                    *TRAIN,
                    f"paths.outputs={self.home}/runs",
                    f"paths.cache={self.home}/cache",
                    *overrides,
                ),
            )
        if isinstance(self.outputs[name], AssertionError):
            raise self.outputs[name]
        [folder] = (self.home / "runs" / name).glob("*_*")
        return folder

    def resumed(self, name, run, world, *overrides):
        """Resumes a copy of `run` without its checkpoint of step 4; returns the folder."""
        copy = self.home / "runs" / name / "1_a"
        shutil.copytree(run, copy)
        (copy / "finished").unlink()
        if (copy / "checkpoints" / "checkpoint-4").exists():
            shutil.rmtree(copy / "checkpoints" / "checkpoint-4")
        return self.train(name, world, *overrides, f"resume={copy}")


@pytest.fixture(scope="module")
def runs(ranks, tmp_path_factory):
    return Runs(ranks, tmp_path_factory.mktemp("home"))


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder, step=STEPS):
    return read_weights(folder / "checkpoints" / f"checkpoint-{step}")


def assert_same(actual, expected, tolerance=1e-5):
    """float32: 1e-5 is about a hundred rounding errors."""
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected):
        assert one.keys() == other.keys()
        for key in one.keys() & set(COMPARED):
            assert one[key] == pytest.approx(other[key], rel=tolerance), (key, one, other)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pipeline_equals_one_process(runs, engine):
    world, overrides = ENGINES[engine]
    folder, alone = runs.train(engine, world, *overrides), runs.train("single", None, *VALIDATED)
    assert (
        "pipeline 0: ranks 0, 1" in runs.outputs[engine] and f"pipeline {world // 2 - 1}: ranks" in runs.outputs[engine]
    )
    rows, expected_rows = rows_of(folder), rows_of(alone)
    validated = any("eval_nll" in row for row in rows)
    assert validated == ("train.eval_examples=5" in overrides)
    assert_same(rows, [row for row in expected_rows if validated or "loss" in row])
    weights, expected = weights_of(folder), weights_of(alone)
    differences = {name: float((weights[name] - value).norm() / value.norm()) for name, value in expected.items()}
    print(engine, max(differences.values()))
    assert weights.keys() == expected.keys() and max(differences.values()) < 1e-5


def test_zero_2_in_bfloat16(runs):
    """With float32 masters and sums of gradients: losses equal those in float32 up to rounding errors of 2^-8."""
    sums = "engine.deepspeed.communication_data_type=fp32"
    rows = rows_of(runs.train("bfloat16", 2, *ZERO2, "backbone.dtype=bfloat16", sums))
    assert_same(
        [{"loss": row["loss"]} for row in rows],
        [{"loss": row["loss"]} for row in rows_of(runs.train("single", None, *VALIDATED)) if "loss" in row],
        2e-2,
    )
    weights = weights_of(runs.train("bfloat16", 2))
    assert any(
        (value != value.bfloat16().float()).any() for value in weights.values()
    )  # checkpoints contain the masters


def test_a_pipeline_resumes_with_other_ranks_of_the_same_processes(runs):
    """Two processes with one example each in place of a pipeline of two ranks."""
    whole = runs.train("adam", 2, *PIPELINE, *ADAM)
    resumed = runs.resumed("adam_as_dp", whole, 2, *ADAM, "engine=ddp", "train.batch_size=1")
    assert [row["step"] for row in rows_of(resumed) if "loss" in row] == [1, 2, 3, 4]
    assert_same(rows_of(resumed), rows_of(whole))


def test_zero_2_resumes_without_a_pipeline(runs):
    """Its checkpoints are sharded over the world, independent of the pipelines."""
    whole = runs.train("zero2_adam", 2, *ZERO2, *ADAM)
    resumed = runs.resumed("zero2_as_dp", whole, 2, *ZERO2, *ADAM, "engine.ranks=1", "train.batch_size=1")
    assert [row["step"] for row in rows_of(resumed) if "loss" in row] == [1, 2, 3, 4]
    assert_same(rows_of(resumed), rows_of(whole))


def test_resuming_zero_with_another_world_size_is_rejected(runs):
    """DeepSpeed does not reshard its checkpoints.

    Checkpoints of early versions do not state their processes; those of DeepSpeed have a shard of each. For others see
    test_runs and the unit tests.
    """
    world, overrides = ENGINES["zero1"]
    whole, alone = runs.train("zero1", world, *overrides), ["engine=zero1", "train.steps=9", *NOT_VALIDATED]
    early = runs.home / "early"
    shutil.copytree(whole, early)
    for name in ("processes.json", MANIFEST):
        for file in early.glob(f"checkpoints/*/{name}"):
            file.unlink()
    with pytest.raises(AssertionError, match=r"in 2 shards, one per process; start 2 processes, for any engine.ranks"):
        runs.resumed("early_zero1_alone", early, None, *alone)
