"""Paired comparison of readers: differences, intervals, and the evaluations that cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from breviary.evaluation import comparison
from breviary.evaluation.comparison import (
    EvaluatedReader,
    comparison_rows,
    dataset_name,
    load_evaluations,
    paired_differences,
)
from breviary.evaluation.results import Predictions, summarise, write_results
from scripts import compare

HARD = [0, 1, 0, 1, 1, 0, 0, 1, 0, 1]  # exact matches of a weak reader


def put(
    folder: Path,
    reader: str,
    em: list[float],
    nll: float = 3.0,
    data: str = "one",
    tokens: int = 2,
    ratio: float = 4.0,
    **more: Any,
) -> str:
    """Writes an evaluation as eval.py does. Answer i has `tokens` + i tokens and `nll` + 3 (i mod 3) nats."""
    rows = [
        {
            "id": f"q{i}",
            "question": "?",
            "prediction": "",
            "references": [""],
            "scores": {"em": float(hit)},
            "nll": nll + 3 * (i % 3),
            "answer_tokens": tokens + i,
            "context_tokens": 40,
            "memory_slots": 10,
            "memory_bytes": 1,
            "context_reused": False,
            "truncated": False,
            "times": {"decode_ms": 1.0},
            **more,
        }
        for i, hit in enumerate(em)
    ]
    Predictions(folder / reader / "predictions.jsonl").append(rows)
    write_results(
        folder / reader,
        reader,
        summarise(rows, ratio),
        {"data_hash": data, "peak_memory_bytes": 1, "run": str(folder), "config": None},
    )
    return str(folder / reader)


def same_questions(folders: list[str]) -> list[EvaluatedReader]:
    """Evaluations of the same questions."""
    [group] = load_evaluations(folders)
    return group


def test_differences_equal_hand_computed_values(tmp_path):
    """Two more exact matches of ten; 12 nats less over 65 answer tokens."""
    ours = put(tmp_path / "a", "ours", [1, 1, 1, *HARD[3:]], nll=1.8)
    metrics = paired_differences(*same_questions([ours, put(tmp_path / "b", "other", HARD, nll=3.0)]))
    assert metrics.keys() == {"em", "nll"}
    assert metrics["em"]["value"] == pytest.approx(0.2) and metrics["nll"]["value"] == pytest.approx(-12 / 65)
    # A folder above a single evaluation is accepted.
    back = paired_differences(*same_questions([str(tmp_path / "b"), ours]))
    assert back["em"]["value"] == pytest.approx(-0.2) and back["nll"]["value"] == pytest.approx(12 / 65)


def test_differences_equal_those_of_the_two_results(tmp_path):
    folders = [
        put(tmp_path / name, name, em, nll, ratios={"accuracy": [index + 1, 4]})
        for index, (name, em, nll) in enumerate([("a", HARD, 2.0), ("b", HARD[::-1], 5.0)])
    ]
    one, two = same_questions(folders)
    for name, metric in paired_differences(one, two).items():
        assert metric["value"] == pytest.approx(
            one.results["metrics"][name]["value"] - two.results["metrics"][name]["value"]
        )


def test_variation_common_to_both_readers_does_not_widen_the_interval(tmp_path):
    """The NLL varies between questions far more than between readers, and the difference is constant."""
    one, two = same_questions([put(tmp_path / "a", "a", HARD, nll=2.0), put(tmp_path / "b", "b", HARD, nll=2.5)])
    nll, own = paired_differences(one, two)["nll"], one.results["metrics"]["nll"]
    assert nll["high"] < 0 and nll["high"] - nll["low"] < (own["high"] - own["low"]) / 2


def test_one_question_decides_little(tmp_path):
    metrics = paired_differences(*same_questions([put(tmp_path / "a", "a", [1]), put(tmp_path / "b", "b", [0])]))
    assert metrics["em"] == {"value": 1.0, "low": pytest.approx(-0.7335, abs=1e-4), "high": 1.0}
    assert metrics["nll"] == {"value": 0.0, "low": 0.0, "high": 0.0}  # nothing is known of its variation


def test_questions_on_one_context_are_resampled_together(tmp_path, capsys):
    """90 questions on 30 contexts, each with equal answers: as certain as 30 questions."""
    em = [int(i % 30 < 15) for i in range(90)]

    def evaluations(home, contexts):
        folders = [put(home / name, name, hits, nll=2.0) for name, hits in (("a", em), ("b", [0] * 90))]
        for folder, with_contexts in zip(folders, contexts):
            path = Path(folder, "predictions.jsonl")
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            rows = [row | ({"context_id": f"c{i % 30}"} if with_contexts else {}) for i, row in enumerate(rows)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return same_questions(folders)

    questions, contexts, half = (
        comparison_rows(evaluations(tmp_path / str(i), known), False)[0]
        for i, known in enumerate([(False, False), (True, True), (False, True)])
    )
    widths = [row["metrics"]["em"]["high"] - row["metrics"]["em"]["low"] for row in (questions, contexts)]
    assert widths[1] == pytest.approx(3**0.5 * widths[0], rel=0.2)
    assert contexts["intervals"] == {"level": 0.95, "resampled": "contexts", "clusters": 30, "contexts": 30}
    assert questions["intervals"] == {"level": 0.95, "resampled": "questions", "clusters": 90, "contexts": 90}
    assert half["metrics"] == contexts["metrics"]  # one of the two evaluations may be of an earlier version
    compare.print_rows([contexts])
    assert "a (untrained), 90 questions on 30 contexts of one, minus" in capsys.readouterr().out


def test_nll_is_omitted_when_token_counts_differ(tmp_path):
    metrics = paired_differences(
        *same_questions([put(tmp_path / "a", "a", HARD), put(tmp_path / "b", "b", HARD, tokens=3)])
    )
    assert metrics.keys() == {"em"}


def test_readers_with_the_same_name_get_distinct_labels(tmp_path):
    same = [put(tmp_path / "a", "comi", HARD), put(tmp_path / "b", "comi", HARD, ratio=8.0)]
    assert [one.name for one in same_questions(same)] == ["comi, 4x", "comi, 8x"]
    again = [same[0], put(tmp_path / "c", "comi", HARD)]
    assert [one.name for one in same_questions(again)] == again


def test_evaluations_that_cannot_be_compared_raise_one_message(tmp_path, capsys):
    one, two = put(tmp_path / "a", "a", HARD), put(tmp_path / "b", "b", HARD[:5])
    put(tmp_path / "b", "c", HARD)
    gone = put(tmp_path / "d", "d", HARD)
    Path(gone, "predictions.jsonl").unlink()
    for arguments, message in [
        ([one], "at least two evaluations"),
        ([one, two], "answers other questions"),
        ([one, put(tmp_path / "e", "e", HARD, data="two")], "answers other questions"),
        ([one, str(tmp_path / "b")], "2 evaluations below it"),
        ([one, gone], "needs the predictions"),
        ([one, str(tmp_path / "nowhere")], "no such folder"),
    ]:
        with pytest.raises(SystemExit) as ended:
            compare.main(arguments)
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and message in printed and printed.count("\n") == 1


def test_the_script_prints_signs_and_writes_json(tmp_path, capsys):
    ours, others = (
        put(tmp_path / "a", "ours", [1] * 10),
        [put(tmp_path / "b", "weak", HARD), put(tmp_path / "c", "none", [0] * 10)],
    )
    compare.main([ours, *others, "--output", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert (
        "ours (untrained), 10 questions of one, minus" in printed
        and "+.50 [.05, .78]" in printed
        and "+1.00 [.52, 1.00]" in printed
    )
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["reader"], row["minus"], row["n"]) for row in rows] == [("ours", "weak", 10), ("ours", "none", 10)]
    assert rows[0]["metrics"]["em"]["value"] == 0.5


def test_several_datasets_and_all_pairs(tmp_path, capsys):
    """Readers are compared within a dataset, never across datasets."""
    evaluations = [
        put(tmp_path / data / reader, reader, em, data=data)
        for reader, em in [("all", [1] * 10), ("some", HARD), ("none", [0] * 10)]
        for data in ("nq", "hotpotqa")
    ]
    compare.main([*evaluations, "--pairs", "--output", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    pairs = [("all", "some", 0.5), ("all", "none", 1.0), ("some", "none", 0.5)]
    assert [(row["dataset"], row["reader"], row["minus"], row["metrics"]["em"]["value"]) for row in rows] == [
        (data, *pair) for data in ("nq", "hotpotqa") for pair in pairs
    ]
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(", minus")] == [
        f"{reader} (untrained), 10 questions of {data}, minus"
        for data in ("nq", "hotpotqa")
        for reader in ("all", "some")
    ]


def test_dataset_name_is_that_of_its_yaml_file():
    datasets = {
        "jsonl": {"_target_": "data.jsonl.Jsonl", "test": "/data/nq/test.jsonl.gz"},
        "generated": {"_target_": "data.passkey.Passkey"},
    }
    assert dataset_name({"config": {"dataset": datasets["jsonl"]}, "data_hash": "0"}) == "nq"
    several = {"_target_": "data.passages.Passages", "test": ["/data/nq/test.jsonl.gz", "/data/hotpotqa/test.jsonl.gz"]}
    several = {"config": {"dataset": several}, "data_hash": "0"}
    assert dataset_name(several) == "nq, hotpotqa"
    generated = {"config": {"dataset": datasets["generated"], "split": "validation"}, "data_hash": "0"}
    assert dataset_name(generated) == "the validation split of passkey"
    assert dataset_name({"config": None, "data_hash": "0123456789abcdef"}) == "0123456789ab"


def test_readers_of_different_training_and_backbones_say_so(tmp_path, capsys):
    folders = [put(tmp_path / name, name, HARD) for name in ("a", "b")]
    for folder, steps, backbone in zip(folders, (400, None), ("SmolLM2-135M", "Qwen3-4B")):
        results = json.loads(Path(folder, "results.json").read_text())
        training = {"trained": True, "steps": steps, "examples": None, "data": "nq", "init_from": None}
        Path(folder, "results.json").write_text(json.dumps({**results, "training": training, "backbone": backbone}))
    compare.main(folders)
    lines = capsys.readouterr().out.splitlines()
    assert "a (400 steps), 10 questions of one, minus" in lines
    assert any(line.startswith("b (steps unknown)") for line in lines)
    assert "backbone: SmolLM2-135M (a), Qwen3-4B (b)" in lines and "trained on: nq" in lines


# ------------------------------------------------------------------ RUN in place of an evaluation


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(NAME, {HASH: (reader, em, data)}) -> a run folder of the reader "ours" with these evaluations."""
    monkeypatch.setattr(comparison, "load_config", lambda folder: SimpleNamespace(reader="ours"))

    def make(name, evaluations):
        folder = tmp_path / "outputs" / name / "20260101T000000_abcdef"
        folder.mkdir(parents=True)
        for file in ("config.yaml", "finished"):
            (folder / file).touch()
        for place, (reader, em, data) in evaluations.items():
            put(folder / "eval" / place, reader, em, data=data)
        return folder

    return make


def test_runs_are_compared_on_the_questions_that_both_answer(run, capsys):
    one = run("one", {"a": ("ours", HARD, "nq"), "b": ("ours", HARD, "qasper"), "c": ("full_context", HARD, "nq")})
    two = run("two", {"d": ("ours", HARD[::-1], "nq"), "e": ("no_context", HARD, "nq")})
    [group] = load_evaluations([str(one), str(two.parent)])
    assert [Path(reader.results["run"]).name for reader in group] == ["a", "d"]
    out = capsys.readouterr().out
    assert f"{one}: evaluation {one}/eval/a/ours\n" in out and f"RUN {two.parent}: the only finished run, {two}" in out


def test_a_run_is_compared_with_a_baseline_s_evaluation(run):
    one = run("one", {"a": ("ours", HARD, "nq"), "b": ("ours", HARD, "qasper"), "c": ("full_context", HARD, "qasper")})
    [group] = load_evaluations([str(one), str(one / "eval" / "c")])
    assert [reader.name for reader in group] == ["ours", "full_context"]
    assert [Path(reader.results["run"]).name for reader in group] == ["b", "c"]


def test_a_run_that_is_not_evaluated(run):
    one = run("one", {"c": ("full_context", HARD, "nq")})
    with pytest.raises(ValueError, match=r"no evaluation of ours in it; evaluate first, python .*eval.py "):
        load_evaluations([str(one), str(one)])
