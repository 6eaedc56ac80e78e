"""Training on the tiny backbone: data order, accumulation, interruption, checkpoints, and the files of a run."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import DATA, SMALL, assert_same, metrics, weights

import train
from breviary.config.errors import ConfigError
from breviary.contract import Batch
from breviary.memory.budget import Budget
from breviary.runs.checkpoints import WEIGHTS, best_checkpoint, checkpoints, last_checkpoint
from breviary.runs.folders import FINISHED
from breviary.runs.sealing import MANIFEST, seal_checkpoint
from breviary.training import log, trainer
from breviary.training.engines import training_arguments
from tests.tiny import compose_tiny

# ------------------------------------------------------------------ one training


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A finished run of 6 steps."""
    home = tmp_path_factory.mktemp("runs")
    return train.train(compose_tiny([*SMALL, f"paths.outputs={home}", f"paths.cache={home}/cache"]))


def test_a_run_folder_is_complete(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert names == {"config.yaml", "environment.json", "inputs.json", "metrics.jsonl", "checkpoints", FINISHED}


def test_one_row_per_logging_step_and_per_validation(uninterrupted):
    trained, validated = metrics(uninterrupted)
    assert list(trained) == [1, 2, 3, 4, 5, 6] and list(validated) == [2, 4, 6]
    for row in trained.values():
        assert row["examples"] == 2 * row["step"]
        assert {
            "step",
            "loss",
            "grad_norm",
            "learning_rate",
            "seconds",
            "tokens_per_s",
            "peak_memory_bytes",
            "effective_ratio",
        } <= row.keys()
        assert all(isinstance(value, (int, float)) and value == value for value in row.values())
    assert {"eval_em", "eval_f1", "eval_nll"} <= validated[2].keys()


def test_rows_are_written_every_log_every_steps(compose):
    folder = train.train(compose([*SMALL, "train.log_every=4", "train.steps=9", "train.eval_every=0"]))
    trained, validated = metrics(folder)
    assert list(trained) == [1, 4, 8] and list(validated) == [9]


def test_checkpoints_hold_trained_weights_only(uninterrupted):
    names = weights(uninterrupted).keys()
    assert names and all(name.startswith("decoder.layers.") and "lora_" in name for name in names)


def test_without_validation_the_last_two_checkpoints_stay(compose):
    folder = train.train(compose([*SMALL, "train.eval_examples=0", "train.steps=4"]))
    trained, validated = metrics(folder)
    assert list(trained) == [1, 2, 3, 4] and not validated
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2", "checkpoint-4"]
    assert best_checkpoint(folder) == last_checkpoint(folder)


def test_a_reader_without_trained_weights_is_rejected(compose):
    with pytest.raises(ValueError, match="nothing to train: .* decoder.train=lora"):
        train.train(compose([*SMALL, "decoder.train=frozen"]))


# ------------------------------------------------------------------ steps


@pytest.mark.parametrize("forms", [["compressor.join=depth"], ["compressor.join=input"]], ids=["depth", "input"])
def test_accumulation_leaves_the_result_unchanged(compose, forms):
    """Four micro-batches of 2 equal one batch of 8: the mean is over all supervised tokens of the step."""
    shared = [
        *SMALL,
        *forms,
        "train.steps=2",
        "train.eval_examples=0",
        "train.optimizer=sgd",
        "train.learning_rate=0.05",
        "train.max_grad_norm=0",
        "decoder.train=attention",
    ]
    whole = train.train(compose([*shared, "train.batch_size=8", "train.accumulation=1"]))
    parts = train.train(compose([*shared, "train.batch_size=2", "train.accumulation=4"]))
    assert_same(whole, parts, rel=1e-6)
    (rows, _), (others, _) = metrics(whole), metrics(parts)
    for step, row in rows.items():
        for key in ("loss", "grad_norm", "learning_rate", "effective_ratio"):
            assert row[key] == pytest.approx(others[step][key], rel=1e-4), (step, key)
        assert row["grad_norm"] > 0.1  # times 0.05: weights change by far more than the tolerance


def test_the_micro_batches_of_a_step_share_the_drawn_ratio(compose, monkeypatch):
    """The ratio is drawn from seed and step, is equal within a step, and is not used in validation."""
    ratios = []
    method = Budget.requested_ratio

    def recorded(budget, training):
        ratios.append((training, method(budget, training)))
        return method(budget, training)

    monkeypatch.setattr(Budget, "requested_ratio", recorded)
    steps = []
    begin = Budget.begin_step
    monkeypatch.setattr(
        Budget,
        "begin_step",
        lambda budget, step, seed: (begin(budget, step, seed), steps.append(step), ratios.append("step"))[0],
    )
    choices = ["compressor=mean_pool", "compressor.ratio=5", "compressor.ratio_choices=[2,3,4]"]
    train.train(compose([*SMALL, *choices, "train.accumulation=3", "train.batch_size=1", "train.steps=8"]))
    assert steps == list(range(8))
    drawn, current = [], None
    for entry in ratios:
        if entry == "step":
            current = set()
            drawn.append(current)
        elif entry[0]:
            current.add(entry[1])
        else:
            assert entry[1] == 5
    assert any(entry == (False, 5) for entry in ratios)
    assert all(len(of_step) == 1 for of_step in drawn) and set().union(*drawn) == {2, 3, 4}


# ------------------------------------------------------------------ interrupted runs


class Killed(RuntimeError):
    """Simulates a signal, a full disk or a power failure."""


@pytest.fixture
def killed(uninterrupted, compose, monkeypatch):
    """killed(step) -> (configuration, folder) of a run with the uninterrupted run's settings, killed after `step`."""

    def run(step):
        cfg = compose(SMALL)
        original = log.RunLog.on_step_end

        def dying(log, args, state, control, **kwargs):
            original(log, args, state, control, **kwargs)
            if state.global_step == step:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(log.RunLog, "on_step_end", dying)
            with pytest.raises(Killed):
                train.train(cfg)
        [folder] = (Path(cfg.paths.outputs) / cfg.name).iterdir()
        assert not (folder / FINISHED).exists()
        return cfg, folder

    return run


@pytest.mark.parametrize("resume", ["path", "auto"])
@pytest.mark.parametrize("step", [4, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(uninterrupted, killed, resume, step, capsys):
    """Killed at step 4 after the checkpoint of step 2, or at step 6 after that of step 4, with later rows logged."""
    cfg, folder = killed(step)
    assert max(metrics(folder)[0]) == step - 1 and last_checkpoint(folder).name == f"checkpoint-{step - 2}"
    cfg.resume = str(folder) if resume == "path" else "auto"
    capsys.readouterr()
    assert train.train(cfg) == folder
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run {folder}, resumes from checkpoint-{step - 2}" and lines[-1] == f"run {folder}"
    assert_same(folder, uninterrupted)
    assert (folder / FINISHED).exists()
    for ours, theirs in zip(metrics(folder), metrics(uninterrupted)):
        assert ours.keys() == theirs.keys()
        for key in ("loss", "grad_norm", "learning_rate", "eval_nll", "eval_f1"):
            assert [row.get(key) for row in ours.values()] == [row.get(key) for row in theirs.values()], key


def test_a_resumed_run_with_dropout_has_the_same_results(compose, monkeypatch):
    """Checkpoints contain the states of the random generators."""
    cfg = compose([*SMALL, "decoder.lora_dropout=0.3", "train.steps=4"])
    whole = train.train(cfg)
    again = whole.with_name("again")
    shutil.copytree(whole, again)
    for step in checkpoints(again)[1:]:
        shutil.rmtree(step)
    (again / FINISHED).unlink()
    cfg.resume = str(again)
    train.train(cfg)
    assert_same(again, whole)


def test_a_finished_run_is_not_resumed(compose):
    cfg = compose([*SMALL, "train.steps=2"])
    first = train.train(cfg)
    cfg.resume = "auto"
    assert train.train(cfg) != first


def test_init_from_starts_from_the_best_weights_of_another_run(compose, uninterrupted):
    folder = train.train(compose([*SMALL, f"init_from={uninterrupted}", "train.learning_rate=1e-12", "train.steps=1"]))
    ours, theirs = weights(folder), load_file(best_checkpoint(uninterrupted) / WEIGHTS)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-9)


# ------------------------------------------------------------------ retention of checkpoints


@pytest.mark.parametrize(
    ("nlls", "retained", "best"),
    [([3.0, 1.0, 2.0, 4.0], [4, 8], 4), ([1.0, 2.0, 3.0, 4.0], [2, 8], 2), ([4.0, 3.0, 2.0, 1.0], [6, 8], 8)],
)
def test_the_best_and_the_last_checkpoint_are_retained(compose, monkeypatch, nlls, retained, best):
    values = iter(nlls)

    def scripted(*args, **kwargs):
        return {"metrics": {"nll": {"value": next(values)}}}

    monkeypatch.setattr(trainer, "summarise", scripted)
    folder = train.train(compose([*SMALL, "train.steps=8"]))
    assert [path.name for path in checkpoints(folder)] == [f"checkpoint-{step}" for step in retained]
    assert best_checkpoint(folder).name == f"checkpoint-{best}" and last_checkpoint(folder).name == "checkpoint-8"


def test_the_trainer_pins_the_tensors_of_a_batch(compose, monkeypatch):
    """DataLoader(pin_memory=True) calls `pin_memory` of a batch; a CPU cannot pin, so calls are recorded."""
    cfg = compose(SMALL)
    session = train.TrainingSession(cfg, train.TEXT)
    items = session.splits["train"]
    batch = session.text.collator(session.backbone.tokenizer())([items[0], items[1]])
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: (pinned.append(tensor), tensor)[1])
    result = torch.utils.data._utils.pin_memory.pin_memory(batch)
    parts = [batch.prefix, batch.context, batch.query, batch.prompt, batch.answer]
    tensors = [x for part in parts for x in (part.ids, part.mask)] + [batch.evidence, batch.offsets]
    assert {id(x) for x in pinned} == {id(x) for x in tensors if x is not None} and len(pinned) > 10
    assert isinstance(result, Batch) and result.examples == batch.examples and result.task == batch.task
    for device, expected in (("cuda", True), ("cpu", False)):
        arguments = training_arguments(cfg, Path("run"), False, torch.device(device), True)
        assert arguments.dataloader_pin_memory == expected


# ------------------------------------------------------------------ checkpoints and validation


class ValidationFailed(RuntimeError):
    """Simulates a validation that runs out of memory."""


@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.parametrize("logged", [False, True], ids=["in_validation", "after_its_row"])
def test_a_crash_in_validation_loses_no_step(uninterrupted, compose, monkeypatch, step, logged):
    """The checkpoint of that step exists; the resumed run validates it and equals the uninterrupted one."""
    cfg, original = compose(SMALL), trainer.ReaderTrainer.evaluate

    def failing(reader_trainer, *args, **kwargs):
        at_step = reader_trainer.state.global_step == step
        if at_step and not logged:
            raise ValidationFailed
        metrics = original(reader_trainer, *args, **kwargs)
        if at_step:
            raise ValidationFailed
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(trainer.ReaderTrainer, "evaluate", failing)
        with pytest.raises(ValidationFailed):
            train.train(cfg)
    [folder] = (Path(cfg.paths.outputs) / cfg.name).iterdir()
    assert last_checkpoint(folder).name == f"checkpoint-{step}"
    cfg.resume = "auto"
    assert train.train(cfg) == folder
    assert_same(folder, uninterrupted)
    assert best_checkpoint(folder).name == best_checkpoint(uninterrupted).name
    for ours, theirs in zip(metrics(folder), metrics(uninterrupted)):
        assert ours.keys() == theirs.keys()
        for key in ("loss", "grad_norm", "learning_rate", "eval_nll", "eval_f1"):
            assert [row.get(key) for row in ours.values()] == [row.get(key) for row in theirs.values()], key


def test_a_validated_checkpoint_is_written_once(compose, monkeypatch):
    """The second write after the validation holds the best step alone, no weights."""
    saved, original = [], trainer.save_learned
    monkeypatch.setattr(trainer, "save_learned", lambda *args: (saved.append(Path(args[0]).name), original(*args)))
    folder = train.train(compose([*SMALL, "train.steps=4"]))
    assert saved == ["checkpoint-2", "checkpoint-4"]
    state = json.loads((last_checkpoint(folder) / "trainer_state.json").read_text())
    assert state["best_global_step"] in (2, 4) and any("eval_nll" in row for row in state["log_history"])


@pytest.mark.parametrize(
    "changes, numbers",
    [
        (["train.batch_size=1"], r"1 process\(es\) and 2 examples .* 1 process\(es\) and 1 example"),
        (["train.accumulation=3"], r"1 process\(es\) and 2 examples .* 1 process\(es\) and 6 example"),
    ],
)
def test_resuming_with_another_global_batch_is_refused(uninterrupted, compose, changes, numbers, capsys):
    with pytest.raises(ConfigError, match=rf"^resume=.*: .*{numbers}"):
        train.train(compose([*SMALL, *changes, f"resume={uninterrupted}"]))
    assert f"resume={uninterrupted}" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "world, engine, batch, numbers",
    [
        (2, ["engine=ddp"], 1, "here are 2 process(es) and 2 examples"),
        (2, ["engine=ddp"], 2, "here are 2 process(es) and 4 examples"),
        (4, ["engine=zero2"], 2, "here are 4 process(es) and 8 examples"),
        (2, ["engine=zero3"], 1, "here are 2 process(es) and 2 examples"),
        (2, ["engine=pipeline", "compressor=comet"], 2, "here are 2 process(es) and 2 examples"),
        (4, ["engine=pipeline", "compressor=comet"], 2, "here are 4 process(es) and 4 examples"),
    ],
)
def test_every_engine_refuses_other_processes(uninterrupted, compose, monkeypatch, world, engine, batch, numbers):
    """All problems at once, before a process group is joined."""
    monkeypatch.setenv("WORLD_SIZE", str(world))
    overrides = [*DATA, *engine, f"train.batch_size={batch}", "train.log_every=0", f"resume={uninterrupted}"]
    with pytest.raises(ConfigError, match=re.escape(numbers)) as raised:
        train.TrainingSession(compose(overrides), train.TEXT)
    assert "train.log_every=0" in str(raised.value)


@pytest.mark.parametrize("resume", ["path", "auto"])
def test_resuming_with_another_number_of_processes_is_refused(killed, monkeypatch, resume):
    """Even where the global batch is equal: every process has a random generator of its own."""
    cfg, folder = killed(4)
    cfg.resume = str(folder) if resume == "path" else "auto"
    for file in folder.glob("checkpoints/*/processes.json"):
        file.write_text(json.dumps({"processes": 2, "global_batch": 2}))
        seal_checkpoint(file.parent)
    with pytest.raises(ConfigError, match=r"2 process\(es\) and 2 examples .* 1 process\(es\) and 2 example"):
        train.train(cfg)


def test_the_same_global_batch_in_other_micro_batches_resumes(killed, uninterrupted):
    cfg, folder = killed(4)
    cfg.resume, cfg.train.batch_size, cfg.train.accumulation = str(folder), 1, 2
    assert train.train(cfg) == folder
    assert_same(folder, uninterrupted, rel=1e-5)


def test_a_checkpoint_of_an_earlier_version_resumes_with_a_note(killed, uninterrupted, capsys):
    cfg, folder = killed(4)
    for name in ("processes.json", MANIFEST):
        for file in folder.glob(f"checkpoints/*/{name}"):
            file.unlink()
    cfg.resume = str(folder)
    capsys.readouterr()
    train.train(cfg)
    assert "checkpoint-2 does not state its processes and global batch; they must be those of this run" in (
        capsys.readouterr().out
    )
    assert_same(folder, uninterrupted)


def test_a_damaged_checkpoint_is_passed_over_by_a_resumed_run(killed, uninterrupted, capsys):
    cfg, folder = killed(6)
    older, newest = checkpoints(folder)
    state = newest / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:-100])
    cfg.resume = "auto"
    capsys.readouterr()
    train.train(cfg)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{state}: this file of a checkpoint is damaged, its sha256 differs from ")
    assert f"resumes from {older.name}" in printed
    assert_same(folder, uninterrupted)


@pytest.mark.parametrize("changes", [[], ["engine=zero2"], ["decoder.train=full"], ["compressor=comet"]])
def test_training_in_float16_is_refused(compose, changes):
    with pytest.raises(ConfigError, match=r"backbone.dtype=float16: .* e.g. backbone.dtype=bfloat16"):
        train.train(compose(["reader=comi", "backbone.dtype=float16", *changes]))
