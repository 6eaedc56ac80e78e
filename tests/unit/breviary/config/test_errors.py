"""User errors end with their messages and exit code 2; other errors keep their traceback."""

import os
import runpy
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from breviary.config.errors import ConfigError, cli_errors, run_cli
from breviary.runtime.checkout import ROOT

NO_RUN = "run=/nowhere: no such folder; RUN is a run folder that train.py printed, a folder of runs such as "


@pytest.fixture(autouse=True)
def no_words(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])


def test_library_errors_keep_their_traceback():
    with pytest.raises(ValueError, match="num_workers"):
        run_cli(lambda: torch.utils.data.DataLoader([0], num_workers=-1), "train")
    with pytest.raises(KeyError):
        run_cli(lambda: {}["a"], "train")


def test_an_interrupted_call_ends_without_a_traceback(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        run_cli(interrupted, "train")
    assert (exit.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def raises(error):
    raise error


@pytest.mark.parametrize(
    "function, output",
    [
        (lambda: raises(ConfigError(["a=1: wrong", "b=2: wrong"])), "error: a=1: wrong\nerror: b=2: wrong\n"),
        (lambda: raises(ValueError("a: wrong\n  line 2")), "error: a: wrong\n  line 2\n"),
        (lambda: OmegaConf.create({"a": "???"}).a, "error: a=???: a value is missing; write a=VALUE\n"),
    ],
)
def test_cli_errors_prints_messages_and_exits_with_code_2(capsys, function, output):
    with pytest.raises(SystemExit) as exit, cli_errors():
        function()
    assert (exit.value.code, capsys.readouterr().err) == (2, output)


def test_cli_errors_lets_other_errors_pass():
    with pytest.raises(KeyError), cli_errors():
        {}["a"]


def test_train_as_a_process_prints_only_its_messages(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "+compressor.ratoi=8", "compressor.ratio=0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: compressor.ratoi: unknown key; the nearest right one is compressor.ratio",
        "error: compressor.ratio=0: must be a whole number of at least 1, e.g. 4",
    ]
    assert not list(tmp_path.iterdir())


def test_eval_as_a_script_prints_only_its_messages(tmp_path, monkeypatch, capfd):
    """In this process: starting another one takes seconds, and imports the same modules as train.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["eval.py", "run=/nowhere"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
    printed = capfd.readouterr()
    assert (exit.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(f"error: {NO_RUN}")
    assert not list(tmp_path.iterdir())
