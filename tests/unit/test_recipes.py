"""Every recipe of the papers composes to its specification (recipe_values.py), and states its commands."""

import re

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from breviary.config.build import ReaderSpec
from breviary.config.checks import check_decoder, check_training
from breviary.config.cli.choices import group_choices
from breviary.config.compose import compose_config
from breviary.config.keys import CONFIGS, validate_keys
from tests.unit.recipe_values import RECIPES

PAPERS = [name for name in group_choices("experiment") if "/" in name]


def test_every_experiment_of_a_paper_s_folder_has_its_values():
    assert set(PAPERS) <= set(RECIPES) <= set(group_choices("experiment"))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_has_the_values_of_its_specification(name, tmp_path):
    """Composed once: values, keys, sections, header, and the message about data that is not there."""
    cfg = compose_config("train", [f"experiment={name}"])
    assert cfg.name == name.replace("/", "_")
    OmegaConf.update(cfg, "paths.data", str(tmp_path))
    if OmegaConf.is_missing(cfg, "init_from"):
        cfg.init_from = None
    cfg, problems = validate_keys(cfg)
    assert problems == []
    found = {key: OmegaConf.select(cfg, key, default="no such key") for key in RECIPES[name]}
    plain = {key: OmegaConf.to_container(x) if OmegaConf.is_config(x) else x for key, x in found.items()}
    assert plain == RECIPES[name]
    spec = ReaderSpec.of(cfg)
    problems = check_decoder(cfg.decoder) + check_training(cfg.train)
    problems += spec.objective.problems(spec.objective_settings, spec.compressor, cfg.decoder.train)
    assert problems == []
    missing = instantiate(cfg.dataset).problems(["train"])
    assert bool(missing) == (name != "comet_passkey_32k")  # which is generated
    ways = ("scripts/prepare_data.py", "prepare files of yours with --")
    assert all("which is not a file" in one and any(way in one for way in ways) for one in missing), missing
    check_header(name)


def check_header(name):
    """Its own command, hardware, and where the other values stand."""
    text = (CONFIGS / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert text.startswith("# @package _global_\n") and "Hardware:" in header
    assert re.search(rf"torchrun .*train\.py experiment={re.escape(name)}(?![\w/])", header), header
