"""Full disks, folders that cannot be written, empty variables: one sentence, and what was written stays valid."""

import errno
import os
import sys

import pytest
from calling import ROW, SMALL, call, jsonl

import eval as evaluation
import train as training
from breviary.backbones.fetching import cache_folder
from breviary.evaluation.results import PREDICTIONS, Predictions
from breviary.runtime import files
from data.converters.prepare import data_folder

PREDICTION = dict.fromkeys(
    ["question", "prediction", "references", "scores", "answer_tokens", "context_tokens", "memory_slots"]
    + ["memory_bytes", "context_reused", "truncated", "times"]
)


def full_after(monkeypatch, name, written):
    """Simulates a disk that becomes full when `written` bytes of the file NAME have been written."""

    real = open

    def opened(path, mode="r", *args, **kwargs):
        stream = real(path, mode, *args, **kwargs)
        return Full(stream) if str(path).endswith(name) and mode != "r" else stream

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def write(self, data):
            room = written - os.fstat(self.stream.fileno()).st_size
            if room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.stream.write(bytes(data[:room]))

        def __getattr__(self, key):
            return getattr(self.stream, key)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.stream.close()

    monkeypatch.setattr(files, "open", opened, raising=False)


def test_predictions_stay_valid_when_the_disk_is_full(tmp_path, monkeypatch):
    file = tmp_path / PREDICTIONS
    predictions = Predictions(file)
    predictions.append([PREDICTION | {"id": "a", "nll": 1.0}])
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        full_after(patch, PREDICTIONS, len(before) + 40)  # in the middle of a line
        with pytest.raises(OSError) as caught:
            predictions.append([PREDICTION | {"id": "b", "nll": 1.0}])
    assert file.read_bytes() == before and predictions.done == {"a"}
    assert files.storage_message(caught.value).startswith(f"{file}: cannot be written (No space left on device); what ")
    predictions.append([PREDICTION | {"id": "b", "nll": 1.0}])
    assert Predictions(file).done == {"a", "b"}


def test_a_file_that_is_written_whole_stays_as_it_was(tmp_path, monkeypatch):
    files.write_json(tmp_path / "a.json", 1)
    with monkeypatch.context() as patch:
        full_after(patch, ".part", 0)
        with pytest.raises(OSError, match="No space left"):
            files.write_json(tmp_path / "a.json", [2])
    assert (tmp_path / "a.json").read_text() == "1\n" and list(tmp_path.iterdir()) == [tmp_path / "a.json"]


@pytest.mark.parametrize("text", ["I/O error: full (os error 28)", "PytorchStreamWriter failed writing"])
def test_full_disks_of_libraries(text):
    assert "cannot be written (No space left on device)" in files.storage_message(RuntimeError(text))
    assert files.storage_message(RuntimeError("other")) is None and files.storage_message(ConnectionError()) is None


# ------------------------------------------------------------------ folders


def test_outputs_that_are_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    problem = (
        f"paths.outputs={tmp_path}/file/runs: {tmp_path}/file is a file; give a folder, e.g. paths.outputs=outputs"
    )
    assert files.folder_problem("paths.outputs", f"{tmp_path}/file/runs") == [problem]


def test_outputs_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    [problem] = files.folder_problem("paths.outputs", tmp_path / "a" / "b")
    assert problem == (
        f"paths.outputs={tmp_path}/a/b: {tmp_path} cannot be written; give a folder that you may write, e.g. "
        "paths.outputs=outputs"
    )


@pytest.mark.parametrize("entry", [training, evaluation], ids=["train", "eval"])
def test_unwritable_folders_are_refused_before_weights_are_loaded(entry, tmp_path, monkeypatch, capsys):
    (tmp_path / "outputs").write_text("a file")
    assert call(monkeypatch, tmp_path, entry, "compressor=full_context", *SMALL[:1], "train.steps=0") == 2
    printed = capsys.readouterr().err
    assert f"error: paths.outputs={tmp_path}/outputs: {tmp_path}/outputs is a file; give a folder" in printed
    (tmp_path / "outputs").unlink()
    assert not (tmp_path / "cache").exists()  # a wrong configuration leaves nothing on disk
    (tmp_path / "cache").write_text("a file")
    assert call(monkeypatch, tmp_path, entry, "compressor=full_context", *SMALL[:1]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {tmp_path}/cache/tokenised: tokenised data cannot be written there (")
    assert printed.count("error:") == 1 and "Traceback" not in printed


@pytest.mark.parametrize("variable, name", [("BREVIARY_CACHE", "cache"), ("BREVIARY_DATA", "data")])
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable(monkeypatch, variable, name, value, tmp_path, capsys):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "argv", ["train.py", f"paths.outputs={tmp_path}", "backbone.layers=4"])
    with pytest.raises(SystemExit):
        training.run_cli(training.main, training.CONFIG)
    assert (
        f"error: paths.{name} is empty; the environment variable {variable} may be set to nothing: unset it, or give a "
        f"folder, e.g. paths.{name}={name}\n"
    ) in capsys.readouterr().err
    for folder in (cache_folder, data_folder)[name == "data" :]:
        with pytest.raises(ValueError, match=f"^the environment variable {variable} is empty; unset it, or set it to"):
            folder()


# ------------------------------------------------------------------ characters


@pytest.mark.parametrize(
    "change, name",
    [
        ({"context": "a\ud83d"}, "'context'"),
        ({"question": "a\ud83d?"}, "'question'"),
        ({"answers": ["b", "a\udc00"]}, "'answers'"),
        ({"answers": "a\udc00"}, "'answers'"),
        ({"id": "a\ud83d"}, "'id'"),
        ({"documents": [{"title": "a\ud83d", "text": "t", "is_gold": True}]}, "'title' of document 1"),
        ({"documents": [{"title": "t", "text": "a\ud83d", "is_gold": True}]}, "'text' of document 1"),
    ],
)
def test_a_lone_surrogate_is_reported_with_line_and_field(refused, tmp_path, change, name):
    [message] = refused(training, *jsonl(tmp_path, [ROW, {**ROW, **change}]), *SMALL)
    assert f"\n  line 2: {name} holds a lone surrogate ('\\ud" in message
