"""Every experiment of configs/experiment: two training steps on the tiny backbone, then evaluation on four questions.

Then evaluations of two runs: tables, variants, continuing after an interruption.
"""

import copy
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
from data.text_pipeline import TEXT
from tests.tiny import CONFIGS, LORA_TARGETS, compose_tiny, composed_choice, evaluate_tiny

EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("*.yaml"))
# Upper limits for keys that cost time.
LIMITS = {
    "train.steps": 2,
    "train.learning_rate": 1e-4,
    "train.batch_size": 2,
    "train.accumulation": 2,
    "train.log_every": 1,
    "train.pack_tokens": 200,
    "train.eval_every": 0,
    "train.eval_examples": 2,
    "train.workers": 0,
    "eval_batch_size": 2,
    "generation.max_new_tokens": 4,
    "generation.min_new_tokens": 0,
    "limits.max_context_tokens": 128,
    "compressor.encoder_layers": 2,
    "compressor.layers": 2,
    "compressor.layer": 2,
    "compressor.chunk_size": 16,
    "compressor.stride": 4,
    "compressor.global_slots": 3,
    "compressor.queue_budget": 8,
    "compressor.most_chunks": 16,
    "dataset.facts": 3,
    "dataset.context_words": 80,
    "dataset.least_words": 60,
    "dataset.train_size": 8,
    "dataset.validation_size": 4,
    "dataset.test_size": 4,
    "dataset.max_new_tokens": 4,
    "dataset.min_words": 8,
    "dataset.max_words": 12,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with train.jsonl, validation.jsonl and test.jsonl in our JSONL format."""
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


def reduce_config(cfg, home):
    """The configuration on the tiny backbone and on local data, in one process, with LIMITS applied."""
    with open_dict(cfg):
        cfg.backbone = OmegaConf.load(CONFIGS / "backbone" / "tiny.yaml")
        cfg.backbone.layers, cfg.backbone.width = 3, 32
        cfg.engine = OmegaConf.load(CONFIGS / "engine" / "single.yaml")
        cfg.prompt.chat = False  # the tiny tokenizer has no chat template
        cfg.train.epochs = None  # train.steps counts
        cfg.paths.outputs, cfg.paths.cache = f"{home}/outputs", f"{home}/cache"
        for split in ("train", "validation", "test"):
            if split in cfg.dataset:
                cfg.dataset[split] = f"{home}/{split}.jsonl"
        for section in (cfg.decoder, cfg.compressor):
            if "lora_targets" in section:
                section.lora_targets = LORA_TARGETS
        for key, limit in LIMITS.items():
            value = OmegaConf.select(cfg, key)
            if value is not None:
                OmegaConf.update(cfg, key, min(value, limit))
    return cfg


def is_finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def train_and_check(cfg):
    """Trains and checks the log; returns the run folder."""
    folder = train.train(cfg)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    for row in rows:
        wrong = {key: value for key, value in row.items() if not is_finite(value) and key != "effective_ratio"}
        assert not wrong, wrong
    return folder


def evaluate_run(folder, home, *overrides):
    """The results of eval.py run=FOLDER examples=4 OVERRIDES."""
    paths = [f"paths.outputs={home}/outputs", f"paths.cache={home}/cache"]
    return evaluate_tiny([f"run={folder}", "examples=4", *paths, *overrides])


@pytest.fixture(scope="module")
def tested():
    """The reduced configurations that this file has trained and evaluated."""
    return set()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_trains_and_evaluates(name, home, tested):
    cfg = reduce_config(copy.deepcopy(composed_choice(f"experiment={name}")), home)
    is_second_stage = bool(OmegaConf.is_missing(cfg, "init_from") or cfg.init_from)
    label, cfg.init_from, cfg.name, cfg.reader = cfg.reader or name, None, "smoke", None
    # Experiments that differ in backbone, sizes, data files or label only are equal after the reduction: tested once.
    content = (is_second_stage, OmegaConf.to_yaml(cfg, resolve=True))
    if content in tested:
        return
    cfg.reader = label
    folder = train_and_check(cfg)
    if is_second_stage:
        cfg.init_from = str(folder)
        folder = train_and_check(cfg)
    [results] = evaluate_run(folder, home, "baselines=[]")
    assert results["n"] == 4 and results["reader"] == cfg.reader
    assert {"em", "f1", "rouge_l", "nll"} <= results["metrics"].keys()
    assert all(is_finite(number) for metric in results["metrics"].values() for number in metric.values())
    assert all(is_finite(time) for time in results["times"].values())
    tested.add(content)


@pytest.fixture(scope="module")
def runs(home):
    """Two runs: COMI at depth, and full context with equal training."""
    folders = []
    for name, words in {"comi": ["compressor.join=depth"], "full_context": []}.items():
        words = [f"compressor={name}", f"reader={name}", f"name={name}", *words]
        folders.append(train_and_check(reduce_config(compose_tiny(words), home)))
    return folders


@pytest.fixture
def encoded_contexts(monkeypatch):
    """The number of contexts in each call of ContextEncoder.encode."""
    calls, encode = [], ContextEncoder.encode
    monkeypatch.setattr(
        ContextEncoder,
        "encode",
        lambda self, context, **named: calls.append(len(context.ids)) or encode(self, context, **named),
    )
    return calls


def test_a_table_has_trained_readers_and_baselines(runs, home):
    comi, full = runs
    results = evaluate_run(comi, home, f"compare=[{full}]")
    readers = [result["reader"] for result in results]
    assert readers == ["comi", "full_context", "full_context (untrained)", "no_context"]
    ratios = [result["effective_ratio"] for result in results]
    assert 3 < ratios[0] <= 4 and ratios[1:] == [1, 1, None]
    assert len({json.dumps(result["metrics"]["nll"]) for result in results}) == 4
    folders = [Path(path) for path in comi.glob("eval/*/*")] + [Path(path) for path in full.glob("eval/*/*")]
    assert len(folders) == 4 and all((folder / RESULTS).is_file() for folder in folders)
    evaluate_run(f"{comi}/", home, f"compare=[{full}/]")  # another spelling of the same paths
    assert sorted([*comi.glob("eval/*/*"), *full.glob("eval/*/*")]) == sorted(folders)


def test_variants_equal_separate_evaluations_and_share_encoded_contexts(runs, home, encoded_contexts):
    words = ["baselines=[]", "generation.max_new_tokens=2"]  # other tests have not evaluated this
    variants = evaluate_run(
        runs[0], home, *words, "variants=[{compressor.ratio: 2}, {compressor.coarse: false, compressor.ratio: 2}]"
    )
    assert sum(encoded_contexts) == 4
    assert [one["reader"] for one in variants] == ["comi", "comi, ratio=2", "comi, coarse=False, ratio=2"]
    assert all(one["contexts_read"] == 4 and one["times"]["read_ms"] > 0 for one in variants)
    for one, other in zip(variants[1:], (["compressor.ratio=2"], ["compressor.ratio=2", "compressor.coarse=false"])):
        [alone] = evaluate_run(runs[0], home, *words, *other)
        assert (
            sum(encoded_contexts) in (8, 12)
            and one["metrics"] == alone["metrics"]
            and one["memory_slots"] == alone["memory_slots"]
        )


def test_a_variant_with_another_segment_size_encodes_again(runs, home, encoded_contexts):
    evaluate_run(
        runs[0], home, "baselines=[]", "generation.max_new_tokens=1", "variants=[{compressor.segment_size: 8}]"
    )
    assert sum(encoded_contexts) == 8


def test_a_finished_evaluation_is_not_repeated(runs, home, monkeypatch):
    first = evaluate_run(runs[0], home, "baselines=[]", "generation.max_new_tokens=3")
    monkeypatch.setattr(session, "build_reader", None)
    assert evaluate_run(runs[0], home, "baselines=[]", "generation.max_new_tokens=3") == first


def test_a_killed_evaluation_continues_to_the_same_results(runs, home, monkeypatch):
    whole = evaluate_run(runs[0], home, "baselines=[]", "eval_batch_size=1")[0]
    folder = Path(whole.pop("folder"))
    assert json.loads((folder / RESULTS).read_text()) == whole
    rows = Predictions(folder / PREDICTIONS).rows
    (folder / RESULTS).unlink()
    (folder / PREDICTIONS).unlink()
    append, batches = Predictions.append, []

    def append_twice(predictions, rows):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(rows)
        append(predictions, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Predictions, "append", append_twice)
        evaluate_run(runs[0], home, "baselines=[]", "eval_batch_size=1")
    assert len(Predictions(folder / PREDICTIONS).rows) == 2 and not (folder / RESULTS).exists()
    again = evaluate_run(runs[0], home, "baselines=[]", "eval_batch_size=1")[0]
    for key in ("metrics", "n", "data_hash", "memory_slots", "effective_ratio", "truncated"):
        assert again[key] == whole[key]
    without_times = [{**row, "times": None} for row in rows]
    assert [{**row, "times": None} for row in Predictions(folder / PREDICTIONS).rows] == without_times


def test_a_baseline_needs_no_run(home):
    words = ["compressor=truncate", "reader=truncate", "examples=4", "baselines=[truncate]"]
    cfg = reduce_config(compose_tiny(words, "eval"), home)
    [results] = EvaluationSession(TEXT).evaluate(cfg)
    assert results["reader"] == "truncate" and results["n"] == 4 and results["requested_ratio"] == 4
