"""Predictions that survive a kill, their summary by hand-computed values, results and environment on disk."""

from __future__ import annotations

import json
import math
import warnings

import pytest

from breviary.evaluation.results import Predictions, merge_ranks, read_results, summarise, write_results
from breviary.runtime.files import write_json

EXTRA = {"data_hash": "abc", "peak_memory_bytes": 5, "run": "outputs/x/1", "config": {"seed": 1}}


def prediction(name: str, em: float = 0.0, nll: float = 1.0, answer_tokens: int = 2, slots: int = 10, **changes):
    return {
        "id": name,
        "question": "who?",
        "prediction": "Ada",
        "references": ["Ada"],
        "scores": {"em": em, "em_contains": 1.0, "f1": em / 2, "rouge_l": em},
        "nll": nll,
        "answer_tokens": answer_tokens,
        "context_tokens": 40,
        "memory_slots": slots,
        "memory_bytes": 100 * slots,
        "context_reused": False,
        "truncated": False,
        "times": {"read_ms": 8.0, "compress_ms": 1.0, "prefill_ms": 2.0, "decode_ms": 3.0},
        **changes,
    }


# ------------------------------------------------------------------ predictions.jsonl


def test_appended_predictions_are_read_back_with_their_ids(tmp_path):
    path = tmp_path / "new" / "predictions.jsonl"
    Predictions(path).append([prediction("a"), prediction("b", em=1.0)])
    again = Predictions(path)
    assert again.rows == [prediction("a"), prediction("b", em=1.0)]
    assert again.done == {"a", "b"}
    again.append([prediction("c")])
    assert [row["id"] for row in Predictions(path).rows] == ["a", "b", "c"]


@pytest.mark.parametrize("kept", [0, 1, 30, -1])
def test_torn_last_line_is_dropped_and_the_evaluation_goes_on(tmp_path, kept):
    path = tmp_path / "predictions.jsonl"
    Predictions(path).append([prediction("a"), prediction("b")])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    end = len(whole) - 1 if kept == -1 else first + kept  # -1: all of the line but its end
    path.write_bytes(whole[:end])
    torn = Predictions(path)
    assert torn.done == {"a"}
    assert path.read_bytes() == whole[:first]
    torn.append([prediction("b")])
    assert path.read_bytes() == whole


def test_damaged_line_inside_names_file_and_line(tmp_path):
    path = tmp_path / "predictions.jsonl"
    Predictions(path).append([prediction("a")])
    path.write_bytes(b'{"id": "x"\n' + path.read_bytes())
    with pytest.raises(ValueError, match=r"predictions\.jsonl, line 1: not JSON"):
        Predictions(path)


@pytest.mark.parametrize("text", ["línea\u2028 uno\x85", "零", "half \ud83d", "a\nb"])
def test_any_text_is_one_line_and_reads_back(tmp_path, text):
    path = tmp_path / "predictions.jsonl"
    Predictions(path).append([prediction("a", prediction=text)])
    path.read_bytes().decode("utf-8")  # strict: readable by every tool
    assert path.read_bytes().count(b"\n") == 1
    assert Predictions(path).rows[0]["prediction"] == text


def test_non_finite_nll_is_refused_before_anything_is_written(tmp_path):
    predictions = Predictions(tmp_path / "predictions.jsonl")
    with pytest.raises(ValueError, match="nll of example 'b' is nan"):
        predictions.append([prediction("a"), prediction("b", nll=math.nan)])
    assert not predictions.path.exists() and predictions.done == set()


def test_same_example_twice_and_missing_keys_are_our_errors(tmp_path):
    predictions = Predictions(tmp_path / "predictions.jsonl")
    predictions.append([prediction("a")])
    with pytest.raises(AssertionError, match="already in"):
        predictions.append([prediction("a")])
    row = prediction("b")
    del row["memory_slots"]
    with pytest.raises(AssertionError, match="memory_slots"):
        predictions.append([row])


# ------------------------------------------------------------------ several processes


def test_ranks_merge_to_the_file_of_one_process(tmp_path):
    rows = [prediction(str(i), em=float(i % 2)) for i in range(7)]
    order = [row["id"] for row in rows]
    for world in (1, 3):
        folder = tmp_path / str(world)
        for rank in range(world):
            Predictions(folder / f"predictions.rank{rank}.jsonl").append(rows[rank::world][::-1])
        assert merge_ranks(folder, order) == rows
        assert [path.name for path in folder.iterdir()] == ["predictions.jsonl"]
    assert (tmp_path / "1/predictions.jsonl").read_bytes() == (tmp_path / "3/predictions.jsonl").read_bytes()


def test_merging_goes_on_after_a_kill_with_another_number_of_processes(tmp_path):
    order = ["a", "b", "c", "d"]
    Predictions(tmp_path / "predictions.rank0.jsonl").append([prediction("c")])
    with open(tmp_path / "predictions.rank1.jsonl", "wb") as file:
        file.write(b'{"id": "d", "torn')
    assert [row["id"] for row in merge_ranks(tmp_path, order)] == ["c"]
    Predictions(tmp_path / "predictions.rank0.jsonl").append([prediction("b"), prediction("a")])
    # killed after the merged file was in place, before the rank's file was gone: "c" stands in both
    Predictions(tmp_path / "predictions.rank1.jsonl").append([prediction("c"), prediction("d")])
    assert [row["id"] for row in merge_ranks(tmp_path, order)] == order


def test_merging_refuses_other_data_and_repeated_ids(tmp_path):
    Predictions(tmp_path / "predictions.rank0.jsonl").append([prediction("z")])
    with pytest.raises(ValueError, match=r"not in the data: \['z'\]"):
        merge_ranks(tmp_path, ["a"])
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        merge_ranks(tmp_path, ["a", "b", "a"])


# ------------------------------------------------------------------ summary


def test_summary_has_the_values_computed_by_hand():
    rows = [
        prediction("a", em=1.0, nll=1.0, answer_tokens=1, slots=10),
        prediction("b", em=0.0, nll=6.0, answer_tokens=4, slots=20, truncated=True),
        prediction(
            "c",
            em=0.0,
            nll=3.0,
            answer_tokens=5,
            slots=0,
            context_reused=True,
            times={"read_ms": 0.0, "compress_ms": 4.0, "prefill_ms": 2.0, "decode_ms": 30.0},
        ),
    ]
    summary = summarise(rows, requested_ratio=4.0)
    assert summary["n"] == 3 and summary["truncated"] == 1 and summary["requested_ratio"] == 4.0
    assert summary["metrics"]["em"]["value"] == pytest.approx(1 / 3)
    assert summary["metrics"]["f1"]["value"] == pytest.approx(1 / 6)
    assert summary["metrics"]["nll"]["value"] == pytest.approx(10 / 10)  # not the mean of 1, 1.5 and .6
    assert summary["effective_ratio"] == pytest.approx(120 / 30)
    assert summary["memory_slots"] == 10 and summary["memory_bytes"] == 1000
    assert summary["times"] == {"read_ms": 8.0, "compress_ms": 1.0, "prefill_ms": 2.0, "decode_ms": 3.0}
    for metric in summary["metrics"].values():
        assert metric["low"] <= metric["value"] <= metric["high"]
    assert summary["metrics"]["nll"]["low"] < 1.0 < summary["metrics"]["nll"]["high"]


def test_nothing_kept_has_no_ratio_and_nothing_answered_is_an_error():
    assert summarise([prediction("a", slots=0)], None)["effective_ratio"] is None
    with pytest.raises(ValueError, match="no predictions"):
        summarise([], 4.0)


@pytest.mark.parametrize("rows", [[prediction("a", em=0.3)], [prediction(str(i), em=0.1, nll=0.3) for i in range(9)]])
def test_degenerate_intervals_are_points_or_wilsons_without_a_warning(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = summarise(rows, 4.0)["metrics"]
    assert metrics["em_contains"]["low"] < metrics["em_contains"]["high"] == 1  # 0/1 in every row
    for name in ("em", "f1", "rouge_l", "nll"):
        assert metrics[name]["low"] == metrics[name]["value"] == metrics[name]["high"]


def test_questions_on_one_context_are_one_cluster():
    shared = [prediction(f"{c}-{q}", em=float(c % 3 == 0), nll=c, context_id=f"c{c}") for c in range(30) for q in "abc"]
    summary = summarise(shared, None)
    assert summary["intervals"] == {
        "level": 0.95,
        "resampled": "contexts",
        "clusters": 30,
        "contexts": 30,
        "wilson": ["em_contains"],
    }
    one_each = summarise(shared[::3], None)
    assert one_each["intervals"] == summary["intervals"] | {"resampled": "questions"}
    for name in ("em", "f1", "nll"):  # three equal answers on a context say no more than one
        width, expected = (s["metrics"][name]["high"] - s["metrics"][name]["low"] for s in (summary, one_each))
        assert width == pytest.approx(expected, rel=0.2), name
    # Rows of an earlier version do not know their contexts.
    old = summarise([{key: row[key] for key in row if key != "context_id"} for row in shared], None)
    assert old["intervals"] == summary["intervals"] | {"resampled": "questions", "clusters": 90, "contexts": 90}
    assert old["metrics"]["em"]["high"] - old["metrics"]["em"]["low"] < 0.7 * width


def test_questions_on_a_single_context_are_resampled_themselves():
    rows = [prediction(str(i), em=float(i % 2), nll=float(i), context_id="same") for i in range(30)]
    summary = summarise(rows, None)
    assert summary["intervals"] | {"wilson": 0} == {
        "level": 0.95,
        "resampled": "questions",
        "clusters": 30,
        "contexts": 1,
        "wilson": 0,
    }
    assert summary["metrics"]["nll"]["low"] < summary["metrics"]["nll"]["value"] < summary["metrics"]["nll"]["high"]


def test_shares_of_tokens_that_are_zero_or_one_have_a_wilson_interval_over_the_texts():
    pairs = {"accuracy": [8, 8], "free_accuracy": [0, 8], "length_ratio": [8, 8]}
    rows = [prediction(str(i), ratios=pairs, by_position={"0-31": [8, 8]}) for i in range(40)]
    summary = summarise(rows, None)
    bound = 1.96**2 / (40 + 1.96**2)
    metrics = summary["metrics"] | summary["by_position"]
    assert [metrics[name]["low"] for name in ("accuracy", "0-31")] == pytest.approx([1 - bound] * 2, abs=1e-4)
    assert metrics["free_accuracy"]["high"] == pytest.approx(bound, abs=1e-4)
    assert metrics["length_ratio"] == {"value": 1, "low": 1, "high": 1}  # may exceed 1
    assert summary["intervals"]["wilson"] == ["em", "em_contains", "f1", "rouge_l", "accuracy", "free_accuracy"]


# ------------------------------------------------------------------ results.json, environment.json


def test_results_are_written_whole_and_read_back(tmp_path):
    summary = summarise([prediction("a", em=1.0)], 4.0)
    written = write_results(tmp_path / "comi", "comi", summary, EXTRA | {"backbone": "tiny"})
    assert read_results(tmp_path / "comi") == read_results(tmp_path / "comi" / "results.json") == written
    assert written["schema"] == 3 and written["reader"] == "comi" and written["metrics"]["em"]["value"] == 1.0
    assert set(written) == {
        "schema",
        "reader",
        "n",
        "data_hash",
        "metrics",
        "intervals",
        "requested_ratio",
        "effective_ratio",
        "memory_slots",
        "memory_bytes",
        "document_bytes",
        "times",
        "truncated",
        "ended",
        "contexts_read",
        "peak_memory_bytes",
        "commit",
        "dirty",
        "versions",
        "hardware",
        "config",
        "run",
        "backbone",
    }
    assert [path.name for path in (tmp_path / "comi").iterdir()] == ["results.json"]


def test_bytes_of_documents_are_averaged_where_every_row_has_them():
    rows = [prediction("a", document_bytes=10), prediction("b", document_bytes=30)]
    assert summarise(rows, 4.0)["document_bytes"] == 20
    for former in (prediction("c"), prediction("c", document_bytes=None)):  # of an interrupted earlier version
        assert summarise([*rows, former], 4.0)["document_bytes"] is None


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    write_json(tmp_path / "x.json", [1])
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", [math.inf])
    (tmp_path / "y.json").mkdir()
    with pytest.raises(OSError):
        write_json(tmp_path / "y.json", [2])
    assert json.loads((tmp_path / "x.json").read_text()) == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "y.json"]


def test_results_without_a_needed_key_are_refused(tmp_path):
    with pytest.raises(AssertionError, match="data_hash"):
        write_results(tmp_path, "comi", summarise([prediction("a")], 4.0), {"run": "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"schema": 7}', "schema 7; this version reads 3"),
        ("[]", "schema 'list'"),
        ('{"schema": 1}', "lacks"),
    ],
)
def test_unreadable_results_are_told(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)
    with pytest.raises(ValueError, match="no results at"):
        read_results(tmp_path / "elsewhere")
