"""Every YAML composes, has exactly the keys of its class, and documents each of them."""

import re

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from breviary.config.allowed_classes import ALL_SECTIONS, untrusted_targets
from breviary.config.build import ReaderSpec, build_backbone
from breviary.config.compose import load_choice
from breviary.config.keys import CONFIGS, constructor_keys, validate_keys
from tests.tiny import composed_choice


def files(*groups):
    return [file for group in groups for file in sorted((CONFIGS / group).glob("*.yaml"))]


CLASSES = files("backbone", "compressor", "dataset", "objective")
COMMENTED = files("backbone", "compressor", "dataset")
EXPERIMENTS = files("experiment")
CHOICES = CLASSES + EXPERIMENTS + files("engine", "paths")


def name_of(file):
    return str(file.relative_to(CONFIGS).with_suffix(""))


def compose_choice(file):
    """configs/train.yaml with this choice. Tests must not change the result."""
    return composed_choice(f"{file.parent.name}={file.stem}")


@pytest.mark.parametrize("file", CHOICES, ids=name_of)
def test_every_yaml_composes_with_known_keys(file):
    cfg = compose_choice(file)
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert plain["compressor"]["_target_"] and plain["backbone"]["_target_"] and plain["dataset"]["_target_"]
    _, problems = validate_keys(cfg)
    assert not [problem for problem in problems if "???" not in problem and "missing" not in problem.lower()]


@pytest.mark.parametrize("file", CHOICES, ids=name_of)
def test_a_run_may_name_every_class_of_the_yamls(file):
    assert list(untrusted_targets(compose_choice(file), ALL_SECTIONS)) == []


@pytest.mark.parametrize("file", CLASSES, ids=name_of)
def test_keys_are_the_constructor_arguments(file):
    config = load_choice(file)
    assert set(config) == set(constructor_keys(get_class(config._target_)))


@pytest.mark.parametrize("file", COMMENTED, ids=name_of)
def test_every_yaml_has_a_header_and_a_comment_on_every_key(file):
    text, _, tasks = file.read_text(encoding="utf-8").partition("\ntasks: ")  # sections of keys that stand above them
    header, *lines = text.splitlines()
    assert re.match(r"# \w", header) and (not tasks or tasks.lstrip().startswith("# "))
    lines = [line for line in lines if not line.startswith(("#", "defaults: "))]
    assert lines[0].startswith("_target_: ")
    # A nested section has its class and its keys on lines of their own.
    keys = [line for line in lines[1:] if not re.match(r" +_target_: ", line) and not re.fullmatch(r" *\w+:", line)]
    assert all(re.match(r" *\w+:( .*\S)? +# \S", line) for line in keys), lines


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
def test_the_runs_of_an_experiment_have_its_name(file):
    assert compose_choice(file).name == file.stem


@pytest.mark.parametrize("file", files("compressor"), ids=name_of)
def test_the_defaults_of_every_compressor_fit_the_tiny_backbone(file):
    cfg = compose_choice(file)
    spec = ReaderSpec.of(cfg)
    assert spec.compressor.problems(spec.settings, build_backbone(cfg)) == []
