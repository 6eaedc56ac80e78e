"""Runs of every schema version open and answer as they did: tests/data/runs, made by the commits themselves."""

import json
import shutil
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from breviary import load_reader
from breviary.config.keys import validate_keys
from breviary.evaluation.results import read_results
from breviary.runs.folders import config_hash, load_config, write_config
from breviary.runs.schema import SCHEMA, UPGRADES, upgrade_config
from tests.tiny import compose_tiny, evaluate_tiny

RUNS = Path(__file__).parents[3] / "data" / "runs"
NAMES = sorted(folder.name for folder in RUNS.iterdir() if folder.is_dir())


def stored_schema(run):
    return OmegaConf.load(RUNS / run / "config.yaml").get("schema", 1)


def test_there_is_a_run_of_every_schema():
    assert {stored_schema(run) for run in NAMES} == {*UPGRADES, SCHEMA} == set(range(1, SCHEMA + 1))


@pytest.mark.parametrize("run", NAMES)
def test_an_old_run_has_the_keys_of_now(run):
    cfg, problems = validate_keys(load_config(RUNS / run))
    assert problems == [] and "schema" not in cfg


@pytest.mark.parametrize("run", NAMES)
def test_an_old_run_answers_as_it_did(run):
    [file] = (RUNS / run).rglob("predictions.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    examples = {example.id: example for example in instantiate(load_config(RUNS / run).dataset).examples("test")}
    asked = [examples[row["id"]] for row in rows]
    reader = load_reader(RUNS / run)
    answers = reader.answer([example.context for example in asked], [example.question for example in asked])
    assert len(rows) == 3 and answers == [row["prediction"] for row in rows]


@pytest.mark.parametrize("run", NAMES)
def test_an_old_run_is_evaluated_to_the_same_likelihood(run, tmp_path):
    shutil.copytree(RUNS / run, tmp_path / "run")
    words = [f"run={tmp_path}/run", "baselines=[]", f"paths.cache={tmp_path}/cache", "eval_batch_size=1"]
    [found] = evaluate_tiny(words)
    before = [json.loads(line) for line in next((RUNS / run).rglob("predictions.jsonl")).read_text().splitlines()]
    nll = sum(row["nll"] for row in before) / sum(row["answer_tokens"] for row in before)
    assert found["metrics"]["nll"]["value"] == pytest.approx(nll, rel=1e-4)
    for file in (RUNS / run).rglob("results.json"):
        assert read_results(file)["metrics"]["nll"]["value"] == pytest.approx(nll, rel=1e-6)


def test_no_alignment_stays_none():
    assert load_config(RUNS / "no_alignment_comi").compressor.alignment == "none"
    reader = load_reader(RUNS / "no_alignment_comi").reader
    assert reader.compressor.context_encoder.lsa is None and reader.compressor.context_encoder.linear is None


def test_learned_weights_of_the_first_form_are_read():
    reader = load_reader(RUNS / "first_comi").reader
    learned = [reader.compressor.gain.merge_alpha, reader.compressor.gain.merge_beta]
    assert all(weight.shape == (1,) and weight != 1 for weight in learned)


def test_what_is_written_now_is_read_unchanged(tmp_path):
    cfg = compose_tiny(["compressor=ram"])
    write_config(tmp_path, cfg)
    assert (tmp_path / "config.yaml").read_text().startswith(f"schema: {SCHEMA} ")
    assert config_hash(load_config(tmp_path), without=()) == config_hash(cfg, without=())


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, "two", None])
def test_a_later_schema_is_refused(schema):
    cfg = OmegaConf.create({"schema": schema, "backbone": {}, "compressor": {}, "engine": {}})
    with pytest.raises(
        ValueError, match=f"^here: a run of schema {schema}, this version reads 1 to {SCHEMA}; open it with"
    ):
        upgrade_config(cfg, "here")


@pytest.mark.parametrize(
    "run, digest",
    [
        ("first_comet", "a7f56684924e"),
        ("first_comi", "920739e60d6d"),
        ("first_ram", "8fb1835224cc"),
        ("no_alignment_comi", "b51c4b39294d"),
        ("schema_1_mean_pool", "7aff86a7cf21"),
        ("schema_2_ram_comi", "6970d6db6f99"),
    ],
)
def test_an_old_run_has_the_hash_that_its_evaluations_are_found_by(run, digest):
    """The values of 2411d6e, before classes moved into sub-packages (schema 3)."""
    assert config_hash(load_config(RUNS / run)) == digest


@pytest.mark.parametrize("run", NAMES)
def test_keys_added_since_a_run_do_not_change_its_hash(run):
    cfg = load_config(RUNS / run)
    complete = cfg.copy()
    with open_dict(complete):
        complete.prompt.date = "26 Jul 2024"
        complete.dataset.max_new_tokens, complete.dataset.stop = 512, []
    assert config_hash(complete) == config_hash(cfg)
    complete.prompt.date = "27 Jul 2024"
    assert config_hash(complete) != config_hash(cfg)


def test_a_document_saved_by_an_earlier_version_is_loaded():
    reader = load_reader(RUNS / "schema_2_ram_comi")
    document = reader.load(RUNS / "schema_2_ram_comi" / "document.safetensors")
    answer = reader.answer_from(document, "What is the official metal of the town of Velkeld?")
    assert answer == "violinelloogrr violin Qu"  # as 2411d6e answered
