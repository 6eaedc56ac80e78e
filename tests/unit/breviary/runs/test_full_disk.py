"""A disk that becomes full: one sentence with the file, nothing of what was there is lost, and it goes on afterwards.

Twice: on a small tmpfs, and under a limit of the size of a file (RLIMIT_FSIZE), which needs no permission to mount.
"""

import json
import os
import re
import resource
import shutil
import subprocess

import pytest
import torch
from calling import ROW, call, write

import eval as evaluation
import train as training
from breviary.evaluation.results import PREDICTIONS, Predictions
from breviary.readers.saved import read_saved, write_saved
from breviary.runs.checkpoints import checkpoint_to_resume, checkpoints
from breviary.training import trainer

TRAIN = [
    *("compressor=comi", "compressor.encoder_layers=1", "compressor.join=depth", "backbone.width=32"),
    *("backbone.layers=2", "dataset.facts=2", "dataset.train_size=24", "train.steps=2", "train.batch_size=1"),
    *("train.eval_examples=0", "train.save_every=1", "train.log_every=1", "resume=auto"),
]


class LimitedFiles:
    """No file may become longer than `fill` allows. Python ignores SIGXFSZ, so that writes fail with EFBIG."""

    def __init__(self, home):
        self.home, self.before = home, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, room, file=None):
        size = file.stat().st_size if file else 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, self.before[1]))

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


class SmallDisk:
    """A tmpfs of 4 MB."""

    def __init__(self, home):
        self.home = home
        mounted = (
            shutil.which("mount")
            and not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(home)], capture_output=True
            ).returncode
        )
        if not mounted:
            pytest.skip("a tmpfs cannot be mounted here (it takes root); the variant with limited files has run")

    def fill(self, room, file=None):
        state = os.statvfs(self.home)
        free = state.f_bavail * state.f_frsize
        (self.home / "filler").write_bytes(bytes(free - room // state.f_frsize * state.f_frsize))

    def free(self):
        (self.home / "filler").unlink(missing_ok=True)


@pytest.fixture(params=["limited files", "tmpfs"])
def disk(request, tmp_path):
    disk = (LimitedFiles if request.param == "limited files" else SmallDisk)(tmp_path)
    yield disk
    disk.free()
    if isinstance(disk, SmallDisk):
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def assert_one_sentence(printed, file):
    reason = "(No space left on device|File too large)"
    assert re.match(rf"error: {re.escape(str(file))}: cannot be written \({reason}\); what was written ", printed)
    assert printed.count("\n") == 1 and "resume=auto after its last checkpoint" in printed


def test_training_keeps_the_checkpoint_before_and_goes_on(disk, monkeypatch, capsys):
    room, file = (40_000, "trained.safetensors") if isinstance(disk, LimitedFiles) else (140_000, "optimizer.pt")
    begin = trainer.begin_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(
            trainer, "begin_checkpoint", lambda path: (path.name == "checkpoint-2" and disk.fill(room), begin(path))
        )
        assert call(patch, disk.home, training, *TRAIN) == 2
    disk.free()
    [run] = (disk.home / "outputs").glob("*/*_*")
    assert_one_sentence(capsys.readouterr().err, run / "checkpoints" / "checkpoint-2" / file)
    assert [path.name for path in checkpoints(run)] == ["checkpoint-1"] == [checkpoint_to_resume(run).name]
    assert call(monkeypatch, disk.home, training, *TRAIN) == 0
    assert f"run {run}, resumes from checkpoint-1" in capsys.readouterr().out
    assert [path.name for path in checkpoints(run)] == ["checkpoint-1", "checkpoint-2"]


def test_an_evaluation_keeps_what_it_answered_and_answers_the_rest(disk, monkeypatch, capsys):
    data = write(disk.home / "test.jsonl", [{**ROW, "id": str(n)} for n in range(30)])
    words = ["compressor=full_context", "baselines=[]", "dataset=jsonl", f"dataset.test={data}", "backbone.layers=2"]
    words += ["eval_batch_size=10", "generation.max_new_tokens=1"]
    append = Predictions.append

    def fill_after_the_first(self, rows):
        append(self, rows)
        disk.fill(100, self.path)

    with monkeypatch.context() as patch:
        patch.setattr(Predictions, "append", fill_after_the_first)
        assert call(patch, disk.home, evaluation, *words) == 2
    disk.free()
    [file] = (disk.home / "outputs").rglob(PREDICTIONS)
    assert_one_sentence(capsys.readouterr().err, file)
    before = file.read_text()
    assert 0 < len(Predictions(file).done) == before.count("\n") < 30
    assert call(monkeypatch, disk.home, evaluation, *words) == 0
    after = file.read_text()
    assert after.startswith(before) and len({json.loads(line)["id"] for line in after.splitlines()}) == 30


def test_a_memory_file_stays_as_it_was(disk):
    file = disk.home / "memory"
    write_saved(file, "memory", {}, {"slots": torch.ones(4)}, {})
    disk.fill(8192)
    with pytest.raises(OSError, match=rf"(No space left on device|File too large): '{re.escape(str(file))}'$"):
        write_saved(file, "memory", {}, {"slots": torch.zeros(9000)}, {})
    disk.free()
    assert read_saved(file, ["memory"], {})[1]["slots"].tolist() == [1, 1, 1, 1]
    assert [path.name for path in disk.home.iterdir()] == ["memory"]
