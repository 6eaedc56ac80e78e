"""Metrics that a data set names: computed, stored with their version, shown first; stored predictions scored anew."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from breviary.config.errors import ConfigError
from breviary.contract import Batch, LossOutput, Tokens
from breviary.evaluation import session
from breviary.evaluation.comparison import EvaluatedReader, paired_differences
from breviary.evaluation.likelihoods import choice_nll, continuation_nll
from breviary.evaluation.results import PREDICTIONS, RESULTS, Predictions, summarise
from breviary.evaluation.statistics import geometric_mean
from breviary.evaluation.table import markdown_table, table_row
from tests.tiny import evaluate_tiny
from tests.unit.breviary.evaluation.test_results import prediction

TINY = ["backbone.layers=2", "backbone.width=32", "backbone.heads=2", "backbone.kv_heads=1", "dataset=jsonl"]
BASELINE = ["compressor=full_context", "reader=full_context", "baselines=[]", "generation.max_new_tokens=3"]
COLOURS = ["green", "dark red", "blue"]


@pytest.fixture
def evaluate(tmp_path):
    """evaluate(words) -> (results, their folder), of three questions on one context."""
    rows = [
        {"id": f"q{i}", "context": "The tower is tall.", "question": f"Which colour has {i}?", "answers": [answer]}
        for i, answer in enumerate(COLOURS)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row | {"choices": COLOURS}) + "\n" for row in rows))

    def evaluate(*words):
        words = [*TINY, *BASELINE, f"dataset.test={tmp_path}/t.jsonl", f"paths.cache={tmp_path}/cache", *words]
        [results] = evaluate_tiny([*words, f"paths.outputs={tmp_path}/outputs"])
        return results, Path(results["folder"])

    evaluate.file = tmp_path / "t.jsonl"
    return evaluate


def test_likelihoods_are_measured_and_stored(evaluate):
    names = "[choice_likelihood,classification,continuation_perplexity]"
    results, folder = evaluate(f"dataset.metrics={names}")
    assert results["scoring"]["names"] == ["choice_likelihood", "classification", "continuation_perplexity"]
    assert {"em", "f1", "rouge_l", "nll"} <= results["metrics"].keys()  # always computed
    rows = Predictions(folder / PREDICTIONS).rows
    for place, row in enumerate(rows):
        assert len(row["choice_nll"]) == 3 and row["ratios"]["continuation_nll"][1] == row["answer_tokens"] - 1
        # The reference is one of the choices; its end token is the rest of the answer's likelihood.
        assert row["choice_nll"][place] == pytest.approx(row["ratios"]["continuation_nll"][0], rel=1e-4)
        assert row["scores"]["choice_likelihood"] == float(np.argmin(row["choice_nll"]) == place)
    nats, tokens = np.sum([row["ratios"]["continuation_nll"] for row in rows], axis=0)
    assert results["metrics"]["continuation_perplexity"]["value"] == pytest.approx(math.exp(nats / tokens))
    [table] = [markdown_table([table_row(results)])]
    assert "| likeliest | class | perplexity |" in table and "ROUGE" not in table


def test_stored_predictions_are_scored_anew_without_a_reader(evaluate, monkeypatch, capsys):
    first, folder = evaluate()
    monkeypatch.setattr(session, "build_reader", None)
    results, again = evaluate("dataset.metrics=[string_match_all,f1]")
    assert again == folder and "scored anew from its predictions for string_match_all" in capsys.readouterr().out
    assert results["metrics"].keys() == first["metrics"].keys() | {"string_match_all"}
    assert all(results["metrics"][name] == first["metrics"][name] for name in first["metrics"])
    assert results["times"] == first["times"] and results["commit"] == first["commit"]
    assert results["scoring"]["names"] == ["string_match_all", "f1"] and len(list(folder.glob(f"{RESULTS}.*.old"))) == 1
    back, _ = evaluate()  # the scores are there, others are shown
    assert back["scoring"]["names"][0] == "em" and back["metrics"] == results["metrics"]
    evaluate("dataset.metrics=[f1]")
    assert capsys.readouterr().out.count("already evaluated") == 2


def test_a_likelihood_that_is_missing_is_measured(evaluate, capsys):
    _, folder = evaluate()
    results, again = evaluate("dataset.metrics=[choice_likelihood]")
    assert again == folder and "choice_likelihood" in results["metrics"]
    assert "no scores of this version for choice_likelihood" in capsys.readouterr().out


def test_what_the_model_saw_is_stored(evaluate):
    results, _ = evaluate("limits.max_context_tokens=5", "prompt.instruction='Read this. '")
    prompt = results["prompt"]
    assert prompt["first"].startswith("<s>Read this. The") and prompt["first"] == prompt["last"]
    assert prompt["last"].endswith("Which colour has 0?\nAnswer:") and prompt["characters"] == len(prompt["first"])
    assert prompt["tokens"]["context"] == 5 and prompt["context_tokens"] == {"mean": 5, "max": 5}
    assert prompt["tokens"]["all"] == sum(prompt["tokens"][key] for key in ("prefix", "context", "question"))
    assert (prompt["truncation"], prompt["truncated"], prompt["chat"]) == ("middle", 3, False)
    assert (prompt["stop"], prompt["max_new_tokens"], prompt["decoding"]) == (["\n"], 3, "greedy")
    assert results["ended"] in range(4) and results["scoring"]["details"]["rouge_l"]["library"].startswith(
        "rouge-score"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset.metrics=[F2]"], "dataset.metrics: unknown metric F2; the nearest|allowed are em"),
        (["dataset.metrics=[bertscore]"], "bertscore needs a model in a local folder"),
        (["dataset.metrics=[choice_likelihood]", "examples=1"], "choices of every example"),
    ],
)
def test_wrong_names_are_reported_before_a_reader_is_built(evaluate, monkeypatch, words, message):
    monkeypatch.setattr(session, "build_reader", None)
    if "examples=1" in words:
        evaluate.file.write_text(json.dumps({"context": "The tower.", "question": "Which?", "answers": ["red"]}))
    with pytest.raises(ConfigError, match=message):
        evaluate(*words)


# ------------------------------------------------------------------ parts


class Uniform:
    """A reader whose every token costs 2 nats."""

    def loss(self, batch):
        tokens = batch.answer.lengths
        return LossOutput(2.0 * tokens, tokens, {}, tokens, tokens)


def tokens(*lengths):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Tokens(torch.ones_like(mask, dtype=torch.int64), mask)


def test_likelihoods_of_unequal_numbers_of_choices():
    empty = tokens(0, 0, 0)
    batch = Batch(empty, empty, empty, empty, tokens(3, 1, 2), None, None, [None] * 3)
    batch.choices = [tokens(1, 0, 2), tokens(3, 0, 0)]
    assert choice_nll(Uniform(), batch) == [[2, 6], [], [4]]
    assert continuation_nll(Uniform(), batch, Uniform().loss(batch)) == [(4, 2), (0, 0), (2, 1)]


def rows_with(values):
    return [
        prediction(f"q{i}", scores={"rouge1": a, "rouge2": b, "em": 0.0}, context_id=f"c{i}")
        for i, (a, b) in enumerate(values)
    ]


def test_geometric_mean_is_of_the_set():
    rows = rows_with([(1.0, 0.2), (0.5, 0.5), (0.0, 0.8)])
    metric = summarise(rows, None, aggregates={"rouge_geometric": ("rouge1", "rouge2")})["metrics"]["rouge_geometric"]
    assert metric["value"] == pytest.approx(0.5) and 0 <= metric["low"] < 0.5 < metric["high"]
    assert geometric_mean([np.zeros(3), np.ones(3)], 0, 20)["value"] == 0


def test_geometric_means_are_compared_as_such():
    results = {"scoring": {"aggregates": {"rouge_geometric": ["rouge1", "rouge2"]}}}
    ours, other = rows_with([(1.0, 0.25), (1.0, 0.25)]), rows_with([(0.25, 0.25), (0.25, 0.25)])
    pair = [EvaluatedReader("a", results, {row["id"]: row for row in rows}) for rows in (ours, other)]
    assert paired_differences(*pair)["rouge_geometric"]["value"] == pytest.approx(0.25)
    former = EvaluatedReader("b", {}, pair[1].predictions)
    assert "rouge_geometric" not in paired_differences(pair[0], former)


def test_a_table_shows_the_metrics_that_data_sets_name():
    metrics = {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in ("em", "f1", "nll", "rouge2")}
    result = {"reader": "a", "n": 1, "metrics": metrics, "times": {}, "truncated": 0, "run": "r", "config": None}
    named = table_row(result | {"scoring": {"names": ["rouge2", "f1"]}})
    assert named["rouge2"] == 0.5 and named["metrics"] == ["rouge2", "f1"]
    header = markdown_table([named]).splitlines()[0]
    assert "| reader | achieved ratio | ROUGE-2 | F1 |" in header and "EM" not in header
    assert "| EM | EM contains | F1 | ROUGE-L |" in markdown_table([table_row(result)]).splitlines()[0]  # no names
    assert "| ROUGE-2 | F1 | EM |" in markdown_table([named, table_row(result)]).splitlines()[0]
