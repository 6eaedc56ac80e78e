"""The name of a data set in tables, captions and messages."""

import pytest
from omegaconf import OmegaConf

from breviary.config.cli.choices import CONFIGS, group_choices
from breviary.config.compose import compose_config, load_choice
from breviary.config.defaults import fill_defaults
from breviary.runs.dataset_names import dataset_label

NQ = {"_target_": "data.jsonl.Jsonl", "train": "/data/nq/train.jsonl.gz", "test": "/data/nq/test.jsonl.gz"}
NAMED_BY_FILES = ("jsonl", "chatml")


@pytest.mark.parametrize("name", [name for name in group_choices("dataset") if name not in NAMED_BY_FILES])
def test_every_data_set_has_the_name_of_its_file(name):
    dataset = load_choice(CONFIGS / "dataset" / f"{name}.yaml")
    cfg = OmegaConf.create({"paths": {"data": "/elsewhere"}, "backbone": {}, "dataset": dataset})
    note = f" ({cfg.dataset.note})" if cfg.dataset.get("note") else ""
    assert dataset_label(cfg.dataset, "test") == name + note
    assert dataset_label(OmegaConf.to_container(cfg, resolve=True)["dataset"], "test") == name + note


def test_parts_of_a_mixture_are_named():
    dataset = load_choice(CONFIGS / "dataset" / "qa_mixture.yaml")
    dataset.parts.mine = {"_target_": "data.jsonl.Jsonl", "test": "mine.jsonl"}
    assert dataset_label(dataset, "test") == "qa_mixture (parts=nq+2wikimultihopqa+hotp…)"


def test_a_note_states_the_text_of_a_generated_suite():
    cfg = OmegaConf.create({"backbone": {}, "dataset": load_choice(CONFIGS / "dataset" / "ruler_niah_single_2.yaml")})
    cfg.dataset.haystack, cfg.dataset.length = "mine.txt", 8192
    expected = "ruler_niah_single_2 (RULER-style, haystack=mine.txt, length=8192)"
    assert dataset_label(cfg.dataset, "test") == expected


@pytest.mark.parametrize(
    "settings, name",
    [
        ({}, "nq"),  # as earlier versions stored it, without the other keys
        ({"max_documents": None, "test_limit": 10, "stop": []}, "nq"),  # n is stated; the answer's end is no data set
        ({"max_documents": 5}, "nq_gold4"),
        ({"max_documents": 3}, "nq (max_documents=3)"),
        ({"max_documents": 5, "passage_format": "plain"}, "nq_gold4 (passage_format=plain)"),
    ],
)
def test_settings_that_change_the_examples_are_named(settings, name):
    assert dataset_label(NQ | settings, "test") == name


def test_generated_examples_have_a_name_with_their_settings():
    facts = {"_target_": "data.invented_facts.InventedFacts", "facts": 4, "train_size": 8, "seed": 3}
    assert dataset_label(facts, "test") == "invented_facts"
    assert dataset_label(facts | {"facts": 16}, "train") == "invented_facts (facts=16)"


def test_a_task_of_a_suite_has_its_name_without_the_prompt_that_follows_from_it():
    cfg = compose_config("eval", ["dataset=scbench", "dataset.task=vt", "paths.data=/elsewhere"])
    fill_defaults(cfg)
    dataset = OmegaConf.to_container(cfg.dataset, resolve=True)
    assert dataset["template"] and dataset_label(dataset, "test") == "scbench (task=vt)"


def test_files_without_a_yaml_file():
    own = {"_target_": "data.jsonl.Jsonl", "test": "/home/mine.jsonl", "validation": "test.jsonl", "train": None}
    assert [dataset_label(own, split) for split in ("test", "validation", "train")] == [
        "mine.jsonl",
        "test.jsonl",
        "jsonl",
    ]
    several = {"_target_": "data.passages.Passages", "train": ["a/nq/train.jsonl.gz", "a/musique/train.jsonl.gz"]}
    assert dataset_label(several, "train") == "nq, musique"
    assert dataset_label({"_target_": "mine.Mine"}, "test") == "mine"
