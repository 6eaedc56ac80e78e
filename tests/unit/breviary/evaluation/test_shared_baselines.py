"""Baselines without weights are evaluated once for a data set and backbone, whatever run they are evaluated with."""

import json

import pytest
from omegaconf import OmegaConf

from breviary.evaluation import session
from breviary.evaluation.baselines import share_baseline
from breviary.evaluation.identity import IDENTITY, digest
from breviary.evaluation.results import PREDICTIONS, RESULT_KEYS, RESULTS, SCHEMA, read_results
from tests.tiny import evaluate_tiny
from tests.unit.tiny_runs import tiny_run

SMALL = ["backbone.layers=2", "backbone.width=32", "backbone.heads=2", "backbone.kv_heads=1", "compressor=mean_pool"]


def test_the_second_run_takes_the_baselines_of_the_first(tmp_path, monkeypatch, capsys):
    computed, build = [], session.build_reader
    monkeypatch.setattr(session, "build_reader", lambda cfg, *a: (computed.append(cfg.reader), build(cfg, *a))[1])

    def table(run):
        computed.clear()
        results = evaluate_tiny([f"run={run}", f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}/cache"])
        return len(computed), results, capsys.readouterr().out

    first, second = tiny_run(tmp_path, *SMALL), tiny_run(tmp_path, *SMALL, "seed=7", "decoder.lora_rank=2")
    count, before, _ = table(first)
    assert count == 3
    count, after, printed = table(second)
    assert count == 1 and printed.count(f": reuses {first}/eval/") == 2
    for one, other in zip(before[1:], after[1:]):
        assert one["metrics"] == other["metrics"] and one["times"] == other["times"]
        assert other["run"].startswith(f"{second}/eval/") and other["shared_from"].startswith(f"{first}/eval/")
    copies = sorted((second / "eval").glob(f"*/*/{RESULTS}"))
    assert len(copies) == 3 and all((file.with_name(PREDICTIONS)).is_file() for file in copies)
    first.rename(tmp_path / "gone")  # the copies are evaluations of the second run
    count, again, printed = table(second)
    assert count == 0 and again == after and printed.count("already evaluated") == 3


IDENTITY_OF_ONE = {
    "schema": SCHEMA,
    "metrics_version": 1,
    "examples": "e",
    "tokens": "t",
    "weights": None,
    "backbone": {"backbone": "b"},
    "prompt": {"instruction": ""},
    "generation": {"max_new_tokens": 4},
    "settings": {"seed": 1, "decoder": {"train": "frozen", "lora_rank": 16}, "eval_batch_size": 2},
}


def config(home, compressor="no_context", **changes):
    target = {"mean_pool": "breviary.readers.mean_pool.MeanPool"}.get(
        compressor, "breviary.readers.keep_tokens.KeepTokens"
    )
    plain = {
        "reader": compressor,
        "run": None,
        "compressor": {"_target_": target},
        "objective": {"_target_": "breviary.objectives.answer.Answer"},
        "dataset": {"_target_": "data.invented_facts.InventedFacts"},
        "backbone": {},
        "paths": {"outputs": str(home / "outputs")},
    }
    return OmegaConf.create(plain | changes)


def store(run, identity, reader="no_context"):
    """An evaluation with this identity below a run; returns its folder."""
    folder = run / "eval" / digest(identity) / reader
    folder.mkdir(parents=True)
    (folder / IDENTITY).write_text(json.dumps({"identity": identity, "sources": {}, "environment": {}}))
    (folder / PREDICTIONS).write_text("{}\n")
    results = {**dict.fromkeys(RESULT_KEYS, 1), "schema": SCHEMA, "reader": reader, "config": None, "run": str(folder)}
    (folder / RESULTS).write_text(json.dumps(results))
    return folder


@pytest.mark.parametrize("place", ["outputs/a/1", "outputs/demo/comi/1", "outputs", "elsewhere/2"])
def test_results_beside_the_run_and_below_the_outputs_are_found(tmp_path, place):
    source = store(tmp_path / place, IDENTITY_OF_ONE, "no_context_(untrained)")
    home = tmp_path / "elsewhere/1/eval"
    wanted = IDENTITY_OF_ONE | {"settings": IDENTITY_OF_ONE["settings"] | {"seed": 2, "decoder": {"train": "frozen"}}}
    folder, message = share_baseline(home, config(tmp_path), wanted)
    assert folder == home / digest(wanted) / "no_context" and message.startswith(f"reuses {source}: ")
    results = read_results(folder)
    assert (results["reader"], results["run"], results["shared_from"]) == ("no_context", str(folder), str(source))
    assert json.loads((folder / IDENTITY).read_text())["identity"] == wanted
    assert share_baseline(home, config(tmp_path), wanted) is None  # its own by now


@pytest.mark.parametrize(
    "changes",
    [
        {"examples": "x"},
        {"backbone": {"backbone": "x"}},
        {"prompt": {"instruction": "x"}},
        {"generation": {"max_new_tokens": 5}},
        {"metrics_version": 2},
        {"settings": IDENTITY_OF_ONE["settings"] | {"eval_batch_size": 4}},
    ],
)
def test_other_data_backbones_and_settings_are_computed(tmp_path, changes):
    store(tmp_path / "outputs/a/1", IDENTITY_OF_ONE)
    assert share_baseline(tmp_path / "outputs/a/2/eval", config(tmp_path), IDENTITY_OF_ONE | changes) is None


def test_readers_with_weights_and_fresh_evaluations_are_computed(tmp_path):
    home, source = tmp_path / "outputs/a/2/eval", store(tmp_path / "outputs/a/1", IDENTITY_OF_ONE)
    assert share_baseline(home, config(tmp_path, "mean_pool"), IDENTITY_OF_ONE) is None
    assert share_baseline(home, config(tmp_path, run="outputs/a/2"), IDENTITY_OF_ONE | {"weights": "w"}) is None
    assert share_baseline(home, config(tmp_path, fresh=True), IDENTITY_OF_ONE) is None
    (source / RESULTS).unlink()  # not finished
    assert share_baseline(home, config(tmp_path), IDENTITY_OF_ONE) is None
