"""Two-stage training: an autoencoder run, then a run on answers that starts from its weights (init_from)."""

import pytest
import torch
from safetensors.torch import load_file

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
    return load_file(last_checkpoint(run) / WEIGHTS)


def changed(first, second):
    return {name for name in second if name not in first or not torch.equal(first[name], second[name])}


def train_run(compose, *words):
    return train.train(compose([*words, *SMALL]))


def test_the_second_stage_of_gmsa_keeps_the_weights_of_the_first(compose, tmp_path, capsys):
    shared = ["compressor=mean_pool", "compressor.encoder_train=lora", "compressor.encoder_lora_dropout=0.05"]
    first = train_run(
        compose,
        *shared,
        "objective=reconstruct",
        "decoder.train=frozen",
        "compressor.ratio_choices=[4,8]",
        "compressor.ratio_draw=sample",
    )
    assert all(name.startswith("compressor.context_encoder.") for name in weights(first))
    second = train_run(compose, *shared, "compressor.frozen=true", "decoder.train=qkv", f"init_from={first}")
    assert "weights are not in that run and start as initialised, e.g. decoder." in capsys.readouterr().out
    before, after = weights(first), weights(second)
    assert before.keys() < after.keys()
    assert {name.split(".")[0] for name in changed(before, after)} == {"decoder"}
    words = [f"run={second}", f"paths.outputs={tmp_path}", f"paths.cache={tmp_path}", "baselines=[]"]
    [results] = evaluate_tiny(words)
    assert results["n"] == 2 and results["effective_ratio"] > 3


def test_icae_finetuning_starts_from_its_pretraining(compose):
    shared = ["compressor=icae", "compressor.memory_tokens=4", "decoder.train=frozen"]
    first = train_run(compose, *shared, "objective=reconstruct", "objective.continuation_weight=0.5")
    second = train_run(compose, *shared, f"init_from={first}")
    before, after = weights(first), weights(second)
    assert before.keys() == after.keys() == changed(before, after)
    rows = (before["compressor.task_embeds"] != after["compressor.task_embeds"]).any(1).tolist()
    assert rows[0]  # the task token of answers was trained


def test_an_incompatible_start_is_rejected(compose):
    first = train_run(
        compose, "compressor=icae", "compressor.memory_tokens=4", "objective=reconstruct", "decoder.train=lora"
    )
    with pytest.raises(ValueError, match="unknown: decoder.layers.0"):
        train_run(
            compose, "compressor=icae", "compressor.memory_tokens=4", "decoder.train=frozen", f"init_from={first}"
        )
