"""train.epochs, train.global_batch and train.save_every: what follows from them, and messages about wrong values."""

import re

import pytest
from omegaconf import OmegaConf, open_dict

import train as training
from breviary.config.compose import compose_config
from breviary.config.errors import ConfigError
from breviary.config.training_length import derive_accumulation, derive_steps, describe_batch, save_interval
from breviary.runs.folders import config_hash
from tests.unit.breviary.config.test_suggestions import SUGGESTION, parsed


def section(**keys):
    """Section train with these values."""
    return OmegaConf.create(
        {"steps": 100, "epochs": None, "batch_size": 4, "accumulation": 1, "global_batch": None} | keys
    )


@pytest.mark.parametrize("value, interval", [(0, (0, 0)), (100, (100, 0)), ("15m", (0, 900)), ("0.5m", (0, 30))])
def test_an_interval_is_steps_or_minutes(value, interval):
    assert save_interval(value) == interval


@pytest.mark.parametrize("value", [-1, "15", "m", "-1m", "15 min", "1h", "", "1.5"])
def test_another_interval_is_refused_with_examples(value):
    with pytest.raises(
        ValueError, match=rf"train.save_every={re.escape(str(value))}: must be a number of steps"
    ) as error:
        save_interval(value)
    suggestions = [match[0] for match in SUGGESTION.finditer(str(error.value).partition(":")[2])]
    assert [value for _, value in parsed(suggestions).values()] == [100, "15m", 0]


@pytest.mark.parametrize("epochs, examples, batch, steps", [(3, 10, 4, 8), (0.5, 100, 10, 5), (1, 3, 8, 1)])
def test_steps_follow_from_epochs(epochs, examples, batch, steps):
    train = section(epochs=epochs)
    derive_steps(train, examples, batch)
    assert train.steps == steps


def test_without_epochs_the_steps_stay():
    train = section()
    derive_steps(train, 10, 4)
    assert train.steps == 100


@pytest.mark.parametrize("processes, ranks, accumulation", [(1, 1, 8), (2, 1, 4), (8, 1, 1), (8, 4, 4)])
def test_the_global_batch_is_kept_for_every_number_of_processes(processes, ranks, accumulation):
    train = section(global_batch=32)
    assert derive_accumulation(train, processes, ranks) == []
    assert train.accumulation == accumulation
    assert " = 32; 100 steps = 3200 examples = 6.4 epochs" in describe_batch(train, processes, ranks, 500)


@pytest.mark.parametrize(
    "keys, processes, ranks, message, ways",
    [
        ({"global_batch": 10}, 2, 1, "train.batch_size x processes = 4 x 2 = 8", ["8", "16", "train.batch_size=5"]),
        ({"global_batch": 3}, 1, 1, "train.batch_size x processes = 4 x 1 = 4", ["4", "train.batch_size=3"]),
        ({"global_batch": 9}, 8, 4, "train.batch_size x processes / engine.ranks = 4 x 2 = 8", ["8", "16"]),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_right_values(keys, processes, ranks, message, ways):
    train = section(**keys)
    [problem] = derive_accumulation(train, processes, ranks)
    assert message in problem
    ways = [way if "=" in way else f"train.global_batch={way}" for way in ways]
    assert problem.partition("; set ")[2] == " or ".join(ways)
    for _, (key, value) in parsed(ways).items():
        assert derive_accumulation(section(**{**keys, key.removeprefix("train."): value}), processes, ranks) == []


def test_the_printed_line_has_processes_batch_and_accumulation():
    line = describe_batch(section(steps=5, accumulation=2), 2, 1, 20)
    assert line == "global batch: 2 processes x 4 examples x 2 accumulation = 16; 5 steps = 80 examples = 4 epochs"
    assert describe_batch(section(), 8, 4, 20).startswith("global batch: 2 pipelines of 4 processes x 4 examples x 1 ")


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    "first, second", [("train.steps=5", "train.epochs=2"), ("train.accumulation=5", "train.global_batch=16")]
)
def test_both_of_two_keys_on_the_command_line_are_refused(refused, first, second):
    [message] = refused(training, first, second)
    assert message == f"{second} and {first}: the first replaces the second; set one of them, e.g. {second}"
    with pytest.raises(ConfigError, match="the first replaces the second"):
        compose_config("train", [first, second])


def test_the_command_line_replaces_the_epochs_of_an_experiment(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrain: {epochs: 3, global_batch: 64}\n")
    words = ["hydra.searchpath=[file://" + str(tmp_path) + "]", "experiment=mine"]
    train = compose_config("train", words).train
    assert (train.epochs, train.global_batch) == (3, 64)
    train = compose_config("train", [*words, "train.steps=7", "train.accumulation=2"]).train
    assert (train.epochs, train.global_batch, train.steps, train.accumulation) == (None, None, 7, 2)
    train = compose_config("train", ["experiment=comi_facts", "train.epochs=2"]).train
    assert train.epochs == 2


def test_wrong_values_are_reported_together(refused):
    words = ["train.epochs=0", "train.global_batch=0", "train.save_every=soon"]
    messages = refused(training, *words)
    assert [message.partition(":")[0] for message in messages] == words
    messages = refused(training, "train.epochs=many", "train.global_batch=2.5", "train.batch_size=3")
    assert messages == [
        "train.epochs=many: must be a number or null, e.g. null",
        "train.global_batch=2.5: must be a whole number or null, e.g. null",
    ]
    [message] = refused(training, "train.global_batch=10", "train.batch_size=4")
    assert message.startswith("train.global_batch=10: not a multiple of train.batch_size x processes = 4 x 1 = 4; ")


def test_the_new_keys_do_not_change_the_hash_of_a_run():
    cfg = compose_config("train", [])
    old = cfg.copy()
    for key in ("epochs", "global_batch", "save_every"):
        with open_dict(old):
            del old.train[key]
    assert config_hash(cfg) == config_hash(old)
    cfg.train.save_every = 7
    assert config_hash(cfg) == config_hash(old)
    cfg.train.steps = 7
    assert config_hash(cfg) != config_hash(old)
