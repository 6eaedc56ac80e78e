"""Checkpoints at intervals, signals that save first, the command that resumes, and values that are not finite."""

import contextvars
import importlib.util
import json
import math
import os
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from calling import call
from hydra.core.override_parser.overrides_parser import OverridesParser
from safetensors.torch import load_file

import train
from breviary.config.checks import check_training
from breviary.config.errors import RunFailure
from breviary.contract import Reader
from breviary.runs.checkpoints import WEIGHTS, best_checkpoint, checkpoints, last_checkpoint
from breviary.runs.folders import FINISHED
from breviary.training import log, step_end, trainer
from breviary.training.interruption import Interruption, TrainingInterrupted, resume_command
from breviary.training.log import keep_trackio_local, tracked_run, tracker_of
from breviary.training.step_end import StepEnd
from tests.tiny import compose_tiny

SMALL = [
    "dataset.facts=2",
    "dataset.train_size=24",
    "dataset.validation_size=2",
    "generation.max_new_tokens=2",
    "compressor.join=depth",
    "backbone.width=32",
    "backbone.layers=2",
    "compressor.encoder_layers=1",
    "train.steps=6",
    "train.batch_size=1",
    "train.accumulation=2",
    "train.log_every=4",
    "train.eval_every=4",
    "train.eval_examples=2",
]


def rows(folder):
    """Rows of metrics.jsonl without times and memory."""
    timing = ("seconds", "tokens_per_s", "peak_memory_bytes", "effective_ratio")
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in timing} for row in lines]


def same_as(folder, other):
    """Whether two runs have the same logged losses and last weights."""
    ours, theirs = (load_file(last_checkpoint(run) / WEIGHTS) for run in (folder, other))
    return rows(folder) == rows(other) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(autouse=True)
def default_ctrl_c():
    """Ctrl-C as in the foreground: a shell starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    return train.train(compose_tiny(["reader=comi", *SMALL, f"paths.outputs={home}", f"paths.cache={home}/cache"]))


@pytest.fixture
def signalled(compose, monkeypatch):
    """signalled(number, step) -> (configuration, folder) of a run that gets the signal in this step."""

    def run(number, step):
        cfg, original = compose(["reader=comi", *SMALL, "resume=auto"]), log.RunLog.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            original(self, args, state, control, **kwargs)
            if state.global_step == step:
                os.kill(os.getpid(), number)

        with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted) as raised:
            patch.setattr(log.RunLog, "on_step_end", on_step_end)
            train.train(cfg)
        assert raised.value.code == (130 if number == signal.SIGINT else 0)
        [folder] = (Path(cfg.paths.outputs) / cfg.name).iterdir()
        return cfg, folder

    return run


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize("number, step", [(signal.SIGTERM, 3), (signal.SIGINT, 4)], ids=["SIGTERM-3", "SIGINT-4"])
def test_a_signal_saves_and_the_resumed_run_equals_an_uninterrupted_one(signalled, uninterrupted, number, step, capsys):
    """Step 3 lies between two rows of the log, step 4 has a validation, which the resumed run makes."""
    cfg, folder = signalled(number, step)
    printed = capsys.readouterr()
    assert last_checkpoint(folder).name == f"checkpoint-{step}" and not (folder / FINISHED).exists()
    lines = printed.out.splitlines()
    assert f"{number.name}: saved checkpoint-{step}; this resumes the run:" in lines and lines[-1] == f"run {folder}"
    assert f"resume={folder}" in printed.out
    assert [row["step"] for row in rows(folder)] == ([1] if step == 3 else [1, 4])
    found = "resume=auto: no unfinished run of this configuration and data in"
    assert sum(line.startswith(found) for line in lines) == 1
    assert train.train(cfg) == folder and (folder / FINISHED).exists()
    assert found not in capsys.readouterr().out
    assert same_as(folder, uninterrupted)


def test_a_signal_ends_a_validation_which_the_resumed_run_repeats(compose, uninterrupted, monkeypatch):
    cfg, original, done = compose(["reader=comi", *SMALL, "eval_batch_size=1"]), trainer.evaluate, []

    def signalled(*args, **kwargs):
        for batch in original(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(batch)
            yield batch

    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted):
        patch.setattr(trainer, "evaluate", signalled)
        train.train(cfg)
    assert len(done) == 1  # of two batches
    [folder] = (Path(cfg.paths.outputs) / cfg.name).iterdir()
    assert [row["step"] for row in rows(folder)] == [1, 4] and last_checkpoint(folder).name == "checkpoint-4"
    cfg.resume = "auto"
    assert train.train(cfg) == folder
    assert [row.get("loss") for row in rows(folder)] == [row.get("loss") for row in rows(uninterrupted)]
    assert [row["step"] for row in rows(folder) if "eval_nll" in row] == [4, 6]


def test_the_first_ctrl_c_is_recorded_and_the_second_ends_the_process():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with Interruption() as interruption:
        assert not interruption.received
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.received == signal.SIGUSR1  # the first one
        assert signal.getsignal(signal.SIGINT) != signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize(
    "environment, start",
    [
        ({"PATH": f"{Path(sys.executable).parent}"}, "python train.py"),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8"}, "torchrun --nproc_per_node 8 train.py"),
        ({"LOCAL_SIZE": "4", "WORLD_SIZE": "4"}, "deepspeed --num_gpus 4 train.py"),
        ({"BREVIARY_LAUNCHER": "sbatch --nodes 2 x.sbatch"}, "sbatch --nodes 2 x.sbatch train.py"),
        (
            {
                "TORCHELASTIC_RUN_ID": "x",
                "GROUP_WORLD_SIZE": "2",
                "GROUP_RANK": "1",
                "MASTER_ADDR": "node1",
                "MASTER_PORT": "9",
            },
            "torchrun --nnodes 2 --node_rank 1 --master_addr node1 --master_port 9 --nproc_per_node 1 train.py",
        ),
    ],
)
def test_the_printed_command_is_the_one_that_was_given(monkeypatch, environment, start):
    words = ["experiment=comi_facts", 'prompt.template="\nQ: {question}"', "resume=auto", "+train.lr={a: 1}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = resume_command("outputs/a b/run")
    assert command.startswith(f"{start} ")
    given = shlex.split(command.removeprefix(start))
    assert given[:-1] == [words[0], words[1], words[3]]
    read = OverridesParser.create().parse_override(given[-1])
    assert (read.key_or_group, read.value()) == ("resume", "outputs/a b/run")


def test_a_background_job_keeps_ignoring_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert not interruption.received


def test_another_program_than_train_py_has_no_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/demo.py", "train.steps=2"])
    assert resume_command("run") is None


# ------------------------------------------------------------------ train.save_every


def test_checkpoints_between_validations_are_saved_and_all_but_best_and_last_removed(compose, monkeypatch):
    nlls, saved, retained, original = iter([1.0, 2.0]), [], [], trainer.save_learned
    monkeypatch.setattr(trainer, "summarise", lambda *_, **__: {"metrics": {"nll": {"value": next(nlls)}}})
    monkeypatch.setattr(trainer, "save_learned", lambda *args: (saved.append(Path(args[0]).name), original(*args)))
    save = StepEnd.on_save

    def on_save(self, args, *rest, **kwargs):
        save(self, args, *rest, **kwargs)
        retained.append(sorted(path.name for path in Path(args.output_dir).iterdir()))

    monkeypatch.setattr(StepEnd, "on_save", on_save)
    folder = train.train(compose(["reader=comi", *SMALL, "train.save_every=1", "train.eval_every=2", "train.steps=4"]))
    assert saved == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert all(len(names) <= 2 for names in retained) and retained[-1] == ["checkpoint-2", "checkpoint-4"]
    assert best_checkpoint(folder).name == "checkpoint-2"
    assert [row["step"] for row in rows(folder) if "eval_nll" in row] == [2, 4]


class Fake:
    """Trainer, state and control for a StepEnd."""

    def __init__(self, step_end, tmp_path, values=(1.0, 2.0, 0.5)):
        self.values, self.step_examples = torch.tensor(values, dtype=torch.float64), [["a", "b"], ["c"]]
        self.args = SimpleNamespace(output_dir=f"{tmp_path}/checkpoints", learning_rate=1e-3, device="cpu")
        self.state = SimpleNamespace(global_step=7, max_steps=100)
        self.control = SimpleNamespace(
            should_save=False, should_log=True, should_evaluate=True, should_training_stop=False
        )
        step_end.trainer = self

    def step_values(self):
        return self.values


INTERVALS = [("2m", 119, False), ("2m", 121, True), (0, 1e9, False), (7, 0, True)]


@pytest.mark.parametrize("value, seconds, saves", INTERVALS)
def test_the_time_since_the_last_checkpoint_decides(tmp_path, monkeypatch, value, seconds, saves):
    now = [1000.0]
    monkeypatch.setattr(step_end.time, "monotonic", lambda: now[0])
    callback = StepEnd(value)
    fake = Fake(callback, tmp_path)
    callback.on_train_begin(fake.args, fake.state, fake.control)
    now[0] += 60
    callback.on_save(fake.args, fake.state, fake.control)
    now[0] += seconds
    callback.on_step_end(fake.args, fake.state, fake.control)
    assert fake.control.should_save == saves and fake.control.should_log and not fake.control.should_training_stop


# ------------------------------------------------------------------ values that are not finite


@pytest.mark.parametrize(
    "values, named, others",
    [
        ((1.0, math.nan, 0.5), "the loss is nan and the gradient norm 0.5, with the examples c.", "a, b"),
        ((math.inf, 1.0, 0.5), "the loss is inf and the gradient norm 0.5, with the examples a, b.", "c."),
        ((1.0, 2.0, math.nan), "the loss is 3 and the gradient norm nan, with the examples a, b, c.", "loss is nan"),
    ],
)
def test_a_value_that_is_not_finite_stops_without_a_checkpoint(tmp_path, values, named, others):
    callback = StepEnd("1m")
    fake = Fake(callback, tmp_path, values)
    callback.on_step_end(fake.args, fake.state, fake.control)
    assert callback.failure.startswith(f"step 7: {named}") and others not in callback.failure
    assert "there is no checkpoint. " in callback.failure and "train.learning_rate=0.0001" in callback.failure
    control = fake.control
    assert control.should_training_stop
    assert not (control.should_save or control.should_log or control.should_evaluate)


def test_an_earlier_checkpoint_is_named_as_a_start(tmp_path, monkeypatch):
    callback = StepEnd()
    fake = Fake(callback, tmp_path, (math.nan, 1.0))
    monkeypatch.setattr(step_end, "checkpoints", lambda folder: [folder / "checkpoints" / "checkpoint-5"])
    callback.on_step_end(fake.args, fake.state, fake.control)
    assert "the last checkpoint is checkpoint-5. " in callback.failure
    assert callback.failure.endswith(f"e.g. init_from={tmp_path} train.learning_rate=0.0001")


def test_a_nan_ends_the_command_with_exit_code_1_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    forward, calls = Reader.forward, []

    def broken(self, batch):
        output = forward(self, batch)
        if self.training:
            calls.append([example.id for example in batch.examples])
            if len(calls) == 6:  # the second micro-batch of the third step
                output["terms"] = {name: (value * math.nan, n) for name, (value, n) in output["terms"].items()}
        return output

    monkeypatch.setattr(Reader, "forward", broken)
    words = [*SMALL, "train.save_every=1", "train.log_every=1", "train.eval_examples=0"]
    assert call(monkeypatch, tmp_path, train, *words) == 1
    printed = capsys.readouterr()
    [folder] = (tmp_path / "outputs" / "default").iterdir()
    assert printed.err.startswith("error: step 3: the loss is nan and the gradient norm nan, with the examples ")
    assert f"with the examples {calls[5][0]}. The run is not finished, later weights are not saved; " in printed.err
    assert "the last checkpoint, checkpoint-2, has the weights that gave this value. Look at " in printed.err
    assert printed.err.endswith("e.g. train.learning_rate=0.0001\n") and "Traceback" not in printed.err
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-1", "checkpoint-2"] and not (
        folder / FINISHED
    ).exists()
    assert [row["step"] for row in rows(folder)] == [1, 2] and printed.out.splitlines()[-1] == f"run {folder}"


def test_a_validation_that_is_not_finite_is_a_failure(compose, monkeypatch):
    original = trainer.evaluate

    def broken(*args, **kwargs):
        for batch in original(*args, **kwargs):
            yield [row | {"nll": math.nan} for row in batch]

    monkeypatch.setattr(trainer, "evaluate", broken)
    cfg = compose(["reader=comi", *SMALL, "train.steps=1"])
    with pytest.raises(
        RunFailure, match=r"^validation after step 1: the NLL is not finite, with the examples \S+, \S+\."
    ):
        train.train(cfg)
    [folder] = (Path(cfg.paths.outputs) / cfg.name).iterdir()
    assert not (folder / FINISHED).exists() and not [row for row in rows(folder) if "eval_nll" in row]


# ------------------------------------------------------------------ wandb


def test_the_files_of_wandb_lie_in_the_run_folder(tmp_path, monkeypatch):
    calls = []

    class Run:
        def __enter__(self):
            calls.append("start")

        def __exit__(self, *error):
            calls.append("finish")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **keys: (calls.append(keys), Run())[1]))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for settings in (("none", "disabled"), ("none", "offline")):  # train.wandb alone, as ever
        tracker, mode = tracker_of(*settings)
        with tracked_run(tracker, mode, tmp_path):
            calls.append(mode)
    keys = {"project": "breviary", "name": tmp_path.name, "dir": str(tmp_path), "mode": "offline"}
    assert calls == ["disabled", keys, "start", "offline", "finish"]


@pytest.mark.parametrize(
    ("tracker", "wandb", "expected"),
    [
        ("none", "disabled", ("none", "disabled")),
        ("none", "online", ("wandb", "online")),
        ("wandb", "disabled", ("wandb", "offline")),
        ("wandb", "online", ("wandb", "online")),
        ("trackio", "disabled", ("trackio", "offline")),
    ],
)
def test_tracker_and_mode(tracker, wandb, expected):
    assert tracker_of(tracker, wandb) == expected


def test_a_run_of_trackio_stays_on_the_machine_and_is_ended(tmp_path, monkeypatch):
    for name in ("TRACKIO_DIR", "TRACKIO_SPACE_ID"):
        monkeypatch.setenv(name, "elsewhere")
    keep_trackio_local(tmp_path)
    assert os.environ["TRACKIO_DIR"] == str(tmp_path / "trackio") and "TRACKIO_SPACE_ID" not in os.environ
    # A sweep's next run, in a process that has imported Trackio.
    utils = SimpleNamespace(TRACKIO_DIR=tmp_path / "trackio")
    monkeypatch.setitem(sys.modules, "trackio.utils", utils)
    keep_trackio_local(tmp_path / "second")
    assert str(utils.TRACKIO_DIR) == str(tmp_path / "second" / "trackio") == os.environ["TRACKIO_DIR"]
    current, ended = contextvars.ContextVar("run", default=None), []
    trackio = SimpleNamespace(
        context_vars=SimpleNamespace(current_run=current), finish=lambda: (ended.append(1), current.set(None))
    )
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    with tracked_run("trackio", "offline", tmp_path):
        pass  # the Trainer's callback ended it
    with pytest.raises(RuntimeError), tracked_run("trackio", "offline", tmp_path):
        current.set("begun by the callback")
        raise RuntimeError
    assert ended == [1]


def test_trackers_are_checked_together(monkeypatch):
    train = compose_tiny(["train.tracker=trackio", "train.wandb=online"]).train
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    one, other = check_training(train)
    assert "one tracker at a time" in one and "the package trackio is not installed" in other
    [problem] = check_training(compose_tiny(["train.tracker=tensorboard"]).train)
    assert problem == "train.tracker=tensorboard: allowed are none, wandb, trackio"
