"""Plans of tables: commands once, hours and memory on a named device, and what is finished already."""

from __future__ import annotations

import json

import pytest
import yaml
from omegaconf import OmegaConf
from test_run import SPEC

from breviary.config.cli.run_names import FINISHED
from breviary.report.tables import cells, plan
from breviary.report.tables.cells import command_estimate, evaluation_estimate, finished_training, training_config
from breviary.report.tables.form import load_published_table
from breviary.report.tables.plan import DEVICES, find_device, format_hours, hours_on, table_plan_lines
from breviary.runs.folders import write_config
from breviary.training.cost.estimate import Estimate
from breviary.training.cost.memory import Memory, Moment
from scripts import table as script

SMALL = "python train.py experiment=comi_nq_small"


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """Tables of SPEC; nothing is composed: every command takes an hour of two A100 and 100 GB on each.

    paper(scale, runs): finished trainings by their words
    """
    runs = {}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper.yaml").write_text(SPEC)
    estimate = Estimate(2, 8, Memory((Moment("loss", activations=100e9),)), 2 * 120e12 * 3600)
    for name in ("command_estimate", "evaluation_estimate"):
        monkeypatch.setattr(plan, name, lambda *_: estimate)
    monkeypatch.setattr(plan, "has_shape", lambda commands: "icae" not in commands[-1])
    monkeypatch.setattr(plan, "finished_training", lambda words: runs.get(tuple(words[:-1])))
    return lambda scale, found=(): runs.update(found) or load_published_table("paper.yaml", scale)


def test_a_plan_has_every_command_once_with_hours_and_memory(paper):
    lines = table_plan_lines(paper("small"), [], DEVICES["cpu"])
    assert lines[1] == "# scale=small: 3 trainings (0 finished), 5 evaluations (0 finished)"
    at = lines.index(SMALL)
    assert lines[at - 2] == "# train: comi_4x/nq_gold4, comi_8x/nq_gold4"
    assert (
        lines[at - 1].startswith("# to do; about ")
        and "100.0 GB on each of 2 machines, MORE than its 16 GB; global batch 8" in lines[at - 1]
    )
    assert lines.count(SMALL) == 1 and "# to do: 8 of 8 commands, about 6000 hours one after another" in lines
    at = lines.index("python eval.py outputs/icae_nq_small examples=100")
    assert lines[at - 1] == "# to do; not estimated: the sizes of the backbone are not known"
    only = table_plan_lines(paper("small"), ["comi_8x"], DEVICES["cpu"])
    assert only[1] == "# scale=small: 1 training (0 finished), 1 evaluation (0 finished)"


def test_a_plan_says_what_is_finished_and_what_failed(paper, tmp_path):
    state = {
        "comi_4x/nq_gold4": {"commands": [SMALL, "python eval.py outputs/comi_nq_small examples=100"], "results": "r"},
        "comi_8x/nq_gold4": {"commands": [], "reason": "x", "log": "y"},
        "none/nq_gold4": {"commands": ["an earlier command"], "results": "r"},
    }
    folder = tmp_path / "outputs/tables/paper/small"
    folder.mkdir(parents=True)
    (tmp_path / "r").mkdir()
    (folder / "cells.json").write_text(json.dumps(state))
    first, second = "experiment=icae_pretrain_small", "experiment=icae_nq_small"
    runs = {(first,): "outputs/a/1", (second, "init_from=outputs/a/1"): "outputs/b/1", (second,): "wrong"}
    lines = table_plan_lines(paper("small", runs), [], DEVICES["cpu"])
    assert lines[1] == "# scale=small: 3 trainings (2 finished), 5 evaluations (1 finished)"
    before = {line: lines[i - 1] for i, line in enumerate(lines)}
    assert before["python eval.py outputs/comi_nq_small examples=100"].startswith("# finished: r; ")
    assert before["python train.py experiment=icae_nq_small init_from=outputs/icae_pretrain_small"].startswith(
        "# finished: outputs/b/1; "
    )
    other = "python eval.py outputs/comi_nq_small compressor.ratio=8 examples=100"
    assert before[other].startswith("# failed before, will be tried again; ")
    assert before["python eval.py experiment=nq_small compressor=no_context examples=100"].startswith("# to do; ")


def test_a_device_decides_hours_and_whether_it_fits(paper):
    estimate = Estimate(2, 8, Memory((Moment("loss", activations=100e9),)), 2 * 120e12 * 3600, 2.0e12 * 3600)
    assert hours_on(DEVICES["a100"], estimate) == pytest.approx(2)  # one of arithmetic, one of memory
    text = "\n".join(table_plan_lines(paper("paper"), [], DEVICES["rtx4090"]))
    assert "MORE than its 24 GB" in text and "RTX 4090" in text and "device= (l40s, a100, h100, h200)" in text
    assert find_device(None, "small") is DEVICES["cpu"] and find_device(None, "paper") is DEVICES["a100"]
    with pytest.raises(ValueError, match="device=h900: allowed are cpu, .*, for example device=h100"):
        find_device("h900", "small")


def test_an_evaluation_is_estimated_by_what_it_reads():
    def evaluation(*commands, examples=100):
        return evaluation_estimate(commands, [690, 12, 6], examples)

    full = evaluation("python eval.py experiment=nq_small compressor=full_context")
    none = evaluation("python eval.py experiment=nq_small compressor=no_context")
    depth = evaluation(SMALL, "python eval.py outputs/comi_nq_small examples=100")
    assert none.flops < depth.flops < full.flops < command_estimate(SMALL, [690, 12, 6]).flops
    forward = 2 * 135e6 * (690 + 12 + 6) * 100
    assert full.flops == pytest.approx(forward, rel=0.3)
    twice = evaluation("python eval.py experiment=nq_small compressor=full_context", examples=200)
    assert twice.flops == 2 * full.flops and twice.bytes == full.bytes


def test_a_finished_training_is_found_by_its_configuration(tmp_path, monkeypatch):
    composed = training_config(["experiment=comi_nq_small", f"paths.outputs={tmp_path}"])
    # Composing takes a second: settings are merged instead.
    monkeypatch.setattr(
        cells, "training_config", lambda words: OmegaConf.merge(composed, OmegaConf.from_dotlist(words))
    )
    run = tmp_path / "comi_nq_small" / "20260101T000000_abcdef"
    run.mkdir(parents=True)
    write_config(run, composed)
    assert finished_training([]) is None  # not finished
    (run / FINISHED).touch()
    assert finished_training([]) == run
    assert finished_training(["compressor.ratio=8"]) is None
    assert finished_training(["dataset.train=elsewhere"]) is None
    assert finished_training(["init_from=outputs/other"]) is None


def test_without_a_scale_the_plan_is_of_every_scale(paper, capsys):
    script.main(["paper.yaml", "--plan"])
    out = capsys.readouterr().out
    assert "# scale=small: " in out and "# scale=paper: " in out
    assert out.index("two CPU cores") < out.index("A100, 80 GB")


def test_a_script_s_time_is_what_the_table_states(paper, tmp_path, capsys):
    spec = yaml.safe_load(SPEC)
    read = {"file": "x.csv", "where": {}}
    row = {"id": "s", "title": "t", "backbone": None, "ratio": None, "reader": None, "train": [], "evaluate": None}
    row |= {"measure": "python scripts/studies/sizes.py", "read": read, "time": "half an hour"}
    spec["small"] |= {"rows": [row]}
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    script.main(["paper.yaml", "scale=small", "--plan"])
    out = capsys.readouterr().out
    assert "# to do; half an hour\npython scripts/studies/sizes.py" in out
    assert "time of scripts, as the table states it: half an hour" in out


def test_hours_are_written_as_people_say_them():
    assert [format_hours(hours) for hours in (0.001, 0.5, 2.34, 40.2)] == [
        *("1 minute", "30 minutes", "2.3 hours", "40 hours")
    ]
