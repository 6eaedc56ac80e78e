"""scripts/readme_figure.py draws the numbers of the committed results, and refuses results that differ in setting."""

import csv
import json
import re
import shutil
from xml.etree import ElementTree

import pytest

from breviary.report import readme_figure
from breviary.report.join_figure import DARK, LIGHT
from breviary.runtime.checkout import ROOT
from scripts.readme_figure import BACKBONE, CURVES, MARKS, main

RESULTS = ROOT / "results"


def rows_of(file, panel):
    with open(file, newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["panel"] == panel]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The figures, drawn into an empty folder."""
    folder = tmp_path_factory.mktemp("figure") / "images"
    main(["--output", str(folder)])
    return folder / "overview.png"


def test_the_committed_figures_are_up_to_date(drawn):
    committed = ROOT / "docs" / "images" / "overview.csv"
    assert drawn.with_suffix(".csv").read_text() == committed.read_text()
    assert drawn.stat().st_size > 10_000 and committed.with_suffix(".png").is_file()
    assert (drawn.parent / "join.svg").read_text() == committed.with_name("join.svg").read_text()


def test_quality_is_that_of_the_result_files(drawn):
    rows = rows_of(drawn.with_suffix(".csv"), "quality")
    assert [row["reader"] for row in rows] == list(MARKS)
    for row in rows:
        results = json.loads((RESULTS / "ram_small" / row["source"]).read_text())
        f1 = results["metrics"]["f1"]
        assert [float(row[key]) for key in ("f1", "f1_low", "f1_high")] == [f1["value"], f1["low"], f1["high"]]
        assert float(row["memory_bytes"]) == results["memory_bytes"] and int(row["n"]) == results["n"] == 100


def test_speed_is_that_of_the_benchmark(drawn):
    rows = rows_of(drawn.with_suffix(".csv"), "speed")
    assert {row["reader"] for row in rows} == set(CURVES)
    assert len({(row["dtype"], row["machine"]) for row in rows}) == 1  # times of two machines are no curve
    for row in rows:
        measured = json.loads((RESULTS / "bench" / row["source"]).read_text())
        curve = CURVES[row["reader"]]
        [one] = [
            one
            for one in measured["rows"]
            if (one["reader"], one["ratio"], one["tokens"]) == (curve.reader, curve.ratio, int(row["context_tokens"]))
        ]
        assert float(row["speedup"]) == one["speedup_1"] and float(row["first_token_s"]) == one["ours_1_s"]
        assert int(row["runs"]) == one.get("runs", measured.get("runs"))
        assert row["dtype"] == measured["dtype"]


def test_the_speedups_of_readme_are_those_of_the_figure():
    rows = rows_of(ROOT / "docs" / "images" / "overview.csv", "speed")
    drawn = {(row["reader"], row["context_tokens"]): f"{float(row['speedup']):.1f}" for row in rows}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    stated = {
        (label, tokens.replace(",", "")): speedup
        for line in text.splitlines()
        for start, label in (("| [RAM]", "RAM 8x"), ("| [COMI]", "COMI 8x"), ("| mean pooling", "mean pooling 8x"))
        if line.startswith(start)
        for speedup, tokens in re.findall(r"([\d.]+)x(?: as fast)? at ([\d,]+\d)", line)
    }
    assert len(stated) == 6 and stated == {key: drawn[key] for key in stated}
    first, last = re.search(
        r"comes ([\d.]+) times as fast .*? at 2,048 tokens and\s+([\d.]+) times at 16,384", text, re.S
    ).groups()
    assert (first, last) == (drawn["RAM 8x", "2048"], drawn["RAM 8x", "16384"])


def measurement(seconds, tokens=(2048,), dtype="float32", cpu="A(R) CPU @ 2GHz", commit="old", backbone=BACKBONE):
    """The content of an end_to_end*.json: every curve at every length."""
    rows = [
        {
            "reader": c.reader,
            "ratio": c.ratio,
            "tokens": n,
            "ours_1_s": seconds,
            "full_1_s": 9.0,
            "speedup_1": 9 / seconds,
        }
        for c in CURVES.values()
        for n in tokens
    ]
    hardware = {"cpu": cpu, "threads": 2, "gpus": []}
    environment = {"commit": commit, "hardware": hardware}
    return {"runs": 1, "backbone": backbone, "keys": [], "dtype": dtype, "rows": rows, "environment": environment}


@pytest.fixture
def speed(tmp_path, monkeypatch):
    """speed(content, ...) -> {(machine, dtype, tokens): seconds} of RAM, of files end_to_end_0.json and so on."""
    monkeypatch.setattr(readme_figure, "commit_time", lambda root, commit: {"old": 1, "mid": 2, "new": 3}.get(commit))

    def of(*contents):
        for i, content in enumerate(contents):
            (tmp_path / f"end_to_end_{i}.json").write_text(json.dumps(content))
        rows = readme_figure.speed_rows(tmp_path, CURVES, BACKBONE)
        return {
            (row["machine"], row["dtype"], row["context_tokens"]): row["first_token_s"]
            for row in rows
            if row["reader"] == "RAM 8x"
        }

    return of


def test_the_newest_commit_wins_within_a_setting(speed):
    machine = "2 threads, A @ 2GHz"
    assert speed(
        measurement(3.0, tokens=(2048, 4096), commit="mid"),
        measurement(2.0, tokens=(4096, 8192), commit="new"),
        measurement(1.0, tokens=(2048, 16384), commit="old"),
    ) == {
        (machine, "float32", 2048): 3.0,
        (machine, "float32", 4096): 2.0,
        (machine, "float32", 8192): 2.0,
        (machine, "float32", 16384): 1.0,
    }


def test_settings_are_not_mixed_and_incomplete_ones_are_passed_over(speed):
    newest = measurement(1.0, commit="new", cpu="AMD EPYC", dtype="bfloat16")
    assert speed(measurement(3.0), newest) == {("2 threads, AMD EPYC", "bfloat16", 2048): 1.0}
    newest["rows"].pop()  # without ICAE
    assert speed(measurement(3.0), newest) == {("2 threads, A @ 2GHz", "float32", 2048): 3.0}
    other = measurement(1.0, commit="new", backbone="tiny")
    assert speed(measurement(3.0), other) == {("2 threads, A @ 2GHz", "float32", 2048): 3.0}


def test_a_commit_without_history_is_reported(speed):
    with pytest.raises(ValueError, match=r"end_to_end_0\.json: its commit is not in the history"):
        speed(measurement(1.0, commit="unknown"))


def test_a_gpu_is_named_instead_of_the_processor():
    hardware = {"cpu": "AMD EPYC", "threads": 16, "gpus": ["NVIDIA X"]}
    assert readme_figure.machine_name(hardware) == "NVIDIA X"
    intel = {"cpu": "Intel(R) Xeon(R) Processor @ 2.50GHz", "threads": 2, "gpus": []}
    assert readme_figure.machine_name(intel) == "2 threads, Intel Xeon @ 2.50GHz"


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("ram_small/full_context.json", {"n": 99}, "evaluated on different questions"),
        ("bench/*", {"rows": []}, "no dtype and machine with measurements of smollm2_135m for all of RAM 8x"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(tmp_path, capsys, file, change, message):
    for folder in ("ram_small", "bench"):
        (tmp_path / folder).mkdir()
        for source in (RESULTS / folder).glob("*.json"):
            shutil.copy(source, tmp_path / folder)
    for changed in tmp_path.glob(file):
        changed.write_text(json.dumps(json.loads(changed.read_text()) | change))
    with pytest.raises(SystemExit) as left:
        main(["--results", str(tmp_path), "--output", str(tmp_path / "images")])
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_the_drawing_of_joins_is_readable_on_light_and_dark_pages(drawn):
    text = (drawn.parent / "join.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and root.get("aria-labelledby") == "title description"
    assert LIGHT.keys() == DARK.keys() and "@media (prefers-color-scheme: dark)" in text
    assert 'class="ground"' in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    for colours in (LIGHT, DARK):
        light = {name: [int(value[i : i + 2], 16) for i in (1, 3, 5)] for name, value in colours.items()}
        for ground in ("ground", "card", "extra"):
            for ink in ("ink", "dim"):
                assert abs(sum(light[ink]) - sum(light[ground])) > 270, (ink, ground)
    width, height = (float(root.get(side)) for side in ("width", "height"))
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 < float(text.get("x")) < width and 0 < float(text.get("y")) < height and text.text
