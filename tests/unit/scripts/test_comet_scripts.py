"""scripts/passkey_map.py, ask_text.py and bench/comet_length.py with the tiny backbone."""

import json

import pytest
from tiny_runs import tiny_run

from comet.bench.backends import SHAPES, multiplications_ratio
from scripts import ask_text, passkey_map
from scripts.bench import comet_length

SMALL = ["compressor.chunk_size=32", "compressor.stride=4", "compressor.global_slots=4", "compressor.queue_budget=16"]
COMET = [
    "compressor=comet",
    *SMALL,
    "backbone.layers=2",
    "dataset=passkey",
    "dataset.context_words=60",
    "eval_batch_size=2",
    "generation.max_new_tokens=3",
    "generation.min_new_tokens=0",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("comet"), *COMET)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """A run of another compressor on another dataset."""
    return tiny_run(tmp_path_factory.mktemp("other"), "compressor=no_context")


def exit_message(capsys, main, arguments):
    """The error message of a call that exits with code 2."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_passkey_map_measures_every_length_and_depth(run, tmp_path, capsys):
    options = ["--words", "60", "90", "--depths", "0", "1", "--examples", "3", "--output", str(tmp_path / "map")]
    passkey_map.main([str(run), *options, f"paths.cache={tmp_path}/cache"])
    [measured] = json.loads((tmp_path / "map.json").read_text())["runs"]
    cells = measured["cells"]
    assert [(cell["words"], cell["depth"]) for cell in cells] == [(60, 0), (60, 1), (90, 0), (90, 1)]
    assert all(0 <= cell["em"]["low"] <= cell["em"]["value"] <= cell["em"]["high"] <= 1 for cell in cells)
    assert cells[0]["tokens"] < cells[2]["tokens"] and measured["trained_words"] == 60
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert "compare=['a/run']: name further runs, or call this again" in exit_message(
        capsys, passkey_map.main, [str(run), "compare=[a/run]"]
    )


def test_a_saved_memory_gives_the_same_answers(run, tmp_path, capsys):
    book, saved = tmp_path / "book.txt", tmp_path / "book.session"
    book.write_text("The grass is green. The pass key is 12345. " * 20)
    questions = ["What is the pass key?", "What is green?"]
    ask_text.main([str(run), "--text", str(book), "--save", str(saved), *questions])
    output = capsys.readouterr().out
    assert "tokens in" in output and output.count("Q: ") == output.count("A: ") == 2 and "would be" in output
    ask_text.main([str(run), "--load", str(saved), *questions])
    assert capsys.readouterr().out == output[output.index("Q: ") :]


@pytest.mark.parametrize(
    "options, error",
    [
        ([], "no text: give --text FILE or --load FILE"),
        (["--text", "missing.txt"], "--text missing.txt: no such file"),
        (["--load", "missing.session"], "--load missing.session: no such file"),
    ],
)
def test_ask_text_reports_missing_input(run, capsys, options, error):
    assert error in exit_message(capsys, ask_text.main, [str(run), *options, "Who?"])


def test_runs_of_other_readers_and_datasets_are_rejected(other_run, capsys):
    message = exit_message(capsys, ask_text.main, [str(other_run), "Who?", "--text", __file__])
    assert "has no running memory" in message
    assert "give a run of dataset=passkey" in exit_message(capsys, passkey_map.main, [str(other_run)])


def test_the_length_benchmark_measures_both_readers(tmp_path):
    file = tmp_path / "length.json"
    words = ["--lengths", "64", "512", "--plain-limit", "64", "--shapes", "--output", str(file)]
    comet_length.main([*words, "--keys", *SMALL, "backbone.layers=2"])
    rows = json.loads(file.read_text())["lengths"]
    assert [(row["reader"], row["tokens"], row["chunks"]) for row in rows] == [
        ("comet", 64, 2),
        ("comet", 512, 16),
        ("plain", 64, 1),
    ]
    assert rows[0]["state_mib"] <= rows[1]["state_mib"] and all(row["read_s"] > 0 < row["token_ms"] for row in rows)
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    comet_length.main([*words, "--keys", *SMALL, "backbone.layers=2"])
    assert json.loads(file.read_text())["lengths"] == rows  # nothing is missing


def test_the_bound_of_the_backends_equals_the_paper_s():
    assert multiplications_ratio(SHAPES["smollm2_135m"]) == pytest.approx(1.52, abs=0.03)
    assert multiplications_ratio(SHAPES["qwen3_4b"]) > 1.6
