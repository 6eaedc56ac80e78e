"""scripts/plan_pipeline.py: tables, files and error messages."""

import json
from pathlib import Path

import pytest

from scripts import plan_pipeline

MODEL = str(Path(__file__).resolve().parents[3] / "results" / "comet" / "qwen3_4b.json")


def test_a_table_for_each_case(tmp_path, capsys):
    plan_pipeline.main(["--model", MODEL, "--cases", "131072:16", "8192:2", "--output", f"{tmp_path}/plan"])
    rows = json.loads((tmp_path / "plan.json").read_text())
    assert [(row["ranks"], row["dp"], row["schedule"]) for row in rows[:5]] == [
        (1, 16, "-"),
        (2, 8, "contiguous"),
        (2, 8, "cyclic"),
        (4, 4, "contiguous"),
        (4, 4, "cyclic"),
    ]
    assert rows[-1]["tokens"] == 8192 and rows[-1]["ranks"] == 2
    [paper] = [row for row in rows if row["ranks"] == 16 and row["schedule"] == "cyclic"]
    assert paper["fits"] and not rows[0]["fits"]
    out, text = capsys.readouterr().out, (tmp_path / "plan.md").read_text()
    for shown in (out, text):
        assert "131,072 tokens on 16 x 80 GB" in shown and "29.4%" in shown and "9.4%" in shown
    assert f"python scripts/plan_pipeline.py --model {MODEL} --cases 131072:16 8192:2" in text


def test_the_committed_table_is_up_to_date(tmp_path):
    """The first case of results/comet/plan.md."""
    plan_pipeline.main(
        ["--model", "results/comet/qwen3_4b.json", "--cases", "131072:16", "--output", f"{tmp_path}/plan"]
    )
    created, committed = ((folder / "plan.md").read_text() for folder in (tmp_path, Path(MODEL).parent))
    assert created[created.index("A task is") :].strip() in committed


@pytest.mark.parametrize(
    "words, messages",
    [
        (["--cases", "12k:2"], ["--cases 12k:2: expected TOKENS:PROCESSES, e.g. 131072:16"]),
        (
            ["--ranks", "3", "--chunk", "0", "--gb", "0"],
            [
                "--ranks 3: must divide the 16 processes of --cases 131072:16",
                "--chunk 0: must be at least 1",
                "--gb 0.0: must be above 0, e.g. 80",
            ],
        ),
        (["--model", "none/such.json"], ["--model none/such.json: the configuration cannot be loaded"]),
        (["--supervised", "-1"], ["--supervised -1: must be at least 0"]),
        (["--model", "tiny"], ["--model tiny: this YAML has no path; expected a folder, a hub name or a config.json"]),
    ],
)
def test_all_errors_are_reported_at_once(capsys, words, messages):
    with pytest.raises(SystemExit) as ended:
        plan_pipeline.main(["--model", MODEL, "--cases", "131072:16", *words])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(messages)
    assert all(line.startswith(f"error: {message}") for line, message in zip(lines, messages))
