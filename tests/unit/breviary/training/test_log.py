"""metrics.jsonl and curves: every number of a row is of one kind, over the steps since the last row of that kind."""

import csv
import json
import shutil

import pytest
from matplotlib import pyplot

import train
from breviary.report.curves import draw_curves, read_curve, write_curves
from breviary.training.trainer import ReaderTrainer
from tests.tiny import compose_tiny

RUN = [
    "reader=comi",
    "objective=answer_and_copy",
    "objective.copy_tokens=4",
    "compressor.join=depth",
    "backbone.layers=3",
    "backbone.width=32",
    "dataset.facts=2",
    "dataset.train_size=12",
    "dataset.validation_size=2",
    "generation.max_new_tokens=2",
    "train.steps=5",
    "train.batch_size=1",
    "train.accumulation=2",
    "train.log_every=2",
    "train.eval_every=2",
    "train.eval_examples=2",
]


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run's folder, and the terms of each of its steps: [{name: value}]."""
    home, terms = tmp_path_factory.mktemp("logged"), []
    with pytest.MonkeyPatch.context() as patch:
        step = ReaderTrainer.training_step

        def recorded(trainer, *args, **kwargs):
            if len(terms) <= trainer.state.global_step:
                terms.append({})
            loss = step(trainer, *args, **kwargs)
            statistics = {k: float(v) for k, v in trainer.step_statistics.items()}
            terms[-1] = {name: statistics[name] for name in ("answer", "copy")}
            return loss

        patch.setattr(ReaderTrainer, "training_step", recorded)
        folder = train.train(compose_tiny([*RUN, f"paths.outputs={home}", f"paths.cache={home}/cache"]))
    return folder, terms


def rows_of(folder, kind):
    return [row for line in (folder / "metrics.jsonl").read_text().splitlines() if kind in (row := json.loads(line))]


def test_parts_are_means_over_the_steps_since_the_last_row(logged):
    folder, terms = logged
    rows = rows_of(folder, "loss")
    assert [row["step"] for row in rows] == [1, 2, 4] and len(terms) == 5
    for row, steps in zip(rows, (terms[0:1], terms[1:2], terms[2:4])):
        for name in ("answer", "copy"):
            assert row[name] == pytest.approx(sum(step[name] for step in steps) / len(steps), rel=1e-6), (name, row)
        assert row["answer"] + row["copy"] == pytest.approx(row["loss"], rel=1e-5)
    assert terms[2]["answer"] != pytest.approx(terms[3]["answer"], rel=1e-3)  # the last step is not the mean


def test_validation_rows_hold_no_training_values(logged):
    rows = rows_of(logged[0], "eval_nll")
    assert [row["step"] for row in rows] == [2, 4, 5]
    for row in rows:
        others = {key for key in row if not key.startswith("eval_")}
        assert others == {"step", "examples", "seconds", "peak_memory_bytes"}


def with_repeated_values(folder, copy):
    """The run as earlier versions logged it: validation rows with the parts of the last step."""
    shutil.copytree(folder, copy)
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    repeated = {"answer": 9.0, "copy": 9.0, "tokens_per_s": 9.0, "effective_ratio": 9.0}
    rows = [row | repeated if "eval_nll" in row else row for row in rows]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copy


def test_curves_draw_training_and_validation_apart(logged, tmp_path, monkeypatch):
    """Also for a run of an earlier version."""
    drawn, plot = [], pyplot.Axes.plot
    monkeypatch.setattr(
        pyplot.Axes, "plot", lambda axis, x, y, **style: (drawn.append((list(x), list(y))), plot(axis, x, y, **style))
    )
    for folder in (logged[0], with_repeated_values(logged[0], tmp_path / "old")):
        drawn.clear()
        curve = read_curve(folder)
        draw_curves(tmp_path / "curves.png", {"run": curve}, {})
        trained, validated = rows_of(folder, "loss"), rows_of(folder, "eval_nll")
        assert [x for x, _ in drawn] == [[row["examples"] for row in rows] for rows in (trained, validated)]
        assert drawn[1][1] == [row["eval_nll"] for row in validated] and max(drawn[0][1]) < 9
        write_curves(tmp_path / "curves.csv", {"run": curve})
        rows = list(csv.DictReader((tmp_path / "curves.csv").open()))
        assert [row["kind"] for row in rows].count("training") == 3 == [row["kind"] for row in rows].count("validation")
        assert all((row["kind"] == "training") == bool(row["answer"]) == bool(row["loss"]) for row in rows)
