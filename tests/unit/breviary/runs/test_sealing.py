"""A checkpoint is complete when its files are listed with their hashes; damaged ones are named and passed over."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from breviary.runs.checkpoints import (
    checkpoint_to_resume,
    checkpoints,
    delete_old_checkpoints,
    read_metadata,
    save_weights,
)
from breviary.runs.sealing import (
    MANIFEST,
    begin_checkpoint,
    damage,
    delete_checkpoint,
    is_complete,
    replace_file,
    seal_checkpoint,
)

STATE = "trainer_state.json"


def write_checkpoint(run, step, seal=True):
    folder = run / "checkpoints" / f"checkpoint-{step}"
    begin_checkpoint(folder)
    save_weights(folder, {"w": torch.full((8,), float(step))}, {"name": "tiny", "sha256": "0"})
    (folder / STATE).write_text("{}")
    (folder / "global_step").mkdir()
    (folder / "global_step" / "optimizer.pt").write_bytes(bytes(range(64)))
    if seal:
        seal_checkpoint(folder)
    return folder


@pytest.fixture
def run(tmp_path):
    for step in (2, 4):
        write_checkpoint(tmp_path, step)
    return tmp_path


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped weights": lambda folder: flip(folder / "trained.safetensors"),
    "flipped state of the optimizer": lambda folder: flip(folder / "global_step" / "optimizer.pt"),
    "truncated": lambda folder: (folder / "global_step" / "optimizer.pt").write_bytes(bytes(range(32))),
    "empty, as after a loss of power": lambda folder: (folder / STATE).write_bytes(b""),
    "missing": lambda folder: (folder / "global_step" / "optimizer.pt").unlink(),
    "missing weights": lambda folder: (folder / "trained.safetensors").unlink(),
    "a damaged list": lambda folder: (folder / MANIFEST).write_text('{"trained.safe'),
    "no list": lambda folder: (folder / MANIFEST).write_text("[1]"),
}


def test_a_sound_checkpoint_is_the_newest(run):
    assert checkpoint_to_resume(run).name == "checkpoint-4"


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_passed_over(run, name):
    DAMAGE[name](run / "checkpoints" / "checkpoint-4")
    lines = []
    assert checkpoint_to_resume(run, lines.append).name == "checkpoint-2"
    [line] = lines
    assert str(run / "checkpoints" / "checkpoint-4") in line and ("damaged" in line or "missing" in line)


def test_without_a_sound_checkpoint_all_are_named(run):
    for step in (2, 4):
        DAMAGE["flipped weights"](run / "checkpoints" / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=r"checkpoint-4/.*checkpoint-2/.*resume=never"):
        checkpoint_to_resume(run)


@pytest.mark.parametrize("seal", [False, True])
def test_a_checkpoint_without_its_list_is_incomplete(run, seal):
    folder = write_checkpoint(run, 6, seal)
    assert is_complete(folder) is seal
    assert checkpoints(run)[-1].name == ("checkpoint-6" if seal else "checkpoint-4")


def test_checkpoints_of_earlier_versions_have_no_list(run):
    folder = run / "checkpoints" / "checkpoint-4"
    (folder / MANIFEST).unlink()
    assert is_complete(folder) and damage(folder) is None and checkpoint_to_resume(run) == folder


def test_a_damaged_list_makes_a_checkpoint_incomplete(run):
    (run / "checkpoints" / "checkpoint-4" / MANIFEST).write_text('{"trained.safe')
    assert checkpoint_to_resume(run).name == "checkpoint-2"


def test_replacing_a_file_leaves_a_sound_checkpoint_at_any_moment(run, monkeypatch):
    folder = run / "checkpoints" / "checkpoint-4"
    new = folder / "state.part"
    new.write_text('{"best": 4}')
    monkeypatch.setattr(type(new), "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # between the list and the file
        replace_file(folder, STATE, new)
    assert damage(folder) is None and (folder / STATE).read_text() == "{}"
    monkeypatch.undo()
    replace_file(folder, STATE, new)
    assert damage(folder) is None and json.loads((folder / STATE).read_text()) == {"best": 4}


# ---- deletion ----


@pytest.mark.parametrize("stop", ["checkpoint", "list"])
def test_a_checkpoint_whose_deletion_was_killed_is_none(run, monkeypatch, stop):
    """At any moment: killed before the first file is deleted, or when the list is gone and the weights are not."""

    def killed(folder):
        if stop == "list":
            (folder / MANIFEST).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("breviary.runs.sealing.shutil.rmtree", killed)
        delete_checkpoint(run / "checkpoints" / "checkpoint-2")
    assert [path.name for path in checkpoints(run)] == ["checkpoint-4"]
    delete_old_checkpoints(run / "checkpoints", None, 2)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-4"]


def test_a_new_checkpoint_holds_nothing_of_a_killed_one(run):
    folder = write_checkpoint(run, 6, seal=False)
    (folder / "optimizer-of-4-processes.pt").write_bytes(b"")
    assert sorted(path.name for path in write_checkpoint(run, 6).iterdir()) == sorted(
        [MANIFEST, STATE, "global_step", "trained.safetensors"]
    )


@pytest.mark.parametrize(
    "best, most, kept",
    [
        (None, 2, [6, 8]),
        (2, 2, [2, 8]),
        (8, 2, [6, 8]),
        (2, 1, [2, 8]),  # the newest is needed to go on
        (None, 1, [8]),
        (5, 2, [6, 8]),  # a best one that is gone
    ],
)
def test_the_best_and_the_newest_checkpoints_stay(run, best, most, kept):
    for step in (6, 8):
        write_checkpoint(run, step)
    write_checkpoint(run, 7, seal=False)  # killed
    home = run / "checkpoints"
    delete_old_checkpoints(home, best and str(home / f"checkpoint-{best}"), most)
    assert sorted(int(path.name.partition("-")[2]) for path in home.iterdir()) == kept


def test_a_file_that_names_no_backbone_is_no_checkpoint(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "trained.safetensors", metadata={"schema": "1"})
    with pytest.raises(ValueError, match="trained.safetensors: no checkpoint, it names no backbone"):
        read_metadata(tmp_path)
