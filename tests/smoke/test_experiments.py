"""Every experiment of configs/experiment, two steps on the tiny backbone, then four questions through eval.py."""

import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf, open_dict

import train
from breviary.evaluation import session
from breviary.evaluation.results import PREDICTIONS, RESULTS, Predictions
from breviary.evaluation.session import EvaluationSession
from breviary.memory.encoder import ContextEncoder
from data.invented_facts import InventedFacts
from data.pipeline import TEXT
from tests.tiny import CONFIGS, compose_tiny, evaluate_tiny

EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("*.yaml"))
# What costs time, and to what it is reduced where an experiment asks for more.
MOST = {
    "train.steps": 2,
    "train.batch_size": 2,
    "train.accumulation": 2,
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.eval_examples": 2,
    "train.workers": 0,
    "eval_batch_size": 2,
    "generation.max_new_tokens": 4,
    "generation.min_new_tokens": 0,
    "limits.max_context_tokens": 128,
    "compressor.encoder_layers": 2,
    "compressor.layers": 2,
    "dataset.facts": 3,
    "dataset.context_words": 80,
    "dataset.train_size": 8,
    "dataset.validation_size": 4,
    "dataset.test_size": 4,
    "dataset.min_words": 8,
    "dataset.max_words": 12,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the files train.jsonl, validation.jsonl and test.jsonl in the common format."""
    folder = tmp_path_factory.mktemp("smoke")
    for split in ("train", "validation", "test"):
        rows = []
        for example in InventedFacts(facts=3, train_size=8, validation_size=8, test_size=8).examples(split):
            passages = [
                {"title": d.title, "text": example.context[d.start : d.end], "is_gold": d.is_gold}
                for d in example.documents
            ]
            rows.append(
                {
                    "id": example.id,
                    "context": example.context,
                    "question": example.question,
                    "answers": list(example.answers),
                    "documents": passages,
                }
            )
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def reduced(cfg, home):
    """The configuration on the tiny backbone and on data that is here, in one process, with little to do."""
    with open_dict(cfg):
        cfg.backbone = OmegaConf.load(CONFIGS / "backbone" / "tiny.yaml")
        cfg.backbone.layers, cfg.backbone.width = 4, 32
        cfg.engine = OmegaConf.load(CONFIGS / "engine" / "single.yaml")
        cfg.paths.outputs, cfg.paths.cache = f"{home}/outputs", f"{home}/cache"
        for split in ("train", "validation", "test"):
            if split in cfg.dataset:
                cfg.dataset[split] = f"{home}/{split}.jsonl"
        for key, most in MOST.items():
            asked = OmegaConf.select(cfg, key)
            if asked is not None:
                OmegaConf.update(cfg, key, min(asked, most))
    return cfg


def finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def trained(cfg):
    """Trains; the folder, after a look at what was logged."""
    folder = train.train(cfg)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    for row in rows:
        wrong = {key: value for key, value in row.items() if not finite(value) and key != "effective_ratio"}
        assert not wrong, wrong
    return folder


def evaluated(folder, home, *overrides):
    """The results of eval.py run=FOLDER examples=4 OVERRIDES."""
    words = [f"run={folder}", "examples=4", f"paths.outputs={home}/outputs", f"paths.cache={home}/cache", *overrides]
    return evaluate_tiny(words)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_trains_and_is_evaluated(name, home):
    cfg = compose_tiny([f"experiment={name}"])
    cfg.reader = cfg.reader or name
    second_stage = bool(OmegaConf.is_missing(cfg, "init_from") or cfg.init_from)
    cfg.init_from = None
    folder = trained(reduced(cfg, home))
    if second_stage:
        cfg.init_from = str(folder)
        folder = trained(cfg)
    [results] = evaluated(folder, home, "baselines=[]")
    assert results["n"] == 4 and results["reader"] == cfg.reader
    assert {"em", "f1", "rouge_l", "nll"} <= results["metrics"].keys()
    assert all(finite(number) for metric in results["metrics"].values() for number in metric.values())
    assert all(finite(time) for time in results["times"].values())


@pytest.fixture(scope="module")
def runs(home):
    """Two runs: COMI at depth, and an equally trained full context."""
    found = []
    for name, words in {"comi": ["compressor.join=depth"], "full_context": []}.items():
        words = [f"compressor={name}", f"reader={name}", f"name={name}", *words]
        found.append(trained(reduced(compose_tiny(words), home)))
    return found


def test_a_table_holds_trained_and_untouched_readers(runs, home):
    comi, full = runs
    results = evaluated(comi, home, f"compare=[{full}]")
    readers = [result["reader"] for result in results]
    assert readers == ["comi", "full_context", "full_context (untrained)", "no_context"]
    ratios = [result["effective_ratio"] for result in results]
    assert 3 < ratios[0] <= 4 and ratios[1:] == [1, 1, None]
    assert len({json.dumps(result["metrics"]["nll"]) for result in results}) == 4
    folders = [Path(path) for path in comi.glob("eval/*/*")] + [Path(path) for path in full.glob("eval/*/*")]
    assert len(folders) == 4 and all((folder / RESULTS).is_file() for folder in folders)
    evaluated(f"{comi}/", home, f"compare=[{full}/]")  # written otherwise they are the same runs
    assert sorted([*comi.glob("eval/*/*"), *full.glob("eval/*/*")]) == sorted(folders)


def test_variants_equal_evaluations_of_their_own_and_read_no_context_again(runs, home, monkeypatch):
    words, read = ["baselines=[]", "generation.max_new_tokens=2"], []  # not what other tests have evaluated
    encode = ContextEncoder.encode
    monkeypatch.setattr(
        ContextEncoder, "encode", lambda self, context: read.append(len(context.ids)) or encode(self, context)
    )
    together = evaluated(
        runs[0], home, *words, "variants=[{compressor.ratio: 2}, {compressor.coarse: false, compressor.ratio: 2}]"
    )
    assert sum(read) == 4
    assert [one["reader"] for one in together] == ["comi", "comi, ratio=2", "comi, coarse=False, ratio=2"]
    assert all(one["contexts_read"] == 4 and one["times"]["encode_ms"] > 0 for one in together)
    for one, other in zip(together[1:], (["compressor.ratio=2"], ["compressor.ratio=2", "compressor.coarse=false"])):
        [alone] = evaluated(runs[0], home, *words, *other)
        assert (
            sum(read) in (8, 12) and one["metrics"] == alone["metrics"] and one["memory_slots"] == alone["memory_slots"]
        )


def test_a_variant_that_reads_otherwise_reads_anew(runs, home, monkeypatch):
    read, encode = [], ContextEncoder.encode
    monkeypatch.setattr(
        ContextEncoder, "encode", lambda self, context: read.append(len(context.ids)) or encode(self, context)
    )
    evaluated(runs[0], home, "baselines=[]", "generation.max_new_tokens=1", "variants=[{compressor.segment_size: 8}]")
    assert sum(read) == 8


def test_an_evaluation_that_is_done_is_not_done_again(runs, home, monkeypatch):
    first = evaluated(runs[0], home, "baselines=[]", "generation.max_new_tokens=3")
    monkeypatch.setattr(session, "build_reader", None)
    assert evaluated(runs[0], home, "baselines=[]", "generation.max_new_tokens=3") == first


def test_a_killed_evaluation_goes_on_to_the_same_results(runs, home, monkeypatch):
    whole = evaluated(runs[0], home, "baselines=[]", "eval_batch_size=1")[0]
    folder = next(
        path.parent
        for path in runs[0].glob(f"eval/*/comi/{PREDICTIONS}")
        if json.loads((path.parent / RESULTS).read_text()) == whole
    )
    rows = Predictions(folder / PREDICTIONS).rows
    (folder / RESULTS).unlink()
    (folder / PREDICTIONS).unlink()
    append, batches = Predictions.append, []

    def dying(predictions, found):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(found)
        append(predictions, found)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Predictions, "append", dying)
        evaluated(runs[0], home, "baselines=[]", "eval_batch_size=1")
    assert len(Predictions(folder / PREDICTIONS).rows) == 2 and not (folder / RESULTS).exists()
    again = evaluated(runs[0], home, "baselines=[]", "eval_batch_size=1")[0]
    for key in ("metrics", "n", "data_hash", "memory_slots", "effective_ratio", "truncated"):
        assert again[key] == whole[key]
    timeless = [{**row, "times": None} for row in rows]
    assert [{**row, "times": None} for row in Predictions(folder / PREDICTIONS).rows] == timeless


def test_a_baseline_needs_no_run(home):
    words = ["compressor=truncate", "reader=truncate", "examples=4", "baselines=[truncate]"]
    cfg = reduced(compose_tiny(words, "eval"), home)
    [results] = EvaluationSession(TEXT).evaluate(cfg)
    assert results["reader"] == "truncate" and results["n"] == 4 and results["requested_ratio"] == 4
