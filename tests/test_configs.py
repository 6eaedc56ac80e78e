"""Every YAML composes, has its class's keys and no others, and says what each of them means."""

import re
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

from breviary.config.build import build_backbone, compressor_class
from breviary.config.keys import constructor_keys, validate_keys

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def files(*groups):
    return [file for group in groups for file in sorted((CONFIGS / group).glob("*.yaml"))]


NAMED = files("backbone", "compressor", "dataset", "objective")
COMMENTED = files("backbone", "compressor", "dataset")
EXPERIMENTS = files("experiment")
CHOICES = NAMED + EXPERIMENTS + files("engine", "debug", "paths")


def name_of(file):
    return str(file.relative_to(CONFIGS).with_suffix(""))


def composed(config, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra_compose(config, list(overrides))


@pytest.mark.parametrize("file", CHOICES, ids=name_of)
def test_every_yaml_composes_and_its_keys_are_known(file):
    cfg = composed("train", f"{file.parent.name}={file.stem}")
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert plain["compressor"]["_target_"] and plain["backbone"]["_target_"] and plain["dataset"]["_target_"]
    _, problems = validate_keys(cfg)
    assert not [problem for problem in problems if "???" not in problem and "missing" not in problem.lower()]


@pytest.mark.parametrize("file", NAMED, ids=name_of)
def test_keys_are_the_constructor_s(file):
    config = OmegaConf.load(file)
    assert set(config) == set(constructor_keys(get_class(config._target_)))


@pytest.mark.parametrize("file", COMMENTED, ids=name_of)
def test_a_header_and_a_comment_on_every_key(file):
    header, *lines = file.read_text(encoding="utf-8").splitlines()
    assert re.match(r"# \w", header)
    lines = [line for line in lines if not line.startswith("#")]
    assert lines[0].startswith("_target_: ")
    assert all(re.match(r"\w+: .*\S +# \S", line) for line in lines[1:]), lines


@pytest.mark.parametrize("config", ["train", "eval"])
def test_every_key_of_train_and_eval_has_a_comment(config):
    text = (CONFIGS / f"{config}.yaml").read_text(encoding="utf-8")
    own = text.split("\n\n", 1)[1].split("\nhydra:\n")[0].splitlines()
    keys = [line for line in own if re.match(r" *\w+: *\S", line)]
    assert len(keys) > 5
    assert not [line for line in keys if not re.search(r"\S +# \S", line)]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=name_of)
def test_experiments_have_a_header_with_their_command(file):
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n")
    header = text.split("\n\n")[0] if "\n\n" in text else text
    comments = "\n".join(line for line in header.splitlines() if line.startswith("#"))
    commands = re.findall(r"(?:python|torchrun|deepspeed) .*train\.py .*experiment=(\w+)", comments)
    assert file.stem in commands, comments
    assert "Hardware:" in comments


@pytest.mark.parametrize("file", EXPERIMENTS, ids=name_of)
def test_experiments_name_their_runs_after_themselves(file):
    assert composed("train", f"experiment={file.stem}").name == file.stem


@pytest.mark.parametrize("file", files("compressor"), ids=name_of)
def test_the_defaults_of_every_compressor_suit_the_tiny_backbone(file):
    cfg = composed("train", f"compressor={file.stem}")
    settings = OmegaConf.to_container(cfg.compressor, resolve=True)
    settings.pop("_target_")
    assert compressor_class(cfg).problems(settings, build_backbone(cfg)) == []
