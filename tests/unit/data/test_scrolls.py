"""SCROLLS: from the published zips to examples. The samples have the published form: id, pid, input, output."""

from __future__ import annotations

import json
import zipfile

import pytest

from data.checks import SPLITS
from data.converters import CONVERTERS
from data.converters.fields import Skipped
from data.converters.scrolls import TASKS, split_input
from data.jsonl import Jsonl
from scripts import prepare_data

STORY = "It rained.\n\nThen it stopped."
QUALITY = f"Why did it rain?\n\n (A) It had to.\n (B) Clouds\n (C) It did not.\n (D) Luck\n\n\n{STORY}"


def rows(*inputs, split="train", outputs=("yes",)):
    """Rows of one task as published: one for each answer of an input, which share its id."""
    return [
        {"id": f"{split}{i}", "pid": f"{split}{i}_{k}", "input": text, "output": output}
        for i, text in enumerate(inputs)
        for k, output in enumerate(outputs)
    ]


def write_zip(folder, task, train, validation, test=None):
    """TASK.zip with TASK/{train,validation,test}.jsonl, as SCROLLS publishes it; answers of test are null."""
    hidden = [{**row, "output": None} for row in (test or validation)]
    with zipfile.ZipFile(folder / f"{task}.zip", "w") as archive:
        for name, content in (("train", train), ("validation", validation), ("test", hidden)):
            archive.writestr(f"{task}/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in content))
    return str(folder / f"{task}.zip")


@pytest.fixture
def qasper(tmp_path):
    """Qasper with a train input of two answers, and a validation input of two answers."""
    return write_zip(
        tmp_path,
        "qasper",
        rows("Who?\n\nA paper.\n\nEnd.", outputs=("Ann", "Bob")),
        rows("What?\n\nAnother paper.", split="dev", outputs=("a method", "a metric")),
    )


def prepared(folder, split):
    return Jsonl(**{name: str(folder / f"{name}.jsonl.gz") for name in SPLITS}).examples(split)


def test_a_zip_becomes_train_and_test(qasper, tmp_path, monkeypatch, capsys):
    """Test is SCROLLS' validation split: the answers of its test split are hidden. Its answers are grouped by input."""
    monkeypatch.setenv("BREVIARY_DATA", str(tmp_path / "data"))
    prepare_data.main(["scrolls", "--train", qasper, "--test", qasper, "--name", "scrolls_qasper"])
    folder = tmp_path / "data/scrolls_qasper"
    assert "scrolls: ready: " in capsys.readouterr().out
    [test] = prepared(folder, "test")
    assert (test.id, test.context, test.question) == ("qasper-dev0", "Another paper.", "What?")
    assert test.answers == ("a method", "a metric")
    train = prepared(folder, "train")  # one example for each answer, as published
    assert [(e.id, e.answers) for e in train] == [("qasper-train0_0", ("Ann",)), ("qasper-train0_1", ("Bob",))]
    assert {e.context for e in train} == {"A paper.\n\nEnd."}


def test_several_tasks_become_one_training_set(qasper, tmp_path):
    reports = write_zip(tmp_path, "gov_report", rows("A report."), rows("Another report.", split="dev"))
    files = ["--train", qasper, reports, "--test", qasper, reports]
    prepare_data.main(["scrolls", *files, "--output", str(tmp_path / "all")])
    assert [e.id.partition("-")[0] for e in prepared(tmp_path / "all", "train")] == ["qasper", "qasper", "gov_report"]
    [_, summary] = prepared(tmp_path / "all", "test")
    assert (summary.question, summary.context) == ("Write a one-page summary of the report.", "Another report.")


def test_unpacked_files_and_folders_are_read_alike(qasper, tmp_path):
    with zipfile.ZipFile(qasper) as archive:
        archive.extractall(tmp_path)
    for number, path in enumerate((tmp_path / "qasper/validation.jsonl", tmp_path / "qasper")):
        prepare_data.main(["scrolls", "--test", str(path), "--output", str(tmp_path / f"out{number}")])
        [example] = prepared(tmp_path / f"out{number}", "test")
        assert example.answers == ("a method", "a metric")


def test_every_task_is_split_into_question_and_context():
    assert split_input("quality", QUALITY) == (
        "Why did it rain?\n(A) It had to.\n(B) Clouds\n(C) It did not.\n(D) Luck",
        STORY,
    )
    for task in TASKS:
        question, context = split_input(task, QUALITY)
        assert question and context.endswith(STORY)
    assert split_input("contract_nli", "Ann may resign.\n\nNON-DISCLOSURE\n\n1. ...") == (
        "Ann may resign.",
        "NON-DISCLOSURE\n\n1. ...",
    )
    assert split_input("summ_screen_fd", STORY) == ("Write a summary of the episode.", STORY)


@pytest.mark.parametrize(
    ("task", "text", "outputs", "choices"),
    [
        ("quality", QUALITY, ["Clouds"], ["It had to.", "Clouds", "It did not.", "Luck"]),
        (
            "contract_nli",
            "Ann may resign.\n\n1. ...",
            ["Not mentioned"],
            ["Entailment", "Contradiction", "Not mentioned"],
        ),
        ("qasper", "Q?\n\nText.", ["Yes"], None),
    ],
)
def test_answers_of_a_choice_have_their_options(task, text, outputs, choices):
    row = {"task": task, "id": "x", "input": text, "outputs": outputs}
    [example] = CONVERTERS["scrolls"](iter([row]))
    assert example.get("choices") == choices and example["answers"] == outputs
    if choices:
        with pytest.raises(ValueError, match="none of the answers .* is one of the options"):
            list(CONVERTERS["scrolls"](iter([{**row, "outputs": ["no option"]}])))


def test_equal_options_are_no_choice():
    text = QUALITY.replace("Luck", "Clouds")
    [example] = CONVERTERS["scrolls"](iter([{"task": "quality", "id": "x", "input": text, "outputs": ["Clouds"]}]))
    assert "choices" not in example


def test_hidden_answers_are_skipped():
    row = {"task": "qasper", "id": "x", "input": "Q?\n\nText.", "outputs": []}
    assert list(CONVERTERS["scrolls"](iter([row]))) == [Skipped("hidden answer")]


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("qasper", "no blank line", "'input' has no blank line; it must be the query, a blank line and the text"),
        ("quality", "Q?\n\n(A) a\n(B) b\n\nstory", "has no options up to (D) between blank lines"),
        ("quality", "Q?\n\n(A) a\n(D) d", "has no options up to (D) between blank lines"),
    ],
)
def test_a_wrong_input_is_named(tmp_path, capsys, task, text, message):
    file = write_zip(tmp_path, task, rows(text), rows(text))
    with pytest.raises(SystemExit) as stop:
        prepare_data.main(["scrolls", "--train", file, "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"{task}.zip, row 1" in error and message in error


def test_wrong_files_are_named(qasper, tmp_path, capsys):
    other = write_zip(tmp_path, "mine", rows("Q?\n\nText."), rows("Q?\n\nText."))
    broken = tmp_path / "qmsum.zip"
    broken.write_bytes(b"no zip")
    empty = tmp_path / "quality.zip"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("readme.txt", "")
    for words, message in (
        (["--validation", qasper], "its validation split is test here"),
        (["--test", other], "is of no task of SCROLLS"),
        (["--test", str(broken)], "cannot be read"),
        (["--test", str(empty)], "must hold one validation.jsonl, but holds readme.txt"),
    ):
        with pytest.raises(SystemExit) as stop:
            prepare_data.main(["scrolls", *words, "--output", str(tmp_path / "out")])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare_data.main(["scrolls", "--test", qasper])
    assert "--name scrolls_qasper" in capsys.readouterr().err
