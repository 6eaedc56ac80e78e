"""gold_recall.py, curves.py, bench/compress.py and bench/end_to_end.py on the tiny backbone."""

import csv
import json

import pytest
from calling import call
from matplotlib import pyplot
from tiny_runs import tiny_run

import eval as evaluating
import train as training
from breviary.evaluation.bench import answers
from breviary.evaluation.bench.compression import QUESTION
from breviary.report.curves import draw_curves, read_curve
from scripts import curves, gold_recall
from scripts.bench import compress, end_to_end, generation, scoring

RAM = [
    "compressor=ram",
    "compressor.encoder_layers=2",
    "compressor.segment_size=8",
    "backbone.layers=4",
    "objective=answer_and_copy",
    "train.steps=3",
    "train.batch_size=2",
    "train.log_every=1",
    "train.eval_examples=4",
    "eval_batch_size=2",
    "generation.max_new_tokens=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that train.py made, for its log."""
    home = tmp_path_factory.mktemp("ram")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert call(monkeypatch, home, training, *RAM) == 0
    [folder] = (home / "outputs" / "default").iterdir()
    return folder


@pytest.fixture(scope="module")
def mean_pool_run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("mean_pool"), "compressor=mean_pool")


def exit_message(capsys, main, arguments):
    """The error message of a call that exits with code 2."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_gold_recall_compares_with_every_ranker(run, tmp_path, capsys):
    file = tmp_path / "recall.json"
    options = ["--examples", "12", "--ratios", "1", "2", "100", "--output", str(file)]
    gold_recall.main([str(run), *options, f"paths.cache={tmp_path}/cache"])
    printed = capsys.readouterr().out
    assert "\nram (3 steps, 6 examples) minus ram (untrained) " in printed  # one line a row
    content = json.loads(file.read_text())
    rows = {row["ranker"]: row["recall"] for row in content["rows"]}
    assert list(rows) == ["ram (3 steps, 6 examples)", "ram (untrained)", "BM25", "chance", "best possible"]
    assert all(recall["1"]["value"] == 1 for recall in rows.values())  # ratio 1 keeps every segment
    best = rows["best possible"]
    assert best["2"]["value"] == 1 and all(best["100"]["value"] >= recall["100"]["value"] for recall in rows.values())
    over = content["rows"][0]["over"]
    assert list(over) == ["ram (untrained)", "BM25"] and all("over" not in row for row in content["rows"][2:])
    for other, differences in over.items():
        assert differences["1"] == {"value": 0, "low": 0, "high": 0}
        assert differences["2"]["value"] == pytest.approx(
            rows["ram (3 steps, 6 examples)"]["2"]["value"] - rows[other]["2"]["value"]
        )
        assert differences["2"]["low"] <= differences["2"]["value"] <= differences["2"]["high"]
    # Only the gold sentence contains the name in the question, and at least one segment is kept.
    assert rows["BM25"]["2"]["value"] > rows["chance"]["2"]["value"] and rows["BM25"]["100"]["value"] > 0
    assert all(recall["100"]["low"] <= recall["100"]["value"] <= recall["100"]["high"] for recall in rows.values())


def test_overrides_may_set_keys_that_only_the_run_has(run, monkeypatch, tmp_path, capsys):
    """compressor.keep is not a key of configs/eval.yaml with its default compressor."""
    overrides = [f"run={run}", "examples=2", "baselines=[]", "compressor.keep=none", "compressor.ratio=2"]
    assert call(monkeypatch, tmp_path, evaluating, *overrides) == 0, capsys.readouterr().err
    [file] = run.glob("eval/*/*/results.json")
    compressor = json.loads(file.read_text())["config"]["compressor"]
    assert (compressor["keep"], compressor["ratio"]) == ("none", 2)
    assert call(monkeypatch, tmp_path, evaluating, f"run={run}", "compressor.kep=none") == 2
    assert "the nearest right one is compressor.keep" in capsys.readouterr().err
    gold_recall.main([str(run), "--examples", "2", "compressor.keep=none", f"paths.cache={tmp_path}/cache"])


def test_gold_recall_rejects_a_run_that_ranks_no_segments(mean_pool_run, capsys):
    assert "ranks no segments" in exit_message(capsys, gold_recall.main, [str(mean_pool_run)])


def test_gold_recall_ranks_by_attention_without_a_run(tmp_path, capsys):
    file = tmp_path / "recall.json"
    words = ["compressor=attention", "backbone=tiny", "dataset=invented_facts", "compressor.segment_size=12"]
    words += ["variants=[{compressor.layer: 1}]", f"paths.cache={tmp_path}/cache", f"paths.outputs={tmp_path}/outputs"]
    gold_recall.main([*words, "--examples", "4", "--ratios", "2", "--output", str(file)])
    rows = json.loads(file.read_text())["rows"]
    names = ["attention (untrained)", "attention, layer=1 (untrained)", "BM25", "chance", "best possible"]
    assert [row["ranker"] for row in rows] == names
    assert [list(row.get("over", {})) for row in rows] == [["BM25"], ["BM25"], [], [], []]
    values = [row["recall"]["2"]["value"] for row in rows]
    assert values[-1] == max(values) and "attention (untrained) minus BM25" in capsys.readouterr().out


def test_the_csv_of_curves_holds_every_logged_number(run, tmp_path, capsys):
    curves.main([str(run), "--output", str(tmp_path / "curves.png"), "--level", "decoder=alone=3.5"])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "curves.csv").open()))
    steps = [row for row in rows if row["loss"]]
    assert [row["examples"] for row in steps] == ["2", "4", "6"]
    for row in steps:
        terms = sum(float(row[term]) for term in ("answer", "copy", "contrastive"))
        assert terms == pytest.approx(float(row["loss"]), rel=1e-3)
    assert any(row["eval_nll"] for row in rows)
    for words in ([str(tmp_path)], [str(run), "--level", "3.5"], [str(run), "--level", "decoder=nan"]):
        with pytest.raises(SystemExit) as ended:
            curves.main(words)
        assert ended.value.code == 2
    assert "--level 'decoder=nan': must be NAME=NATS" in capsys.readouterr().err


def test_levels_are_drawn_at_their_value(monkeypatch, run, tmp_path):
    assert curves.parse_level("decoder=alone=3.5") == ("decoder=alone", 3.5)
    drawn = {}
    monkeypatch.setattr(pyplot.Axes, "axhline", lambda axis, y, **style: drawn.update({style["label"]: y}))
    draw_curves(tmp_path / "curves.png", {"run": read_curve(run)}, {"decoder alone": 3.5})
    assert drawn == {"decoder alone": 3.5}


def test_end_to_end_times_every_reader_against_full_context(tmp_path, capsys):
    """One row per ratio of each reader that has a ratio, with the expected slots and plausible times."""
    file = tmp_path / "end_to_end.json"
    readers = ["comet", "no_context", "mean_pool-depth", "icae"]
    options = ["--backbone", "tiny", "--dtype", "float32", "--lengths", "90", "--runs", "1", "--output", str(file)]
    end_to_end.main([*options, "--readers", *readers, "--keys", "backbone.layers=9"])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["reader"], row["ratio"]) for row in rows] == [
        ("comet", None),
        ("no_context", None),
        ("mean_pool-depth", 4),
        ("mean_pool-depth", 8),
        ("icae", 4),
        ("icae", 8),
    ]
    context = 90 - QUESTION
    slots = [context, 0, -(-context // 4), -(-context // 8)]  # comet: one chunk, all tokens
    assert [row["slots"] for row in rows[:4]] == slots
    assert all(0 < row["ours_1_s"] < row["ours_32_s"] and 0 < row["full_1_s"] < row["full_32_s"] for row in rows)
    assert len({row["full_32_s"] for row in rows}) == 1 and "mean_pool-depth" in capsys.readouterr().out


def test_an_interrupted_end_to_end_resumes(monkeypatch, tmp_path, capsys):
    """Finished answers are not given again, their readers not built; another dtype is refused."""
    file, built, answered = tmp_path / "end_to_end.json", [], []
    real = answers.reader_from_overrides
    monkeypatch.setattr(answers, "reader_from_overrides", lambda *words: built.append(words) or real(*words))

    def seconds(reader, batch):
        answered.append(batch)
        if len(answered) == 9:  # warm-ups, the first turn, then full context and one reader of the second
            raise KeyboardInterrupt
        return float(len(answered)), 100.0

    monkeypatch.setattr(answers, "answer_seconds", seconds)
    words = ["--backbone", "tiny", "--lengths", "40", "--output", str(file), "--readers", "no_context", "truncate"]
    words += ["--keys", "backbone.layers=2", "--ratios", "4"]
    with pytest.raises(KeyboardInterrupt):
        end_to_end.main([*words, "--dtype", "float32", "--runs", "2"])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["reader"], row["runs"]) for row in rows] == [("no_context", 2), ("truncate", 1)]
    assert rows[0]["seconds"] == [[[4, 100], [5, 100]], [[7, 100], [8, 100]]]
    built.clear()
    end_to_end.main([*words, "--dtype", "float32", "--runs", "2"])
    assert [one[0] for one in built] == ["compressor=full_context", "compressor=truncate"]
    rows = json.loads(file.read_text())["rows"]
    assert [(row["reader"], row["runs"]) for row in rows] == [("no_context", 2), ("truncate", 2)]
    # The second pair is of the second call: full context answers again, behind two warm-ups.
    assert rows[1]["seconds"] == [[[4, 100], [6, 100]], [[12, 100], [13, 100]]]
    built.clear()
    end_to_end.main([*words, "--dtype", "float32", "--runs", "2"])
    assert not built and "no_context" in capsys.readouterr().out
    message = exit_message(capsys, end_to_end.main, [*words, "--dtype", "bfloat16"])
    assert "has results with dtype=float32, here bfloat16: set another --output" in message and not built
    file.write_text("{}")
    assert "is no result file of this command" in exit_message(capsys, end_to_end.main, words)


def test_end_to_end_times_selections_of_cache_and_text(tmp_path, capsys):
    readers = ["snapkv", "kvzip", "bm25", "longllmlingua"]
    options = ["--backbone", "tiny", "--dtype", "float32", "--lengths", "90", "--runs", "1", "--ratios", "4"]
    file = tmp_path / "end_to_end.json"
    keys = ["--keys", "backbone.layers=2", "backbone.width=32"]
    end_to_end.main([*options, "--output", str(file), "--readers", *readers, *keys])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["reader"], row["slots"]) for row in rows] == [(name, 17) for name in readers]
    assert "allowed are" in exit_message(capsys, end_to_end.main, ["--readers", "gold"])


def test_scoring_is_measured_against_the_bare_prefill(tmp_path, capsys):
    file = tmp_path / "scoring.json"
    options = ["--backbone", "tiny", "--dtype", "float32", "--lengths", "64", "--runs", "1", "--output", str(file)]
    scoring.main([*options, "--scorers", "snapkv", "kvzip", "--keys", "backbone.layers=2", "backbone.width=32"])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["scorer"], row["question"]) for row in rows] == [
        ("snapkv", "unknown"),
        ("snapkv", "known"),
        ("kvzip", "unknown"),
    ]
    for row in rows:
        assert row["tokens"] == 64 and len({row["floor_s"] for row in rows}) == 1
        assert row["time_ratio"] == pytest.approx(row["ours_s"] / row["floor_s"])
    assert "bare prefill" in capsys.readouterr().out
    # The same command measures what is missing alone: here, one scorer more.
    scoring.main([*options, "--scorers", "snapkv", "knorm", "--keys", "backbone.layers=2", "backbone.width=32"])
    again = json.loads(file.read_text())["rows"]
    assert again[:3] == rows and [row["scorer"] for row in again[3:]] == ["knorm"]
    assert "unknown bm25; allowed are adakv" in exit_message(capsys, scoring.main, ["--scorers", "bm25"])


def test_generation_is_measured_against_transformers(tmp_path, capsys):
    file = tmp_path / "generation.json"
    options = ["--backbone", "tiny", "--dtype", "float32", "--lengths", "24", "--new-tokens", "6", "--runs", "1"]
    generation.main([*options, "--keys", "backbone.layers=2", "backbone.width=32", "--output", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [row["case"] for row in rows] == ["equal", "ragged", "shared", "ending"]
    assert [row["equal_answers"] for row in rows] == [4] * 4
    assert [row["answered"] for row in rows[:3]] == [24] * 3 and rows[3]["answered"] < 24
    for row in rows:
        assert row["cpu_ratio"] == row["ours_cpu_s"][0] / row["transformers_cpu_s"][0]
    assert "below 1x is faster" in capsys.readouterr().out
    assert "multiple of 4" in exit_message(capsys, generation.main, ["--batch", "6"])


def test_compress_measures_both_joins(tmp_path, capsys):
    file = tmp_path / "compress.json"
    options = ["--backbone", "tiny", "--dtype", "float32", "--lengths", "90", "--ratios", "4", "--runs", "1"]
    compress.main([*options, "--output", str(file)])
    content = json.loads(file.read_text())
    for part in ("compression", "training_step"):
        assert [(row["join"], row["tokens"], row["ratio"]) for row in content[part]] == [
            ("input", 90, 4),
            ("depth", 90, 4),
        ]
        assert all(row["floor_s"] > 0 < row["ours_s"] and row["time_ratio"] > 0 for row in content[part])
    assert "Training step" in capsys.readouterr().out
    compress.main([*options, "--output", str(file)])  # nothing is missing
    assert json.loads(file.read_text()) == content
