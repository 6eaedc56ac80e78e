"""Autoencoder first, then answers from what it learned: two runs of train.py, one key between them."""

import pytest
import torch
from safetensors import safe_open

import train
from breviary.runs.checkpoints import WEIGHTS, last_checkpoint
from tests.tiny import evaluate_tiny

SMALL = [
    "reader=two_stages",
    "train.steps=2",
    "train.batch_size=2",
    "train.eval_examples=0",
    "dataset.train_size=4",
    "dataset.facts=2",
    "dataset.test_size=2",
    "generation.max_new_tokens=3",
    "train.learning_rate=1e-2",
]


def weights(run):
    with safe_open(last_checkpoint(run) / WEIGHTS, framework="pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}


def changed(first, second):
    return {name for name in second if name not in first or not torch.equal(first[name], second[name])}


def ran(compose, *words):
    return train.train(compose([*words, *SMALL]))


def test_gmsa_s_second_stage_keeps_what_the_first_learned(compose, tmp_path, capsys):
    shared = ["compressor=mean_pool", "compressor.encoder_train=lora", "compressor.encoder_lora_dropout=0.05"]
    first = ran(
        compose,
        *shared,
        "objective=reconstruct",
        "decoder.train=frozen",
        "compressor.ratio_choices=[4,8]",
        "compressor.ratio_draw=sample",
    )
    assert all(name.startswith("compressor.context_encoder.") for name in weights(first))
    second = ran(compose, *shared, "compressor.frozen=true", "decoder.train=qkv", f"init_from={first}")
    assert "weights are not in that run and start as initialised, e.g. decoder." in capsys.readouterr().out
    before, after = weights(first), weights(second)
    assert before.keys() < after.keys()
    assert {name.split(".")[0] for name in changed(before, after)} == {"decoder"}
    words = [f"run={second}", f"paths.outputs={tmp_path}", f"paths.cache={tmp_path}", "baselines=[]"]
    [results] = evaluate_tiny(words)
    assert results["n"] == 2 and results["effective_ratio"] > 3


def test_icae_goes_on_from_its_pretraining(compose):
    shared = ["compressor=icae", "compressor.memory_tokens=4", "decoder.train=frozen"]
    first = ran(compose, *shared, "objective=reconstruct", "objective.continuation_weight=0.5")
    second = ran(compose, *shared, f"init_from={first}")
    before, after = weights(first), weights(second)
    assert before.keys() == after.keys() == changed(before, after)
    rows = (before["compressor.task_embeds"] != after["compressor.task_embeds"]).any(1).tolist()
    assert rows[0]  # what stands for an answer learned now


def test_a_start_that_does_not_fit_is_refused(compose):
    first = ran(compose, "compressor=icae", "compressor.memory_tokens=4", "objective=reconstruct", "decoder.train=lora")
    with pytest.raises(ValueError, match="unknown: decoder.layers.0"):
        ran(compose, "compressor=icae", "compressor.memory_tokens=4", "decoder.train=frozen", f"init_from={first}")
