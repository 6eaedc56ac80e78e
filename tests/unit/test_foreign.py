"""A run folder from elsewhere does not choose what eval.py calls; every class that Breviary's own YAMLs name is let through."""

from pathlib import Path

import pytest
from calling import call
from omegaconf import OmegaConf
from tiny_runs import tiny_run

import eval as evaluating
from breviary.config.trusted import ALL, untrusted_targets
from tests.tiny import compose_tiny

CONFIGS = Path(evaluating.__file__).parent / "configs"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(
        tmp_path_factory.mktemp("runs"),
        "compressor=mean_pool",
        "objective=reconstruct",
        "backbone.layers=4",
        "compressor.encoder_layers=2",
    )


@pytest.mark.parametrize("key", ["dataset", "objective", "objective.measures", "compressor", "backbone"])
@pytest.mark.parametrize("compared", [False, True])
def test_a_run_names_nothing_but_parts_of_an_evaluation(run, refused, monkeypatch, tmp_path, key, compared):
    target, file = tmp_path / "written", run / "config.yaml"
    whole = file.read_text(encoding="utf-8")
    cfg = OmegaConf.load(file)
    OmegaConf.update(cfg, key, {"_target_": "subprocess.Popen", "args": ["touch", str(target)]}, merge=False)
    OmegaConf.save(cfg, file)
    words = ["compressor=no_context", f"compare=[{run}]"] if compared else [f"run={run}"]
    try:
        if compared and key == "dataset":  # another run's data are not read
            code = call(monkeypatch, tmp_path, evaluating, *words, "examples=1", "generation.max_new_tokens=2")
            assert code == 0
        else:
            sentences = refused(evaluating, *words, "examples=1")
            assert any(line.startswith(f"{key}._target_=subprocess.Popen: is no ") for line in sentences), sentences
    finally:
        file.write_text(whole, encoding="utf-8")
    assert not target.exists()


@pytest.mark.parametrize("group", ["dataset", "objective", "compressor"])
def test_every_class_of_the_project_s_yamls_is_let_through(group):
    for file in sorted((CONFIGS / group).glob("*.yaml")):
        cfg = compose_tiny([f"{group}={file.stem}"])
        assert list(untrusted_targets(cfg, ALL)) == [], file.stem
