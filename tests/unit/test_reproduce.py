"""The commands that reproduce the papers: equal in tables, pages and headers, they compose, and they fit.

After a change of a table, `python scripts/table.py NAME --commands` prints what docs/reproduce.md must hold.
"""

import re

import pytest
from omegaconf import OmegaConf

from breviary.config.keys import CONFIGS
from breviary.report.tables.cells import cell_config, command_estimate, compose_cell, parse_command
from breviary.report.tables.form import TABLES, cell_commands, cells_of, load_published_table
from breviary.report.tables.measured import is_measured
from breviary.report.tables.published import command_lines
from breviary.runtime.checkout import ROOT

IN_FULL = ("comi_main", "ram_main", "gmsa_main", "gmsa_autoencoder", "comet_scrolls", "comet_short")  # on the page
NAMES = sorted(file.stem for file in TABLES.glob("*.yaml") if not is_measured(file.stem))  # the papers' tables
EXPERIMENT = re.compile(r"\bexperiment=(\w+)")
GIGABYTES = 80  # of a GPU


def commands_of(name):
    """Every command of a table's published cells, once, with the lengths of its data."""
    table = load_published_table(name)
    return {
        command: table["datasets"][dataset]["tokens"]
        for row, dataset in cells_of(table)
        for command in cell_commands(table, row, dataset)
    }


TRAINING = {
    command: tokens for name in NAMES for command, tokens in commands_of(name).items() if " train.py " in command
}


def lines_of(text, comment=""):
    """The lines of a page or of a YAML header, those that end with a backslash joined with the next."""
    return re.sub(rf"\s*\\\n{comment}\s+", " ", text).splitlines()


def header(experiment):
    text = (ROOT / f"configs/experiment/{experiment}.yaml").read_text(encoding="utf-8")
    return [re.split(r" {4,}", line.removeprefix("#").strip())[0] for line in lines_of(text, "#") if line[:1] == "#"]


def test_the_page_names_every_table():
    page = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    assert not [name for name in NAMES if f"| `{name}` |" not in page]


@pytest.mark.parametrize("name", IN_FULL)
def test_the_page_holds_the_commands_of_the_table(name):
    """Those of the table's first data set, with their estimates."""
    table = load_published_table(name)
    block = "\n".join(command_lines(table, [next(iter(table["datasets"]))]))
    page = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    assert f"```sh\n{block}\n```" in page, f"docs/reproduce.md must hold\n\n{block}"


def test_every_experiment_of_a_table_has_its_command_in_the_header():
    experiments = {EXPERIMENT.search(command)[1] for command in TRAINING}
    assert len(experiments) >= 15
    for experiment in experiments:
        assert TRAINING.keys() & set(header(experiment)), f"{experiment}: {header(experiment)}"


def check_training(command, tokens):
    """It composes, its estimate is below a GPU's memory, and its global batch is that of its processes."""
    config, overrides, processes = parse_command(command)
    cfg = compose_cell(config, tuple(overrides))
    assert cfg.engine.kind == ("ddp" if "engine=ddp" in command else "zero")
    estimate = command_estimate(command, tokens)
    batches = cfg.train.batch_size * cfg.train.accumulation * processes
    assert estimate.global_batch == batches // cfg.engine.ranks in (2, 4, 8, 32), f"{command}: {estimate}"
    assert 1e9 < estimate.bytes < GIGABYTES * 1e9, f"{command}: {estimate}"
    assert 0.05 < estimate.hours < 1000, f"{command}: {estimate}"


def check_cell(table, row, dataset):
    """Its training fits, and it is evaluated on the row's backbone, at the row's ratio, on the data set."""
    commands = cell_commands(table, row, dataset)
    for command in commands[:-1]:
        check_training(command, table["datasets"][dataset]["tokens"])
    cfg = cell_config(commands)
    path = OmegaConf.load(CONFIGS / f"backbone/{row['backbone']}.yaml").path
    assert cfg.backbone.path == path and (row["ratio"] is None or cfg.compressor.ratio == row["ratio"]), row["id"]
    if "context_words" in cfg.dataset:  # pass keys: a data set of the table is a length
        assert dataset == f"w{cfg.dataset.context_words}"
    else:
        assert dataset in str(cfg.dataset.test) or dataset == "passages"


@pytest.mark.parametrize("name", NAMES)
def test_every_trained_row_composes_and_fits(name):
    """On the table's first data set; composing the others takes a minute, see the next test."""
    table = load_published_table(name)
    first = next(iter(table["datasets"]))
    for row in table["rows"]:
        if row["train"] and first in row["published"]:
            check_cell(table, row, first)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_composes_and_fits(name):
    table = load_published_table(name)
    for row, dataset in cells_of(table):
        check_cell(table, row, dataset)


def test_the_longest_contexts_fit():
    """NarrativeQA's, of the largest backbones."""
    narrative = [command for command in TRAINING if "narrativeqa" in command]
    chosen = [c for c in narrative if ("comi_" in c and "qwen2_7b" in c) or ("icae_nq" in c and "llama31_8b" in c)]
    assert len(chosen) == 3
    for command in chosen:
        check_training(command, TRAINING[command])


def test_readme_s_commands_for_the_papers_are_those_of_the_tables():
    lines = lines_of((ROOT / "README.md").read_text(encoding="utf-8"))
    found = [re.split(r" {2,}#", line)[0] for line in lines if line.startswith("torchrun")]
    exact = [command for command in found if command in TRAINING]
    assert {EXPERIMENT.search(command)[1] for command in exact} == {"comi_nq", "comet_scrolls"}


@pytest.mark.parametrize("page", ["README.md", "comet/README.md", "docs/scale.md"])
def test_comet_s_commands_use_zero_and_fit(page):
    """By the planner of pipelines, 32k tokens a text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [re.split(r" {2,}#", line)[0] for line in text.splitlines() if "experiment=comet_" in line]
    commands = [line for line in lines if line.startswith(("torchrun", "deepspeed --num_gpus"))]
    assert commands
    for command in commands:
        assert "engine=zero2" in command
        assert command_estimate(command, [31000, 12, 500]).bytes < GIGABYTES * 1e9, command


def test_comet_without_zero_would_not_fit():
    command = "torchrun --nproc_per_node 8 train.py experiment=comet_scrolls engine=pipeline engine.ranks=8"
    assert command_estimate(command, [31000, 12, 500]).bytes > GIGABYTES * 1e9
