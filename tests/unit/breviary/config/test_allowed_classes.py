"""A run folder cannot make eval.py call arbitrary classes. tests/test_configs.py: those of the YAMLs are allowed."""

import re

import pytest
from calling import call
from omegaconf import OmegaConf
from tiny_runs import tiny_run

import eval as evaluating
from breviary.config.keys import target_class


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(
        tmp_path_factory.mktemp("runs"),
        "compressor=mean_pool",
        "objective=reconstruct",
        "backbone.layers=4",
        "compressor.encoder_layers=2",
    )


@pytest.fixture
def change_target(run, tmp_path):
    """change_target(key): makes the run's configuration name subprocess.Popen there, which would create a file."""
    file, created = run / "config.yaml", tmp_path / "created"
    original = file.read_text(encoding="utf-8")

    def change(key):
        cfg = OmegaConf.load(file)
        OmegaConf.update(cfg, key, {"_target_": "subprocess.Popen", "args": ["touch", str(created)]}, merge=False)
        OmegaConf.save(cfg, file)

    yield change
    file.write_text(original, encoding="utf-8")
    assert not created.exists()


@pytest.mark.parametrize("key", ["dataset", "objective", "objective.measures", "compressor", "backbone"])
def test_other_classes_in_a_run_are_rejected(run, refused, change_target, key):
    change_target(key)
    messages = refused(evaluating, f"run={run}", "examples=1")
    assert any(line.startswith(f"{key}._target_=subprocess.Popen: must be a subclass of ") for line in messages), (
        messages
    )


def test_other_classes_in_a_compared_run_are_rejected(run, refused, change_target):
    """Every row of the table has the same check, so one key suffices."""
    change_target("compressor")
    messages = refused(evaluating, "compressor=no_context", f"compare=[{run}]", "examples=1")
    assert any(line.startswith("compressor._target_=subprocess.Popen: must be a subclass of ") for line in messages), (
        messages
    )


def test_the_dataset_of_a_compared_run_is_not_used(run, change_target, monkeypatch, tmp_path):
    change_target("dataset")
    words = ["compressor=no_context", f"compare=[{run}]", "examples=1", "generation.max_new_tokens=2"]
    assert call(monkeypatch, tmp_path, evaluating, *words) == 0


@pytest.mark.parametrize("path", ["../x", ".x", "", "nothing.at.all"])
def test_a_class_that_cannot_be_imported_is_named(path):
    cfg = OmegaConf.create({"compressor": {"_target_": path}})
    with pytest.raises(ValueError, match=rf"compressor._target_={re.escape(path)}: cannot be imported"):
        target_class(cfg, "compressor")
