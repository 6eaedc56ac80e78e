"""Computing a table: what is trained and evaluated, what is found again, what fails; without a process or a model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from breviary.report.tables.command import read_words, write_outcomes
from breviary.report.tables.form import cells_of, load_published_table
from breviary.report.tables.measurements import find_measurement
from breviary.report.tables.plan import DEVICES, table_plan_lines
from breviary.report.tables.run import TableRun, evaluated_cells, groups_of
from breviary.report.tables.trainings import Tools, last_error, process_words, start_process
from breviary.runtime.checkout import ROOT
from scripts import table as script

SPEC = """
title: Paper
source: somewhere
notes: [a note]
datasets:
  nq: {title: NQ, n: 2655, tokens: [3000, 10, 5]}
columns:
  - {title: EM, published: em, ours: [em]}
  - {title: F1, published: f1, ours: [f1]}
rows:
  - id: comi_16x
    title: COMI
    backbone: qwen2_7b
    ratio: 16
    reader: comi
    train: [python train.py experiment=comi_nq backbone=qwen2_7b]
    evaluate: python eval.py outputs/comi_nq
    published: {nq: {em: 56.31, f1: 55.52}}
  - {id: beacon, title: Beacon, backbone: qwen2_7b, ratio: 16, reader: null, train: [], evaluate: null,
     published: {nq: {em: 11.67, f1: 27.53}}}
small:
  title: Small
  notes: [small note]
  datasets:
    nq_gold4: {title: NQ small, n: 100, tokens: [700, 10, 5]}
  rows:
    - {id: none, title: closed, backbone: smollm2_135m, ratio: null, reader: no_context, train: [],
       evaluate: python eval.py experiment=nq_small compressor=no_context examples=100}
    - {id: full, title: original, backbone: smollm2_135m, ratio: null, reader: full_context, train: [],
       evaluate: python eval.py experiment=nq_small compressor=full_context examples=100}
    - {id: comi_4x, title: COMI, backbone: smollm2_135m, ratio: 4, reader: comi,
       train: [python train.py experiment=comi_nq_small],
       evaluate: python eval.py outputs/comi_nq_small examples=100, beside: {nq_gold4: comi_16x/nq}}
    - {id: comi_8x, title: COMI, backbone: smollm2_135m, ratio: 8, reader: comi,
       train: [python train.py experiment=comi_nq_small],
       evaluate: python eval.py outputs/comi_nq_small compressor.ratio=8 examples=100}
    - {id: icae_4x, title: ICAE, backbone: smollm2_135m, ratio: 4, reader: icae,
       train: [python train.py experiment=icae_pretrain_small,
               python train.py experiment=icae_nq_small init_from=outputs/icae_pretrain_small],
       evaluate: python eval.py outputs/icae_nq_small examples=100}
"""


def results(value=0.5, **changes):
    return {
        "metrics": {name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name in ("em", "f1")},
        "n": 100,
        "data_hash": "d" * 64,
        "effective_ratio": 3.9,
        "training": {"trained": True, "steps": 200, "examples": 400, "data": "x", "init_from": None},
        "conditions": {},
        "config": None,
        "commit": "c" * 40,
        "run": "outputs/x",
        **changes,
    }


class World:
    """Runs and evaluations in place of processes and models; what was started is kept in order."""

    def __init__(self, folder):
        self.folder, self.started, self.evaluated, self.printed = folder, [], [], []
        self.runs, self.broken, self.killed_at = {}, set(), None

    def tools(self):
        return Tools(self.launch, self.finished, self.evaluate, lambda results, name: {}, self.printed.append)

    @staticmethod
    def key(words):
        return tuple(word for word in words if not word.startswith(("paths.", "resume=")))

    def launch(self, command, words, log):
        self.started.append(command)
        log.write_text(f"training\nerror: {command} has no data\nbye\n" if command in self.broken else "fine\n")
        if command in self.broken:
            return 2
        assert "resume=auto" in words
        self.runs[self.key(words)] = Path(f"outputs/run{len(self.runs)}")
        return 0

    def finished(self, words):
        return self.runs.get(self.key(words))

    def evaluate(self, words, variants):
        if len(self.evaluated) == self.killed_at:
            raise KeyboardInterrupt
        rows = [[word for word in words if not word.startswith(("paths.", "baselines"))], *variants]
        self.evaluated.append(rows)
        print("evaluating")
        for row in rows:
            if any(str(row) == str(one) or one in row for one in self.broken):
                raise RuntimeError(f"{row} does not work\nsecond line")
        for i in range(len(rows)):
            (self.folder / f"results{i}").mkdir(exist_ok=True)
        return [results(folder=str(self.folder / f"results{i}")) for i in range(len(rows))]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper.yaml").write_text(SPEC)
    return World(tmp_path)


def small():
    return load_published_table("paper.yaml", "small")


def compute(world, only=(), written=lambda: None):
    run = TableRun(small(), "outputs", world.tools())
    run.run(only, {}, written)
    return run.outcomes


def test_what_is_missing_is_trained_once_and_evaluated_together(world):
    outcomes = compute(world)
    assert list(outcomes) == [f"{row}/nq_gold4" for row in ("none", "full", "comi_4x", "comi_8x", "icae_4x")]
    assert all(outcome.results for outcome in outcomes.values())
    assert world.started == [
        "python train.py experiment=comi_nq_small",
        "python train.py experiment=icae_pretrain_small",
        "python train.py experiment=icae_nq_small init_from=outputs/icae_pretrain_small",
    ]
    assert world.evaluated == [
        [["experiment=nq_small", "compressor=no_context", "examples=100"], {"compressor": "full_context"}],
        [["run=outputs/run0", "examples=100"], {"compressor.ratio": 8}],
        [["run=outputs/run2", "examples=100"]],
    ]


def test_a_second_stage_begins_from_the_run_of_the_first(world):
    compute(world, ["icae_4x"])
    assert list(world.runs) == [
        ("experiment=icae_pretrain_small",),
        ("experiment=icae_nq_small", "init_from=outputs/run0"),
    ]


def test_finished_trainings_are_not_started_again(world):
    compute(world)
    started = list(world.started)
    compute(world)
    assert world.started == started


def test_a_table_killed_in_the_middle_goes_on(world):
    world.killed_at = 1
    with pytest.raises(KeyboardInterrupt):
        compute(world)
    finished, failed = evaluated_cells(small())
    assert set(finished) == {"none/nq_gold4", "full/nq_gold4"} and failed == {}
    world.killed_at = None
    assert all(outcome.results for outcome in compute(world).values())
    assert world.started.count("python train.py experiment=comi_nq_small") == 1


def test_a_failed_training_costs_its_cells_and_says_why(world):
    world.broken.add("python train.py experiment=comi_nq_small")
    outcomes = compute(world)
    failed = {name: outcome for name, outcome in outcomes.items() if outcome.reason}
    assert set(failed) == {"comi_4x/nq_gold4", "comi_8x/nq_gold4"} and outcomes["icae_4x/nq_gold4"].results
    assert world.started.count("python train.py experiment=comi_nq_small") == 1
    outcome = failed["comi_4x/nq_gold4"]
    assert outcome.reason == "python train.py experiment=comi_nq_small has no data (exit code 2)"
    assert "bye" in Path(outcome.log).read_text()
    assert any(f"log: {outcome.log}" in line for line in world.printed)
    world.broken.clear()
    assert compute(world)["comi_4x/nq_gold4"].results  # it is tried again
    assert evaluated_cells(small())[1] == {}


def test_one_failed_row_of_an_evaluation_does_not_cost_the_others(world):
    world.broken.add("{'compressor.ratio': 8}")
    outcomes = compute(world)
    assert outcomes["comi_4x/nq_gold4"].results and outcomes["comi_8x/nq_gold4"].results is None
    assert outcomes["comi_8x/nq_gold4"].reason == "{'compressor.ratio': 8} does not work"
    log = Path(outcomes["comi_8x/nq_gold4"].log).read_text()
    assert "Traceback" in log and "second line" in log and "evaluating" in log


def test_where_the_first_row_fails_the_others_are_evaluated_by_themselves(world):
    world.broken.add("compressor=no_context")
    outcomes = compute(world, ["none", "full"])
    assert outcomes["none/nq_gold4"].reason and outcomes["full/nq_gold4"].results
    assert world.evaluated[-1] == [["examples=100", "experiment=nq_small", "compressor=full_context"]]


def test_rows_that_do_not_reset_each_other_are_no_variants(world):
    def changes(*rows):
        row = {"train": ["python train.py experiment=comi_nq_small"], "measure": None}
        cells = [
            (row | {"id": str(i), "evaluate": f"python eval.py outputs/x {words}"}, "nq_gold4") for i, words in rows
        ]
        return [[name for name, _ in group.cells] for group in groups_of(small(), cells)]

    def count(*words):
        return len(changes(*enumerate(words)))

    assert count("", "compressor.ratio=8") == 1
    assert count("compressor.keep=random", "compressor.ratio=8") == 2  # the second would keep at random, too
    assert count("compressor.keep=random", "compressor=snapkv") == 1
    assert count("generation.temperature=1", "compressor=snapkv") == 2
    assert count("", "") == 2 and count("", "dataset=hotpotqa") == 2


def test_files_show_published_beside_ours_with_marks_and_failures(world):
    world.broken.add("{'compressor.ratio': 8}")
    table, outcomes = small(), compute(world)
    files = write_outcomes(table, outcomes)
    assert [file.name for file in files] == [f"paper.{end}" for end in ("md", "csv", "tex", "html")]
    markdown, csv, latex, html = (file.read_text() for file in files)
    assert "| COMI | smollm2\\_135m | 4x | 56.31†‡ | 50.0 [40.0, 60.0] | 55.52† |" in markdown
    assert "| COMI | smollm2\\_135m | 8x | - | failed | - | failed |" in markdown
    assert "3.9x | 100 | 200 steps, 400 examples |" in markdown and "cannot exceed F1" in markdown
    assert f"log: {outcomes['comi_8x/nq_gold4'].log}".replace("_", "\\_") in markdown
    assert "scripts/table.py paper.yaml scale=small`" in markdown
    row = next(line for line in csv.splitlines() if ",comi_4x,COMI," in line)
    assert '56.31,"COMI, qwen2_7b, 16x, NQ",True,em,50.0,40.0,60.0,3.9,100' in row
    assert r"56.31\textdagger{}\textdaggerdbl{}" in latex and r"smollm2\_135m" in latex and r"\toprule" in latex
    assert "COMI, qwen2_7b, 16x, NQ" in html and "python train.py experiment=comi_nq_small" in html


def test_rows_that_are_not_measured_yet_are_counted(world):
    outcomes = compute(world, ["comi_4x", "comi_8x"])
    assert "- 3 of 5 rows are not measured yet (-)" in write_outcomes(small(), outcomes)[0].read_text()


def test_a_plan_counts_a_script_as_finished_only_where_all_of_its_cells_are(world, monkeypatch):
    spec = yaml.safe_load(SPEC)
    row = {**MEASURED, "title": "t", "backbone": None, "ratio": None, "reader": None, "train": [], "evaluate": None}
    second = row | {"id": "d2", "read": row["read"] | {"where": {"part": "{dataset}", "decoder": "D2"}}}
    columns = [{"title": "rho", "published": "rho", "ours": ["rho"], "unit": "raw"}]
    datasets = {"all": {"title": "All", "n": None, "tokens": [1, 1, 1]}}
    spec["small"] = {"title": "S", "notes": [], "datasets": datasets, "rows": [row, second], "columns": columns}
    (world.folder / "paper.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    for rows, count in (("all,D1,9,0,0,1\n", 0), ("all,D2,9,0,0,1\n", 0), ("all,D1,9,0,0,1\nall,D2,9,0,0,1\n", 1)):
        Path("committed.csv").write_text("part,decoder,n,rho,low,high\n" + rows)
        assert f"1 script ({count} finished)" in table_plan_lines(small(), [], DEVICES["cpu"])[1]


def test_a_row_without_commands_has_its_published_number_alone(world):
    table = load_published_table("paper.yaml", "paper")
    assert [row["id"] for row, _ in cells_of(table)] == ["comi_16x"]
    text = write_outcomes(table, {})[0].read_text()
    assert "| Beacon | qwen2\\_7b | 16x | 11.67 | - | 27.53 | - |" in text and "56.31‡" in text and "†" not in text


def test_hostile_text_stays_text(world):
    (world.folder / "paper.yaml").write_text(
        SPEC.replace("title: closed", "title: '<script>alert(1)</script> a|b_c & 5%'")
    )
    markdown, _, latex, html = (file.read_text() for file in write_outcomes(small(), {}))
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "\\<script>alert(1)\\</script> a\\|b\\_c" in markdown
    assert r"\textless{}script\textgreater{}" in latex and r"b\_c \& 5\%" in latex


# ------------------------------------------------------------------ scripts that measure

MEASURED = {
    "id": "d1",
    "measure": "python scripts/studies/data_gap.py output={folder}",
    "read": {
        "file": ["{folder}/gap.csv", "committed.csv"],
        "where": {"part": "{dataset}", "decoder": "D1"},
        "low": "low",
        "high": "high",
        "n": "n",
    },
}


def test_a_measurement_is_one_row_with_its_interval_or_the_mean_of_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("committed.csv").write_text("part,decoder,n,rho,low,high\nall,D1,9,0.5,0.4,0.6\nall,D2,9,1,1,1\n")
    found = find_measurement(MEASURED, "all", "x", ["rho"])
    assert found["metrics"] == {"rho": {"value": 0.5, "low": 0.4, "high": 0.6}} and found["n"] == 9
    Path("x").mkdir()
    Path("x/gap.csv").write_text("part,decoder,n,rho,low,high\nall,D1,9,0.25,0,1\nall,D1,9,0.75,0,1\n")
    found = find_measurement(MEASURED, "all", "x", ["rho"])  # its own file before the committed one
    assert found["metrics"]["rho"] == {"value": 0.5, "low": 0.25, "high": 0.75} and found["run"] == "x/gap.csv"
    for names, dataset, message in ((["tau"], "all", "has no tau"), (["rho"], "prose", "no row with part=prose")):
        with pytest.raises(ValueError, match=message):
            find_measurement(MEASURED, dataset, "x", names)


def test_a_script_is_started_once_where_no_file_has_its_cells(world):
    spec = yaml.safe_load(SPEC)
    rows = [{**MEASURED, "title": "t", "backbone": None, "ratio": None, "reader": None, "train": [], "evaluate": None}]
    rows.append(rows[0] | {"id": "d2", "read": rows[0]["read"] | {"where": {"part": "{dataset}", "decoder": "D2"}}})
    columns = [{"title": "rho", "published": "rho", "ours": ["rho"], "unit": "raw"}]
    datasets = {"all": {"title": "All", "n": None, "tokens": [1, 1, 1]}}
    spec["small"] = {"title": "S", "notes": [], "datasets": datasets, "rows": rows, "columns": columns}
    (world.folder / "paper.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))

    def measure(command, words, log):
        world.started.append(command)
        Path("outputs/tables/paper/small/gap.csv").write_text("part,decoder,n,rho,low,high\nall,D1,9,0.5,0.4,0.6\n")
        return 0

    world.launch = measure
    outcomes = compute(world)
    assert world.started == ["python scripts/studies/data_gap.py output=outputs/tables/paper/small"]
    assert outcomes["d1/all"].results["metrics"]["rho"]["value"] == 0.5
    assert "no row with part=all, decoder=D2" in outcomes["d2/all"].reason
    assert set(evaluated_cells(small())[0]) == {"d1/all"}


# ------------------------------------------------------------------ processes and words


def test_a_process_is_this_python_on_this_checkout():
    words = process_words("torchrun --nproc_per_node 2 train.py experiment=a", ["experiment=a", "resume=auto"])
    assert words[1:] == [
        *("-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *(str(ROOT / "train.py"), "experiment=a", "resume=auto"),
    ]
    assert process_words("python scripts/studies/sizes.py output=x", [])[1:] == [
        str(ROOT / "scripts/studies/sizes.py"),
        "output=x",
    ]
    with pytest.raises(ValueError, match="must begin with python or torchrun"):
        process_words("rm -r x", [])


def test_a_process_writes_its_log_and_returns_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr("breviary.report.tables.trainings.process_words", lambda *_: ["sh", "-c", "echo hello; exit 3"])
    log = tmp_path / "log"
    assert start_process("python train.py", [], log) == 3
    assert log.read_text() == "$ python train.py\nhello\n" and last_error(log) == "hello"


def test_the_reason_of_a_failure_is_the_last_error_of_its_log(tmp_path):
    log = tmp_path / "log"
    assert last_error(log) == "ended without output"
    log.write_text("Traceback\nValueError: a\nerror: key=1: must be 2\nrun outputs/x\n")
    assert last_error(log) == "key=1: must be 2"


def test_the_words_of_the_command():
    assert read_words(["comi_main"]) == ("comi_main", None, None, [])
    assert read_words(["scale=small", "table=comi_main", "device=h100"]) == ("comi_main", "small", "h100", [])
    for words, message in (
        (["comi_main", "scale=big"], "scale=big: allowed are small, paper"),
        (["comi_main", "scal=small"], "the nearest right one is scale"),
        (["scale=small"], "no table"),
        (["comi_main", "ram_main"], "table is given twice, comi_main and ram_main"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read_words(words)
        assert "python scripts/table.py comi_main scale=small --plan" in str(error.value)


def test_the_command_computes_a_table_and_writes_its_files(world, monkeypatch, capsys):
    tools = world.tools()
    for name in ("launch", "finished", "evaluate"):
        own = {"launch": "start_process", "finished": "finished_training", "evaluate": "evaluate"}[name]
        monkeypatch.setattr(script, own, getattr(tools, name))
    monkeypatch.setattr(script.signal, "signal", lambda *_: None)
    script.main(["paper.yaml", "scale=small", "--only", "comi_4x", "--output", "written"])
    out = capsys.readouterr().out
    assert "[1/1] comi_4x/nq_gold4" in out and "written/paper.html" in out
    next_words = shlex.split(out[out.rindex("next: ") :])[3:]
    assert read_words([word for word in next_words if word != "--plan"]) == ("paper.yaml", "small", None, [])
    assert json.loads(Path("written/cells.json").read_text())["comi_4x/nq_gold4"]["results"]
    with pytest.raises(SystemExit) as stop:
        script.main(["paper.yaml", "scale=small", "--only", "comi_5x"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--only comi_5x: must be ROW or ROW/DATASET with ROW one of none, full" in error
