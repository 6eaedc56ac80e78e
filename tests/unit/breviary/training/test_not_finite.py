"""A gradient norm that is not finite ends the training, or its step is skipped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import train
from breviary.config.errors import ConfigError, RunFailure
from breviary.contract import Reader
from breviary.runs.checkpoints import last_checkpoint, read_weights
from breviary.training.step_end import NOT_FINITE


@pytest.fixture
def broken_gradient(monkeypatch):
    """The gradient of the first step is NaN, its loss is not."""
    forward, calls = Reader.forward, []

    def broken(self, batch):
        output = forward(self, batch)
        calls.append([example.id for example in batch.examples])
        if self.training and len(calls) == 1:
            for value, _ in output["terms"].values():
                value.register_hook(lambda gradient: gradient * math.nan)
        return output

    monkeypatch.setattr(Reader, "forward", broken)
    return calls


ONE_STEP = [
    *("reader=comi", "compressor.join=depth", "compressor.encoder_layers=1", "backbone.width=32", "backbone.layers=2"),
    *("dataset.facts=2", "dataset.train_size=24", "generation.max_new_tokens=2", "train.eval_examples=0"),
    *("train.batch_size=1", "train.accumulation=2", "train.log_every=1", "train.warmup=0"),
]


def test_a_gradient_that_is_not_finite_ends_the_training_and_its_examples_are_written_down(compose, broken_gradient):
    cfg = compose([*ONE_STEP, "train.steps=2"])
    with pytest.raises(RunFailure, match=r"^step 1: the loss is \d\S* and the gradient norm nan, with the examples "):
        train.train(cfg)
    [folder] = (Path(cfg.paths.outputs) / cfg.name).iterdir()
    written = json.loads((folder / NOT_FINITE).read_text())
    micro_batches = broken_gradient[:2]
    assert (
        written["examples"] == [name for ids in micro_batches for name in ids]
        and "gradient norm nan" in written["what"]
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_a_gradient_that_is_not_finite_can_be_skipped(compose, broken_gradient, steps, capsys):
    folder = train.train(compose([*ONE_STEP, f"train.steps={steps}", "train.not_finite=skip"]))
    assert "step 1: the gradient norm is nan; no update in this step (1 so far)" in capsys.readouterr().out
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["skipped_steps"], row["step"]) for row in logged] == [(1, step + 1) for step in range(steps)]
    adapters = [w for name, w in read_weights(last_checkpoint(folder)).items() if "lora_B" in name]
    assert adapters and any(bool(w.any()) for w in adapters) == (steps == 2)  # zero before the first update


@pytest.mark.parametrize(
    "engine, message",
    [
        (["engine=zero2"], r"train.not_finite=skip: .* allowed with engine=zero\* is stop"),
        (
            ["engine=pipeline", "engine.ranks=2"],
            r"train.not_finite=skip: a pipeline \(engine.ranks=2\) ends within the step, .* allowed is stop",
        ),
    ],
)
def test_engines_that_do_not_skip_steps(compose, engine, message):
    with pytest.raises(ConfigError, match=message):
        train.train(compose([*ONE_STEP, *engine, "train.not_finite=skip"]))
