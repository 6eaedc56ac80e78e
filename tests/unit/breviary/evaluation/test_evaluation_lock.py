"""One process at a time evaluates into a folder; finished results are shown to all."""

from __future__ import annotations

import socket

import pytest
from omegaconf import OmegaConf

import breviary.evaluation.locks as evaluation_locks
from breviary.evaluation.identity import evaluation_folder
from breviary.evaluation.results import RESULTS
from breviary.runtime import locks
from breviary.runtime.locks import release_lock
from tests.at_once import ask_at_once

CFG = OmegaConf.create({"reader": "comi 8x"})
IDENTITY = {"examples": "a"}


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WAIT", 0.05)
    return lambda identity=IDENTITY: evaluation_locks.lock_evaluation(tmp_path / "eval", CFG, identity)


def test_of_eight_processes_that_start_at_once_one_evaluates(lock, tmp_path):
    found = ask_at_once(lock)
    [owner] = [pid for kind, pid, _ in found if kind == "opened"]
    folder = evaluation_folder(tmp_path / "eval", CFG, IDENTITY)
    for kind, _, text in found:
        assert kind == "opened" or (
            kind == "LockedError"
            and text.startswith(f"evaluation {folder}: process {owner} on {socket.gethostname()} (since ")
            and text.endswith("is writing it; wait until it ends: the same command then shows its results")
        )


def test_other_rows_are_evaluated_at_the_same_time(lock):
    file = lock()
    [(kind, _, text)] = ask_at_once(lambda: lock({"examples": "b"}), processes=1)
    assert kind == "opened" and text != str(file)
    release_lock(file)


def test_finished_results_are_waited_for(lock, tmp_path, monkeypatch):
    """Eight calls that only show results wait for each other instead of being refused."""
    folder = evaluation_folder(tmp_path / "eval", CFG, IDENTITY)
    folder.mkdir(parents=True)
    (folder / RESULTS).touch()
    found = ask_at_once(lambda: release_lock(lock()))
    assert [kind for kind, _, _ in found] == ["opened"] * 8
