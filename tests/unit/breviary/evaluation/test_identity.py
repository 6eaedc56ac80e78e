"""Stored results are used only where all that they depend on is equal: data, weights, backbone, settings, metrics."""

import json
import shutil
from pathlib import Path

import pytest

from breviary.backbones.tiny import TinyBackbone
from breviary.config.build import build_backbone
from breviary.evaluation import session
from breviary.evaluation.identity import IDENTITY
from breviary.evaluation.results import PREDICTIONS, RESULTS, Predictions
from breviary.runs.checkpoints import save_trained
from breviary.runs.folders import load_config
from data.metrics import Scorer
from data.text_pipeline import DataPipeline
from tests.tiny import disturb, evaluate_tiny, tiny_reader
from tests.unit.tiny_runs import tiny_run

SMALL = ["backbone.layers=2", "backbone.width=32", "backbone.heads=2", "backbone.kv_heads=1"]
BASELINE = ["compressor=full_context", "reader=full_context", "baselines=[]", "generation.max_new_tokens=2"]
RUNS = Path(__file__).parents[3] / "data" / "runs"


def write_data(file, answers):
    rows = [
        {
            "id": f"q{i}",
            "context": f"The tower {i} is green.",
            "question": f"Which colour has {i}?",
            "answers": [answer],
        }
        for i, answer in enumerate(answers)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "t.jsonl", ["green", "red", "blue"])


@pytest.fixture
def evaluate(tmp_path):
    """evaluate(words) -> (results, their folder) of a table of one row."""

    def evaluate(*words, test=None):
        words = [*words, f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}/cache"]
        [results] = evaluate_tiny(words + (["dataset=jsonl", f"dataset.test={test}"] if test else []))
        return results, Path(results.pop("folder"))

    return evaluate


def references(folder):
    return [row["references"] for row in Predictions(folder / PREDICTIONS).rows]


@pytest.fixture
def no_computing(monkeypatch):
    """After the call, an evaluation that loads a reader fails."""
    return lambda: monkeypatch.setattr(session, "build_reader", None)


# ------------------------------------------------------------------ found again


def test_equal_content_is_found_again_under_another_path(evaluate, data, tmp_path, monkeypatch, no_computing, capsys):
    first, folder = evaluate(*BASELINE, *SMALL, test=data)
    no_computing()
    monkeypatch.chdir(tmp_path)
    copy = shutil.copy(data, tmp_path / "copy.jsonl")
    for spelling in ("t.jsonl", "./t.jsonl", f"{tmp_path}/x/../t.jsonl", copy):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert evaluate(*BASELINE, *SMALL, test=spelling) == (first, folder)
    assert capsys.readouterr().out.count("already evaluated") == 4


def test_a_moved_run_is_found_again(tmp_path, data, evaluate, no_computing):
    run = tiny_run(tmp_path / "a", "compressor=mean_pool", *SMALL)
    first, _ = evaluate(f"run={run}", "baselines=[]", test=data)
    moved = shutil.copytree(run, tmp_path / "b" / "moved")
    shutil.rmtree(run)
    no_computing()
    assert evaluate(f"run={moved}", "baselines=[]", test=data)[0] == first


# ------------------------------------------------------------------ evaluated anew


def test_other_data_under_the_same_path(evaluate, data, capsys):
    _, first = evaluate(*BASELINE, *SMALL, test=data)
    write_data(data, ["black", "white", "pink"])
    _, second = evaluate(*BASELINE, *SMALL, test=data)
    assert references(second) == [["black"], ["white"], ["pink"]]
    assert references(first) == [["green"], ["red"], ["blue"]]
    out = capsys.readouterr().out
    assert "evaluated anew" in out and "other examples" in out


@pytest.mark.parametrize("change", ["question", "answers", "context", "documents"])
def test_every_part_of_an_example_counts(evaluate, data, change):
    first, _ = evaluate(*BASELINE, *SMALL, test=data)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[1][change] = {
        "answers": ["red", "crimson"],
        "documents": [{"title": "", "text": rows[1]["context"], "is_gold": True}],
    }.get(change, rows[1][change if change != "documents" else "context"] if change == "documents" else "Which is it?")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second, _ = evaluate(*BASELINE, *SMALL, test=data)
    assert second["data_hash"] != first["data_hash"]


def test_a_killed_evaluation_does_not_continue_on_other_data(evaluate, data, monkeypatch):
    append = Predictions.append

    def append_once(predictions, rows):
        append(predictions, rows)
        raise KeyboardInterrupt

    words = [*BASELINE, *SMALL, "eval_batch_size=1"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Predictions, "append", append_once)
        evaluate(*words, test=data)
    write_data(data, ["black", "white", "pink"])
    assert references(evaluate(*words, test=data)[1]) == [["black"], ["white"], ["pink"]]
    write_data(data, ["green", "red", "blue"])
    assert references(evaluate(*words, test=data)[1]) == [["green"], ["red"], ["blue"]]


def test_the_same_relative_path_from_another_folder(evaluate, tmp_path, monkeypatch, capsys):
    found = {}
    for name, answers in {"one": ["green"], "two": ["black"]}.items():
        write_data(tmp_path / name / "t.jsonl", answers)
        monkeypatch.chdir(tmp_path / name)
        found[name] = references(evaluate(*BASELINE, *SMALL, test="t.jsonl")[1])
    assert found == {"one": [["green"]], "two": [["black"]]}
    assert "other examples" in capsys.readouterr().out


def save_backbone(folder, seed):
    backbone = TinyBackbone(layers=2, width=32, heads=2, kv_heads=1, seed=seed)
    backbone.load().save_pretrained(folder)
    backbone.tokenizer().save_pretrained(folder)


def test_another_backbone_under_the_same_path(evaluate, data, tmp_path, capsys):
    words = [*BASELINE, "backbone=smollm2_135m", f"backbone.path={tmp_path}/backbone", "backbone.dtype=float32"]
    nll = []
    for seed in (0, 1):
        save_backbone(tmp_path / "backbone", seed)
        nll.append(evaluate(*words, test=data)[0]["metrics"]["nll"]["value"])
    assert nll[0] != nll[1]
    assert "another backbone" in capsys.readouterr().out


def test_another_tokenizer_under_the_same_path(evaluate, data, tmp_path, capsys):
    words = [*BASELINE, "backbone=smollm2_135m", f"backbone.path={tmp_path}/backbone", "backbone.dtype=float32"]
    save_backbone(tmp_path / "backbone", 0)
    evaluate(*words, test=data)
    file = tmp_path / "backbone" / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"bos_token": "</s>"}
    file.write_text(json.dumps(settings))
    evaluate(*words, test=data)
    assert "another tokenizer" in capsys.readouterr().out


def test_other_weights_under_the_same_checkpoint(tmp_path, data, evaluate, capsys):
    run = tiny_run(tmp_path, "compressor=mean_pool", *SMALL)
    first, _ = evaluate(f"run={run}", "baselines=[]", test=data)
    checkpoint, cfg = run / "checkpoints" / "checkpoint-2", load_config(run)
    reader = tiny_reader(cfg)
    disturb(reader, 0.3, seed=2)
    save_trained(checkpoint, reader, build_backbone(cfg).fingerprint)
    second, _ = evaluate(f"run={run}", "baselines=[]", test=data)
    assert first["metrics"]["nll"] != second["metrics"]["nll"]
    assert "other trained weights" in capsys.readouterr().out


def test_a_changed_metric(evaluate, data, monkeypatch, capsys):
    _, folder = evaluate(*BASELINE, *SMALL, test=data)
    before = (folder / RESULTS).read_text()
    monkeypatch.setattr(DataPipeline, "metrics_version", DataPipeline.metrics_version + 1)
    monkeypatch.setattr(Scorer, "__call__", lambda *_: {"em": 0.5})
    results, again = evaluate(*BASELINE, *SMALL, test=data)
    assert results["metrics"]["em"]["value"] == 0.5 and again == folder
    assert "metrics version" in capsys.readouterr().out
    [old] = folder.glob(f"{RESULTS}.*.old")
    assert old.read_text() == before


def test_fresh_evaluates_anew(evaluate, data, monkeypatch):
    evaluate(*BASELINE, *SMALL, test=data)
    monkeypatch.setattr(Scorer, "__call__", lambda *_: {"em": 0.5})
    assert "f1" in evaluate(*BASELINE, *SMALL, test=data)[0]["metrics"]
    assert evaluate(*BASELINE, *SMALL, "fresh=true", test=data)[0]["metrics"].keys() == {"em", "nll"}


def test_predictions_without_an_identity_are_not_continued(evaluate, data):
    _, folder = evaluate(*BASELINE, *SMALL, test=data)
    for name in (RESULTS, IDENTITY):
        (folder / name).unlink()
    rows = Predictions(folder / PREDICTIONS).rows
    (folder / PREDICTIONS).write_text("".join(json.dumps(row | {"prediction": "old"}) + "\n" for row in rows[:1]))
    evaluate(*BASELINE, *SMALL, test=data)
    assert [row["prediction"] for row in Predictions(folder / PREDICTIONS).rows] == [r["prediction"] for r in rows]


# ------------------------------------------------------------------ results of earlier versions


def copy_old_run(tmp_path):
    """A run of the first version with an evaluation that has no identity."""
    return shutil.copytree(RUNS / "first_ram", tmp_path / "first_ram")


def test_results_of_earlier_versions_are_used_where_all_that_is_known_agrees(tmp_path, evaluate, no_computing, capsys):
    run = copy_old_run(tmp_path)
    no_computing()
    results, folder = evaluate(f"run={run}", "baselines=[]")
    assert folder.is_relative_to(run) and not (folder / IDENTITY).exists()
    out = capsys.readouterr().out
    assert "earlier version" in out and "fresh=true" in out


def test_results_of_earlier_versions_with_a_metric_mended_since_are_not_used(tmp_path, evaluate, monkeypatch, capsys):
    run = copy_old_run(tmp_path)
    monkeypatch.setattr(Scorer, "__call__", lambda *_: {"em": 0.5})
    results, _ = evaluate(f"run={run}", "baselines=[]")
    assert results["metrics"]["em"]["value"] == 0.5 and "holds other scores" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["dataset.seed=7", "generation.max_new_tokens=3", "compressor.ratio=2", "fresh=true"])
def test_results_of_earlier_versions_of_anything_else_are_not_used(tmp_path, evaluate, word):
    run = copy_old_run(tmp_path)
    [old] = run.rglob(RESULTS)
    results, folder = evaluate(f"run={run}", "baselines=[]", word)
    assert folder != old.parent and (folder / IDENTITY).is_file()
