"""Sweeps: the folder of a sweep lists its runs, and the same command skips what is finished."""

import json
from pathlib import Path

import pytest
from calling import call

import train
from breviary.runs import sweeps
from breviary.runs.folders import FINISHED
from breviary.runs.sweeps import LISTED, announced_sweep, sweep_labels, with_listed_runs
from breviary.training.session import TrainingSession

WORDS = ["-m", "dataset.train_size=8", "dataset.test_size=2", "train.eval_examples=0", "name=s"]


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that are trained, without training: a run ends with an empty checkpoint."""
    runs = []

    def run(session, trainer, folder, checkpoint):
        runs.append(folder.name)
        made = folder / "checkpoints" / "checkpoint-1"
        made.mkdir(parents=True)
        for name in ("trained.safetensors", "trainer_state.json"):
            (made / name).touch()
        (folder / FINISHED).touch()

    monkeypatch.setattr(TrainingSession, "build", lambda session, folder: None)
    monkeypatch.setattr(TrainingSession, "run", run)
    return runs


@pytest.fixture
def sweep(monkeypatch, tmp_path, capsys):
    """sweep(words) -> (exit code, printed lines) of `train.py -m`."""

    def swept(*words):
        with announced_sweep():
            code = call(monkeypatch, tmp_path, train, *WORDS, *words)
        return code, capsys.readouterr().out.splitlines()

    return swept


def test_the_same_command_skips_finished_runs_and_the_folder_lists_all(sweep, trained, tmp_path, monkeypatch):
    code, lines = sweep("sweep=ratios", "compressor.ratio=2,4")
    home = tmp_path / "outputs/sweeps/ratios"
    assert code == 0 and len(trained) == 2
    assert lines[-2] == f"sweep {home}: 2 of 2 runs finished"
    assert lines[-1].startswith("next: python ") and lines[-1].endswith(f"scripts/report.py {home}")
    assert [run.name for run in with_listed_runs(home)[1:]] == sorted(trained)
    settings = [json.loads(file.read_text())["settings"] for file in sorted(home.glob(f"*{LISTED}"))]
    jobs = [line for line in lines if line.startswith("sweep ratios, job ")]
    assert ["compressor.ratio=2" in jobs[0].split(), "compressor.ratio=4" in jobs[1].split()] == [True, True]
    assert sorted(sweep_labels(home).values()) == ["compressor.ratio=2", "compressor.ratio=4"]
    assert {"compressor.ratio=2"} < set(settings[0]) or {"compressor.ratio=2"} < set(settings[1])

    before = list(trained)
    code, lines = sweep("sweep=ratios", "compressor.ratio=2,4,8")
    assert code == 0 and len(trained) == 3 and trained[:2] == before
    skipped = [line for line in lines if line.startswith("skipped: ")]
    assert len(skipped) == 2 and all("is finished" in line and "resume=never" in line for line in skipped)
    assert f"sweep {home}: 3 of 3 runs finished" in lines

    sweep("sweep=other", "compressor.ratio=2", "resume=never")
    call(monkeypatch, tmp_path, train, *WORDS[1:], "compressor.ratio=2", "resume=auto")  # no sweep: a new run
    assert len(trained) == 5 and sweeps.current_sweep() is None
    moved = (tmp_path / "outputs").rename(tmp_path / "moved")
    assert [run.parent for run in with_listed_runs(moved / "sweeps/ratios")[1:]] == [Path(moved / "s")] * 3


def test_other_data_are_not_skipped_and_the_time_is_the_default_name(sweep, trained, tmp_path):
    sweep("compressor.ratio=2", "dataset.seed=0,1")
    [home] = (tmp_path / "outputs/sweeps").iterdir()
    assert len(trained) == 2 and len(list(home.glob(f"*{LISTED}"))) == 2
    assert sweeps.current_sweep() is None
