"""Run folders: named once, found again, and distinguished by their configuration."""

import json
import os
import socket
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from breviary.runs.checkpoints import WEIGHTS, best_checkpoint, checkpoints, last_checkpoint
from breviary.runs.folders import config_hash, finish_run, load_config, normalise_run_path, open_run, unlock_run
from breviary.runtime import locks
from breviary.runtime.locks import LOCK
from tests.at_once import ask_at_once


@pytest.fixture
def cfg(tmp_path):
    return OmegaConf.create(
        {
            "name": "facts",
            "seed": 1,
            "resume": "never",
            "paths": {"outputs": str(tmp_path)},
            "train": {"steps": 4},
            "backbone": {},
            "compressor": {},
            "engine": {},
        }
    )


def checkpoint(folder, step, best=None, complete=True):
    path = folder / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / WEIGHTS).touch()
    if complete:
        (path / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    return path


def test_a_new_folder_for_every_run(cfg, tmp_path):
    folders = [open_run(cfg)[0] for _ in range(3)]
    assert len(set(folders)) == 3 and all(folder.parent == tmp_path / "facts" for folder in folders)
    for folder in folders:
        assert load_config(folder) == cfg
        assert {"commit", "versions", "hardware"} <= json.loads((folder / "environment.json").read_text()).keys()


def test_the_written_configuration_is_resolved(cfg):
    cfg.other = "${train.steps}"
    assert "other: 4" in (open_run(cfg)[0] / "config.yaml").read_text()


def test_auto_goes_on_with_the_newest_unfinished_run(cfg):
    folder, _ = open_run(cfg)
    cfg.resume = "auto"
    fresh, none = open_run(cfg)
    assert fresh != folder and none is None  # no checkpoint yet: nothing to go on from
    checkpoint(folder, 2)
    last = checkpoint(folder, 4)
    assert open_run(cfg) == (folder, last)
    finish_run(folder)
    assert open_run(cfg)[0] not in (folder, fresh)


def test_auto_passes_over_other_configurations(cfg):
    folder, _ = open_run(cfg)
    checkpoint(folder, 2)
    cfg.resume, cfg.seed = "auto", 2
    assert open_run(cfg)[0] != folder


def test_a_run_folder_as_resume(cfg, tmp_path, capsys):
    folder, _ = open_run(cfg)
    cfg.resume = str(folder)
    with pytest.raises(ValueError, match="no run folder with a complete checkpoint"):
        open_run(cfg)
    step = checkpoint(folder, 2)
    capsys.readouterr()
    assert open_run(cfg) == (folder, step) and capsys.readouterr().out == ""
    cfg.train.steps, cfg.seed, cfg.paths.outputs = 8, None, str(tmp_path / "elsewhere")
    assert open_run(cfg) == (folder, step)
    assert capsys.readouterr().out == (
        f"warning: {folder} goes on with other settings than it began with, and its config.yaml keeps stating the "
        "first: seed=null (was 1), train.steps=8 (was 4)\n"
    )


def test_incomplete_checkpoints_do_not_count(tmp_path):
    whole = [checkpoint(tmp_path, step) for step in (10, 9)]
    checkpoint(tmp_path, 11, complete=False)
    (tmp_path / "checkpoints" / "checkpoint-x").mkdir()
    assert checkpoints(tmp_path) == whole[::-1] and last_checkpoint(tmp_path) == whole[0]


def test_the_best_checkpoint(tmp_path):
    best = checkpoint(tmp_path, 2, best=2)
    assert best_checkpoint(tmp_path) == best
    last = checkpoint(tmp_path, 6, best=2)
    assert best_checkpoint(tmp_path) == best
    checkpoint(tmp_path, 8, best=4)  # removed meanwhile
    assert best_checkpoint(tmp_path) == last.with_name("checkpoint-8")
    assert best_checkpoint(tmp_path) == last_checkpoint(tmp_path)


def test_without_validation_the_newest_is_best(tmp_path):
    checkpoint(tmp_path, 2)
    last = checkpoint(tmp_path, 4)
    assert best_checkpoint(tmp_path) == last


def test_the_hash_is_that_of_what_matters(cfg):
    same, other = cfg.copy(), cfg.copy()
    same.resume, same.paths = "auto", {"outputs": "elsewhere"}
    other.train = {"steps": 5}
    assert config_hash(same) == config_hash(cfg) != config_hash(other)
    assert config_hash(other, without=("train", "resume", "paths")) == config_hash(
        cfg, without=("train", "resume", "paths")
    )


def test_no_run_folder(tmp_path):
    with pytest.raises(ValueError, match="no config.yaml in it"):
        load_config(tmp_path)


def test_a_run_has_one_name_however_it_is_written(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for run in (
        "outputs/demo/one",
        "outputs/demo/one/",
        "./outputs/demo/../demo/one",
        str(tmp_path / "outputs/demo/one"),
    ):
        assert normalise_run_path(run) == "outputs/demo/one"
    assert normalise_run_path("/elsewhere/one/") == "/elsewhere/one"


def test_what_counts_a_data_set_s_tokens_follows_the_backbone(cfg, tmp_path):
    """An exported folder names another path for the backbone, and no path of the machine of its training."""
    backbone = {"_target_": "breviary.backbones.pretrained.Backbone", "path": "/trained/here"}
    cfg.backbone, cfg.dataset = backbone, {"counter": "${backbone}", "instruction": "Read."}
    folder, _ = open_run(cfg)
    assert cfg.dataset.counter.path == "/trained/here"
    assert (folder / "config.yaml").read_text().count("/trained/here") == 1
    stored = load_config(folder)
    assert stored.dataset == {"counter": backbone, "instruction": "Read."} and config_hash(stored) == config_hash(cfg)
    stored.backbone.path = "elsewhere"
    assert stored.dataset.counter.path == "elsewhere"


# ------------------------------------------------------------------ one process at a time


@pytest.mark.parametrize("resume", ["auto", "of a run"])
def test_of_eight_processes_that_start_at_once_one_trains(cfg, tmp_path, resume, monkeypatch):
    monkeypatch.setattr(locks, "WAIT", 0.05)
    cfg.resume = "auto"
    if resume != "auto":
        folder, _ = open_run(cfg)
        checkpoint(folder, 2)
        unlock_run(folder)
        cfg.resume = str(folder)
    inputs = {"train": "a", "validation": "b", "backbone": "c", "tokens": "d"}
    found = ask_at_once(lambda: open_run(cfg, inputs)[0])
    [(_, owner, folder)] = [answer for answer in found if answer[0] == "opened"]
    assert [str(path) for path in (tmp_path / "facts").glob("*_*")] == [folder]
    for kind, _, text in found:
        assert kind == "opened" or (
            kind == "LockedError"
            and text.startswith(f"run {folder}: process {owner} on {socket.gethostname()} (since ")
            and text.endswith("is writing it; wait until it ends, or start another run: resume=never")
        )
    assert len(found) == 8


def test_a_run_without_checkpoint_that_was_killed_is_passed_over(cfg):
    cfg.resume = "auto"
    [(kind, _, folder)] = ask_at_once(lambda: open_run(cfg)[0], processes=1)
    assert kind == "opened" and (Path(folder) / LOCK).exists()  # as after SIGKILL
    fresh, none = open_run(cfg)
    assert str(fresh) != folder and none is None
    unlock_run(fresh)
    assert not (fresh / LOCK).exists() and not (Path(folder) / LOCK).exists()


def test_a_refused_start_leaves_the_lock_to_its_owner(cfg, monkeypatch):
    monkeypatch.setattr(locks, "WAIT", 0.05)
    folder, _ = open_run(cfg)
    checkpoint(folder, 2)
    cfg.resume = "auto"
    for _ in range(2):
        [(kind, _, text)] = ask_at_once(lambda: open_run(cfg)[0], processes=1)
        assert kind == "LockedError" and f"process {os.getpid()} on" in text
    assert open_run(cfg)[0] == folder
