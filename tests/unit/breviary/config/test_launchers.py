"""Launchers of a sweep: a missing one is explained with the command that installs it."""

import importlib.util
import shlex
import tomllib

import pytest
from calling import call

import train
from breviary.config.launchers import ALIASES, EXTRAS, launcher_message
from breviary.runtime.checkout import ROOT


def test_extras_are_those_of_pyproject():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, (extra, _) in EXTRAS.items():
        [package] = extras[extra]
        assert package.startswith(f"hydra-{extra}-launcher"), name
        command = launcher_message(name).split("`")[1]
        assert shlex.split(command) == ["python", "-m", "pip", "install", "-c", "constraints.txt", f".[{extra}]"]


@pytest.mark.parametrize("name", [*EXTRAS, *ALIASES, "ray"])
def test_a_missing_launcher_is_explained(monkeypatch, tmp_path, capsys, name):
    plugin = f"hydra_plugins.hydra_{EXTRAS[name][0]}_launcher" if name in EXTRAS else None
    if plugin and importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(plugin):
        pytest.fail(f"{plugin} is installed: this test needs an environment without it")
    assert call(monkeypatch, tmp_path, train, "-m", f"hydra/launcher={name}", "seed=1,2") == 2
    printed = capsys.readouterr().err
    assert printed == f"error: {launcher_message(name)}\n"
    assert not (tmp_path / "outputs").exists()
