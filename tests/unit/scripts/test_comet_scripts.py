"""passkey_map.py, ask_text.py and bench/comet_length.py on a run of the tiny backbone."""

import json
import sys

import pytest
from calling import call

import train as training
from scripts import ask_text, passkey_map
from scripts.bench import comet_length

SMALL = ["compressor.chunk_size=32", "compressor.stride=4", "compressor.global_slots=4", "compressor.queue_budget=16"]
COMET = [
    "compressor=comet",
    *SMALL,
    "backbone.layers=2",
    "dataset=passkey",
    "dataset.context_words=60",
    "train.steps=2",
    "train.batch_size=2",
    "train.log_every=1",
    "train.eval_examples=0",
    "eval_batch_size=2",
    "generation.max_new_tokens=3",
]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    assert call(monkeypatch, tmp_path, training, *COMET) == 0, capsys.readouterr().err
    [folder] = (tmp_path / "outputs" / "default").iterdir()
    capsys.readouterr()
    return folder


def test_a_map_has_a_cell_for_every_length_and_depth(run, tmp_path, capsys):
    passkey_map.main(
        [
            str(run),
            "--words",
            "60",
            "90",
            "--depths",
            "0",
            "1",
            "--examples",
            "3",
            "--output",
            str(tmp_path / "map"),
            f"paths.cache={tmp_path}/cache",
        ]
    )
    [found] = json.loads((tmp_path / "map.json").read_text())["runs"]
    assert [(cell["words"], cell["depth"]) for cell in found["cells"]] == [(60, 0), (60, 1), (90, 0), (90, 1)]
    assert all(0 <= cell["em"]["low"] <= cell["em"]["value"] <= cell["em"]["high"] <= 1 for cell in found["cells"])
    assert found["cells"][0]["tokens"] < found["cells"][2]["tokens"] and found["trained_words"] == 60
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        passkey_map.main([str(run), "compare=[a/run]"])
    assert "compare=['a/run']: name further runs, or call this again" in capsys.readouterr().err


def test_a_text_is_read_kept_and_asked_again(run, tmp_path, capsys):
    book, kept = tmp_path / "book.txt", tmp_path / "book.session"
    book.write_text("The grass is green. The pass key is 12345. " * 20)
    ask_text.main([str(run), "--text", str(book), "--save", str(kept), "What is the pass key?", "What is green?"])
    first = capsys.readouterr().out
    assert "tokens in" in first and first.count("Q: ") == first.count("A: ") == 2 and "cache would be" in first
    ask_text.main([str(run), "--load", str(kept), "What is the pass key?", "What is green?"])
    assert capsys.readouterr().out == first[first.index("Q: ") :]


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "nothing to read: give --text FILE, or --load FILE"),
        (["--text", "gone.txt"], "--text gone.txt: no such file"),
        (["--load", "gone.session"], "--load gone.session: no such file"),
    ],
)
def test_what_cannot_be_read_is_told(run, capsys, words, sentence):
    with pytest.raises(SystemExit) as ended:
        ask_text.main([str(run), *words, "Who?"])
    assert ended.value.code == 2 and sentence in capsys.readouterr().err


def test_other_runs_are_refused(monkeypatch, tmp_path, capsys):
    words = ["compressor=no_context", *(word for word in COMET if not word.startswith(("compressor", "dataset")))]
    assert call(monkeypatch, tmp_path, training, *words) == 0, capsys.readouterr().err
    [folder] = (tmp_path / "outputs" / "default").iterdir()
    for main, arguments in ((ask_text.main, ["Who?", "--text", __file__]), (passkey_map.main, [])):
        with pytest.raises(SystemExit) as ended:
            main([str(folder), *arguments])
        assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "keeps no running memory" in told and "give a run of dataset=passkey" in told


def test_the_bench_measures_both_readers_at_every_length(monkeypatch, tmp_path):
    file = tmp_path / "length.json"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "comet_length.py",
            "--lengths",
            "64",
            "512",
            "--plain-limit",
            "64",
            "--shapes",
            "--keys",
            *SMALL,
            "backbone.layers=2",
            "--output",
            str(file),
        ],
    )
    comet_length.main()
    rows = json.loads(file.read_text())["lengths"]
    assert [(row["reader"], row["tokens"], row["chunks"]) for row in rows] == [
        ("comet", 64, 2),
        ("comet", 512, 16),
        ("plain", 64, 1),
    ]
    assert rows[0]["state_mib"] <= rows[1]["state_mib"] and all(row["read_s"] > 0 < row["token_ms"] for row in rows)
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_bound_is_the_paper_s():
    assert comet_length.multiplications_ratio(comet_length.SHAPES["smollm2_135m"]) == pytest.approx(1.52, abs=0.03)
    assert comet_length.multiplications_ratio(comet_length.SHAPES["qwen3_4b"]) > 1.6
