"""Published tables beside our results: their commands, and the runs that are not a cell's."""

from __future__ import annotations

import json

import pytest
import yaml
from omegaconf import OmegaConf

from breviary.evaluation.facts import CONDITIONS
from breviary.evaluation.table import METRICS
from breviary.report.tables.blocks import paper_blocks
from breviary.report.tables.cells import cell_config, is_script, parse_command
from breviary.report.tables.form import (
    TABLES,
    cannot_be_strict,
    cell_commands,
    cells_of,
    load_published_table,
    scales_of,
)
from breviary.report.tables.measured import is_measured
from breviary.report.tables.run import groups_of
from breviary.runtime.files import write_json
from data.metrics import rouge_1
from scripts import table as script

TRAIN = "torchrun --nproc_per_node 2 train.py experiment=comi_{dataset} backbone=qwen2_7b engine=zero2"
CELL = "comi_16x/nq"
TABLE_NAMES = (
    *("comi_main", "comi_ratios", "comi_ablation", "ram_main", "ram_pressure", "ram_ablation", "gmsa_main"),
    *("comet_scrolls", "comet_passkey", "comet_ablation", "study_entropy", "study_gap", "efficiency"),
)


@pytest.fixture
def spec_file(tmp_path):
    dataset = {"title": "NQ", "n": None, "tokens": [3000, 10, 5]}
    rows = {
        "comi_16x": {
            "title": "COMI",
            "ratio": 16,
            "reader": "comi",
            "train": [TRAIN],
            "published": {"nq": {"em": 56.31}},
        },
        "full": {
            "title": "prompt",
            "ratio": None,
            "reader": "full_context",
            "train": [],
            "published": {"nq": {"em": 1}},
        },
    }
    spec = {
        "title": "T",
        "source": "S",
        "notes": ["a note"],
        "datasets": {"nq": dataset, "hotpotqa": dataset},
        "columns": [{"title": "EM", "published": "em", "ours": ["em_contains", "em"]}],
        "rows": [
            {
                "id": id,
                "backbone": "qwen2_7b",
                "evaluate": "python eval.py outputs/comi_{dataset}"
                if row["train"]
                else "python eval.py experiment=comi_{dataset} backbone=qwen2_7b compressor=full_context",
                "runs": {},
                **row,
            }
            for id, row in rows.items()
        ],
    }
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))  # the blocks keep the order of the datasets
    return path


def results(spec_file, cell=CELL, **changes):
    """Results of a run of the cell's own command, with changes; "a.b" changes a key of the conditions."""
    table = load_published_table(str(spec_file))
    row = next(row for row in table["rows"] if row["id"] == cell.partition("/")[0])
    cfg = OmegaConf.to_container(cell_config(cell_commands(table, row, cell.partition("/")[2])), resolve=True)
    conditions = {key: cfg[key] for key in CONDITIONS if key in cfg} | {"split": "test", "examples": None}
    for key in [key for key in changes if "." in key]:
        section, _, name = key.partition(".")
        conditions[section] = conditions[section] | {name: changes.pop(key)}
    training = {"trained": bool(row["train"]), "steps": 5, "examples": 10, "data": "x", "init_from": None}
    return {
        "schema": 3,
        "reader": row["reader"],
        "n": 200,
        "data_hash": "d" * 64,
        "metrics": {name: {"value": 0.714, "low": 0.644, "high": 0.774} for name in METRICS},
        "requested_ratio": 16.0 if row["train"] else 1.0,
        "effective_ratio": 15.8,
        "memory_slots": 123.4,
        "memory_bytes": 1258291.2,
        "times": {},
        "truncated": 0,
        "peak_memory_bytes": 1,
        "commit": None,
        "dirty": None,
        "hardware": {},
        "config": cfg if row["train"] else None,
        "run": "outputs/a/1",
        "training": training,
        "conditions": conditions,
        **changes,
    }


@pytest.fixture
def refusal(spec_file, tmp_path, capsys):
    """refusal(results, cell) -> the lines of the message that refuses them, after the first; "" where accepted."""

    def called(content, cell=CELL):
        write_json(tmp_path / "one/results.json", content)
        try:
            script.main([str(spec_file), "--run", f"{cell}={tmp_path / 'one'}"])
        except SystemExit as stop:
            assert stop.code == 2
            return capsys.readouterr().err
        return ""

    return called


def test_published_numbers_stand_beside_ours(spec_file, tmp_path, capsys):
    write_json(tmp_path / "run/eval/h/comi/results.json", results(spec_file))
    write_json(tmp_path / "run/eval/h/no_context/results.json", results(spec_file, reader="no_context"))
    script.main([str(spec_file), "--run", f"{CELL}={tmp_path / 'run'}"])
    lines = capsys.readouterr().out.splitlines()
    [ours] = [line.split("  ") for line in lines if line.startswith("COMI")]
    assert [cell.strip() for cell in ours if cell.strip()] == [
        "COMI",
        "qwen2_7b",
        "16x",
        "56.31",
        "71.4 [64.4, 77.4]",
        "71.4 [64.4, 77.4]",
        "15.8x",
        "200",
        "5 steps, 10 examples",
    ]
    [other] = [line.split("  ") for line in lines if line.startswith("prompt")]
    assert [cell.strip() for cell in other if cell.strip()] == ["prompt", "qwen2_7b", "-", "1.00", *["-"] * 5]
    assert "- a note" in lines and f"comi_16x  {TRAIN}" in lines


def test_every_command_is_printed_once_with_its_cells_and_estimate(spec_file, capsys):
    script.main([str(spec_file), "--commands"])
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("# comi_16x/nq")
    estimate, train, evaluate = lines[place + 1 : place + 4]
    assert estimate.startswith("# global batch 2; estimated ") and "GB on each of 2 GPUs" in estimate
    assert (train, evaluate) == (TRAIN.format(dataset="nq"), "python eval.py outputs/comi_nq")
    assert "# comi_16x/hotpotqa" not in lines  # no published number


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requested_ratio": 8.0}, "ratio: 8x, the cell has 16x"),
        ({"backbone.path": "Qwen/Qwen3-4B"}, "backbone: Qwen/Qwen3-4B, the cell has Qwen/Qwen2-7B-Instruct"),
        (
            {"dataset.test": "/data/hotpotqa/test.jsonl.gz"},
            "data: hotpotqa/test.jsonl.gz, the cell has nq/test.jsonl.gz",
        ),
        ({"dataset.max_documents": 5}, "data: dataset.max_documents=5, the cell has None"),
        ({"prompt.chat": True}, "prompt: prompt.chat=True, the cell has False"),
        ({"training": {"trained": False}}, "training: untrained, the cell is trained"),
    ],
)
def test_a_run_that_is_not_the_cell_s_is_refused(spec_file, refusal, changes, message):
    assert refusal(results(spec_file)) == ""
    found = refusal(results(spec_file, **changes))
    assert "is not the cell comi_16x/nq" in found and message in found


def test_all_differences_are_named_at_once(spec_file, refusal):
    content = results(spec_file, requested_ratio=8.0, **{"prompt.bos": True, "backbone.path": "x/y"})
    content["conditions"]["examples"] = 200
    found = refusal(content)
    for part in ("ratio: 8x", "prompt: prompt.bos=True", "backbone: x/y", "n: the first 200 examples (examples=200)"):
        assert part in found


def test_the_number_of_examples_must_be_the_cell_s(spec_file, refusal):
    spec = yaml.safe_load(spec_file.read_text())
    spec["datasets"]["nq"]["n"] = 2655
    spec_file.write_text(yaml.safe_dump(spec))
    assert "n: 200 examples, the cell has 2,655" in refusal(results(spec_file))
    assert refusal(results(spec_file, n=2655)) == ""


def test_a_local_folder_named_as_the_model_is_its_backbone(spec_file, refusal):
    assert refusal(results(spec_file, **{"backbone.path": "/models/Qwen2-7B-Instruct"})) == ""


def test_a_trained_reader_is_not_the_original_prompt(spec_file, refusal):
    cell = "full/nq"
    assert refusal(results(spec_file, cell), cell) == ""
    trained = {"trained": True, "steps": 5, "examples": 10, "data": "x", "init_from": None}
    assert "training: trained, the cell is untrained" in refusal(results(spec_file, cell, training=trained), cell)


def test_results_of_an_earlier_version_are_used_and_what_they_lack_is_named(spec_file, refusal, capsys, tmp_path):
    old = results(spec_file)
    del old["training"], old["conditions"]
    del old["config"]["prompt"]
    assert refusal(old) == ""
    script.main([str(spec_file), "--run", f"{CELL}={tmp_path / 'one'}"])
    assert "comi_16x/nq: not stored in these results, so not compared: training, prompt" in capsys.readouterr().out


def test_a_two_stage_cell_must_begin_from_its_first_stage(tmp_path, refusal, spec_file):
    spec = yaml.safe_load(spec_file.read_text())
    first = "torchrun --nproc_per_node 2 train.py experiment=gmsa_stage1 backbone=qwen2_7b engine=zero2"
    spec["rows"][0]["train"].insert(0, first)
    spec_file.write_text(yaml.safe_dump(spec))
    content = results(spec_file)
    assert "first stage: none, the cell begins from outputs/gmsa_stage1" in refusal(content)
    content["training"]["init_from"] = "gmsa_stage1/20260101T000000_abcdef"
    assert refusal(content) == ""


def test_runs_of_one_data_set_must_answer_the_same_examples(spec_file, tmp_path, capsys):
    for name, cell, digest in (("one", CELL, "a" * 64), ("two", "full/nq", "b" * 64)):
        write_json(tmp_path / name / "results.json", results(spec_file, cell, data_hash=digest))
    with pytest.raises(SystemExit) as stop:
        script.main(
            [str(spec_file), *(f"--run={cell}={tmp_path / name}" for name, cell in (("one", CELL), ("two", "full/nq")))]
        )
    assert stop.value.code == 2 and "answer different examples" in capsys.readouterr().err


def test_rouge_1_is_computed_from_the_predictions(spec_file, tmp_path, capsys):
    spec = yaml.safe_load(spec_file.read_text())
    spec["datasets"]["nq"]["ours"] = ["rouge_1"]
    spec_file.write_text(yaml.safe_dump(spec, sort_keys=False))
    write_json(tmp_path / "one/results.json", results(spec_file, n=2))
    rows = [
        {"id": id, "prediction": text, "references": ["the dogs bark", "a cat"]}
        for id, text in (("a", "a cat"), ("b", "nothing"))
    ]
    (tmp_path / "one/predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script.main([str(spec_file), "--run", f"{CELL}={tmp_path / 'one'}"])
    out = capsys.readouterr().out
    assert "ROUGE-1" in out and "50.0 [" in out


def test_rouge_1_is_scrolls_metric():
    """Unstemmed words, the best reference; "exact match example" is the official check's first answer."""
    assert rouge_1("exact match example", ["[exact match example]", "other"]) == 1
    assert rouge_1("the dogs barked", ["the dog barks"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"notes": None, "extra": 1}, r"unknown \['extra'\]"),
        ({"columns": [{"title": "EM", "published": "em", "ours": ["blue"]}]}, r"ours has \['blue'\]; allowed are em"),
        ({"datasets": {"hp": {"title": "HP", "n": 1, "tokens": [1, 1, 1]}}}, r"row comi_16x names \['nq'\]"),
    ],
)
def test_wrong_keys_of_a_table_raise(spec_file, change, message):
    spec_file.write_text(yaml.safe_dump(yaml.safe_load(spec_file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_published_table(str(spec_file))


def test_wrong_runs_exit_with_code_2_and_a_message(spec_file, tmp_path, capsys):
    for number in (1, 2):
        write_json(tmp_path / f"twice/{number}/comi/results.json", results(spec_file))
    for run, message in (
        ("nonsense", "must be ROW/DATASET=RUN"),
        (f"{CELL}={tmp_path / 'twice'}", "holds 2 results of reader comi"),
        (f"{CELL}={tmp_path / 'absent'}", "no such folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            script.main([str(spec_file), "--run", run])
        printed = capsys.readouterr()
        assert stop.value.code == 2 and message in printed.err and printed.out == ""
    with pytest.raises(SystemExit) as stop:
        script.main(["no_such_table"])
    assert stop.value.code == 2 and "comi_main" in capsys.readouterr().err


# ------------------------------------------------------------------ the tables of the papers


def test_the_comi_table_holds_the_published_headline():
    spec = load_published_table("comi_main")
    published = {entry["id"]: entry["published"] for entry in spec["rows"]}
    gain = published["comi_32x_qwen2_7b"]["nq"]["em"] - published["gmsa_32x_qwen2_7b"]["nq"]["em"]
    assert gain == pytest.approx(49.15 - 24.63)  # the paper's "+25 EM"
    assert len(published) == 32 and len(cells_of(spec)) == 118
    assert {row["id"] for row in spec["rows"] if "icae" in row["id"] and len(row["train"]) == 2}
    assert all(len(row["train"]) == 2 for row in spec["rows"] if row["reader"] in ("icae", "mean_pool"))
    impossible = [row for row in spec["rows"] if cannot_be_strict(row["published"]["nq"])]
    assert "original_qwen2_7b" in [row["id"] for row in impossible] and len(impossible) == 3


def test_ours_is_comparable_within_a_small_table_and_published_numbers_are_marked_there():
    """Published numbers of other data never stand in a column without a mark."""
    for name in TABLE_NAMES:
        for scale in scales_of(name):
            table = load_published_table(name, scale)
            for block in paper_blocks(table, {}):
                columns = [i for i, head in enumerate(block.header) if head.endswith("published")]
                for line in block.lines:
                    shown = [line.cells[i] for i in columns if line.cells[i] != "-"]
                    assert scale == "paper" or all("†" in cell for cell in shown), (name, line)


def test_every_table_of_the_papers_is_valid():
    names = {file.stem for file in TABLES.glob("*.yaml") if not is_measured(file.stem)}
    assert names == {*TABLE_NAMES, "comet_short", "gmsa_autoencoder"}
    for name in names:
        for scale in scales_of(name):
            table = load_published_table(name, scale)
            for row, dataset in cells_of(table):
                commands = cell_commands(table, row, dataset)
                assert all(is_script(command) or parse_command(command) for command in commands)
                assert groups_of(table, [(row, dataset)])


def test_runs_of_a_table_have_names_of_their_own():
    """`eval.py outputs/NAME` takes the newest run: two trainings of a small table must not share a name."""
    for name in TABLE_NAMES:
        table, found = load_published_table(name, "small"), {}
        for row, dataset in cells_of(table):
            *train, last = cell_commands(table, row, dataset)
            for command in train:
                words = dict(word.split("=", 1) for word in parse_command(command)[1])
                found.setdefault(words.get("name", words["experiment"]), set()).add(command)
            if train:
                assert f"outputs/{words.get('name', words['experiment'])}" in last.split(), (last, words)
        assert not {key: commands for key, commands in found.items() if len(commands) > 1}


def test_no_small_form_is_an_error_that_names_the_other_scale(capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["comet_short", "scale=small"])
    assert stop.value.code == 2 and "comet_short has no small form" in capsys.readouterr().err
