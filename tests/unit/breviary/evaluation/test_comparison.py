"""Two readers, question by question: what is subtracted from what, how sure one may be, and what may not be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from breviary.evaluation.comparison import EvaluatedReader, data_name, differences, load_evaluations
from breviary.evaluation.results import Predictions, summarise, write_results
from scripts import compare

HARD = [0, 1, 0, 1, 1, 0, 0, 1, 0, 1]  # which questions a weak reader answers


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
    """An evaluation as eval.py leaves it; question i's answer has `tokens` + i tokens and costs nll + 3 (i mod 3) nats."""
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


def alike(folders: list[str]) -> list[EvaluatedReader]:
    """Evaluations that answer the same questions."""
    [group] = load_evaluations(folders)
    return group


def test_the_first_minus_the_second_by_hand(tmp_path):
    """Two hits more of ten; 12 nats less over answers of 2 to 11 tokens, 65 in all."""
    ours = put(tmp_path / "a", "ours", [1, 1, 1, *HARD[3:]], nll=1.8)
    found = differences(*alike([ours, put(tmp_path / "b", "other", HARD, nll=3.0)]))
    assert found.keys() == {"em", "nll"}
    assert found["em"]["value"] == pytest.approx(0.2) and found["nll"]["value"] == pytest.approx(-12 / 65)
    back = differences(*alike([str(tmp_path / "b"), ours]))  # a folder above a single one will do
    assert back["em"]["value"] == pytest.approx(-0.2) and back["nll"]["value"] == pytest.approx(12 / 65)


def test_it_is_the_difference_of_what_the_two_results_say(tmp_path):
    folders = [
        put(tmp_path / name, name, em, nll, ratios={"accuracy": [index + 1, 4]})
        for index, (name, em, nll) in enumerate([("a", HARD, 2.0), ("b", HARD[::-1], 5.0)])
    ]
    one, two = alike(folders)
    for name, metric in differences(one, two).items():
        assert metric["value"] == pytest.approx(
            one.results["metrics"][name]["value"] - two.results["metrics"][name]["value"]
        )


def test_what_is_hard_for_both_does_not_widen_the_interval(tmp_path):
    """Each reader's own NLL varies with its questions by far more than the two differ; the difference is the same everywhere."""
    one, two = alike([put(tmp_path / "a", "a", HARD, nll=2.0), put(tmp_path / "b", "b", HARD, nll=2.5)])
    nll, own = differences(one, two)["nll"], one.results["metrics"]["nll"]
    assert nll["high"] < 0 and nll["high"] - nll["low"] < (own["high"] - own["low"]) / 2


def test_one_question_has_no_interval(tmp_path):
    found = differences(*alike([put(tmp_path / "a", "a", [1]), put(tmp_path / "b", "b", [0])]))
    assert found["em"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_tokens_of_other_tokenizers_are_not_subtracted(tmp_path):
    found = differences(*alike([put(tmp_path / "a", "a", HARD), put(tmp_path / "b", "b", HARD, tokens=3)]))
    assert found.keys() == {"em"}


def test_readers_of_one_name_are_told_apart(tmp_path):
    same = [put(tmp_path / "a", "comi", HARD), put(tmp_path / "b", "comi", HARD, ratio=8.0)]
    assert [one.name for one in alike(same)] == ["comi, 4x", "comi, 8x"]
    again = [same[0], put(tmp_path / "c", "comi", HARD)]
    assert [one.name for one in alike(again)] == again


def test_what_may_not_be_compared_is_refused_in_one_sentence(tmp_path, capsys):
    one, two = put(tmp_path / "a", "a", HARD), put(tmp_path / "b", "b", HARD[:5])
    put(tmp_path / "b", "c", HARD)
    gone = put(tmp_path / "d", "d", HARD)
    Path(gone, "predictions.jsonl").unlink()
    for words, sentence in [
        ([one], "at least two evaluations"),
        ([one, two], "answers other questions"),
        ([one, put(tmp_path / "e", "e", HARD, data="two")], "answers other questions"),
        ([one, str(tmp_path / "b")], "2 evaluations below it"),
        ([one, gone], "needs the predictions"),
        ([one, str(tmp_path / "nowhere")], "no such folder"),
    ]:
        with pytest.raises(SystemExit) as ended:
            compare.main(words)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and sentence in said and said.count("\n") == 1


def test_the_command_prints_signs_and_writes_json(tmp_path, capsys):
    ours, others = (
        put(tmp_path / "a", "ours", [1] * 10),
        [put(tmp_path / "b", "weak", HARD), put(tmp_path / "c", "none", [0] * 10)],
    )
    compare.main([ours, *others, "--output", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert (
        "ours, 10 questions of one, minus" in printed
        and "+.50 [.20, .80]" in printed
        and "+1.00 [1.00, 1.00]" in printed
    )
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["reader"], row["minus"], row["n"]) for row in rows] == [("ours", "weak", 10), ("ours", "none", 10)]
    assert rows[0]["metrics"]["em"]["value"] == 0.5


def test_several_data_sets_at_once_and_every_pair(tmp_path, capsys):
    """The readers of one data set are compared with one another, never with those of another one."""
    words = [
        put(tmp_path / data / reader, reader, em, data=data)
        for reader, em in [("all", [1] * 10), ("some", HARD), ("none", [0] * 10)]
        for data in ("nq", "hotpotqa")
    ]
    compare.main([*words, "--pairs", "--output", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    pairs = [("all", "some", 0.5), ("all", "none", 1.0), ("some", "none", 0.5)]
    assert [(row["dataset"], row["reader"], row["minus"], row["metrics"]["em"]["value"]) for row in rows] == [
        (data, *pair) for data in ("nq", "hotpotqa") for pair in pairs
    ]
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(", minus")] == [
        f"{reader}, 10 questions of {data}, minus" for data in ("nq", "hotpotqa") for reader in ("all", "some")
    ]


def test_the_data_is_named_by_its_file_or_its_class():
    named = {
        "jsonl": {"_target_": "data.jsonl.Jsonl", "test": "/data/nq/test.jsonl.gz"},
        "made": {"_target_": "data.passkey.Passkey"},
    }
    assert data_name({"config": {"dataset": named["jsonl"]}, "data_hash": "0"}) == "nq/test.jsonl.gz"
    several = {"_target_": "data.passages.Passages", "test": ["/data/nq/test.jsonl.gz", "/data/hotpotqa/test.jsonl.gz"]}
    assert data_name({"config": {"dataset": several}, "data_hash": "0"}) == "nq/test.jsonl.gz, hotpotqa/test.jsonl.gz"
    assert data_name({"config": {"dataset": named["made"], "split": "validation"}, "data_hash": "0"}) == "Passkey"
    assert data_name({"config": None, "data_hash": "0123456789abcdef"}) == "0123456789ab"
