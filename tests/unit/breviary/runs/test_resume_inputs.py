"""resume=auto continues a run only with the data, backbone and start that it was trained from, wherever they lie."""

import json
import shutil
from pathlib import Path

import pytest

import train
from breviary.runs.folders import FINISHED, INPUTS
from tests.tiny import compose_tiny

SMALL = [
    "dataset=jsonl",
    "compressor=mean_pool",
    "backbone.layers=2",
    "backbone.width=32",
    "compressor.encoder_layers=1",
    "train.steps=2",
    "train.batch_size=2",
    "train.eval_every=1",
]


def write_data(file: Path, first: int) -> Path:
    rows = [
        {"id": str(i), "context": f"The tower {i} has {first + i} metres.", "question": "How high?", "answers": ["9"]}
        for i in range(4)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def start(tmp_path):
    """start(words) -> the run folder of a training, whose last step is removed: it is unfinished."""

    def start(*words, data=tmp_path / "train.jsonl"):
        cfg = compose_tiny([*SMALL, f"dataset.train={data}", f"dataset.validation={tmp_path}/validation.jsonl", *words])
        cfg.paths.outputs, cfg.paths.cache = f"{tmp_path}/outputs", f"{tmp_path}/cache"
        folder = train.train(cfg)
        (folder / FINISHED).unlink()
        shutil.rmtree(folder / "checkpoints" / "checkpoint-2")
        return folder

    write_data(tmp_path / "train.jsonl", 10)
    write_data(tmp_path / "validation.jsonl", 50)
    return start


def test_equal_data_under_another_path_are_the_same_run(start, tmp_path):
    run = start()
    assert start("resume=auto", data=shutil.copy(tmp_path / "train.jsonl", tmp_path / "copy.jsonl")) == run


@pytest.mark.parametrize("file", ["train", "validation"])
def test_other_data_under_the_same_path_are_another_run(start, tmp_path, file, capsys):
    run = start()
    write_data(tmp_path / f"{file}.jsonl", 77)
    other = start("resume=auto")
    name = {"train": "training", "validation": "validation"}[file]
    assert other != run and f"{run} is not continued, it has other {name} data;" in capsys.readouterr().out


def test_other_settings_are_another_run_without_a_word(start, capsys):
    run = start()
    assert start("resume=auto", "seed=7") != run
    assert "not continued" not in capsys.readouterr().out


def test_resuming_a_folder_with_other_data_is_refused(start, tmp_path):
    run = start()
    write_data(tmp_path / "train.jsonl", 77)
    with pytest.raises(ValueError, match=f"^resume={run}: that run has other training data .*init_from={run}"):
        start(f"resume={run}")


def test_a_run_without_hashes_is_continued_with_a_word(start, capsys):
    run = start()
    (run / INPUTS).unlink()
    assert start("resume=auto") == run
    assert "earlier version" in capsys.readouterr().out


def test_other_initial_weights_are_another_run(start, tmp_path, capsys):
    first = start("name=first")
    run = start(f"init_from={first}")
    moved = shutil.copytree(first, tmp_path / "moved")
    assert start("resume=auto", f"init_from={moved}") == run
    other = start("name=other", "seed=3")
    assert start("resume=auto", f"init_from={other}") != run
    assert "it has other initial weights" in capsys.readouterr().out
