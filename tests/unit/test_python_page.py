"""docs/python.md, carried out: every block of the page runs on tiny runs of the readers that it names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import train as training
from breviary.checkpoint import load_reader
from breviary.testing import compose_tiny

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
TEXT = ("For the town of Velkeld the official metal is copper. The ship Quiloth has violin as lucky instrument. "
        "The official colour of the town of Zorvane is green. ") * 2
QUESTIONS = ["What is the official metal of the town of Velkeld?", "What is the lucky instrument of the ship Quiloth?",
             "What is the official colour of the town of Zorvane?"]
FORMS = {
    "comi": ["compressor=comi"], "mean_pool": ["compressor=mean_pool", "compressor.join=depth"],
    "ram": ["compressor=ram", "compressor.segment_size=16"], "ram_comi": ["compressor=ram_comi", "compressor.segment_size=16"],
    "comet": ["compressor=comet"], "full_context": ["compressor=full_context"],
    "segments": ["compressor=comi", "compressor.segment_size=64", "compressor.ratio=8", "backbone.positions=224"],
    "depth": ["compressor=comi", "compressor.join=depth", "backbone.positions=224"],
}


def blocks():
    """(section, number in it, code)."""
    for section in PAGE.split("\n## ")[1:]:
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)):
            yield section.splitlines()[0], number, code


BLOCKS = {f"{section}-{number}": code for section, number, code in blocks()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: run folder}, each trained for one step."""
    home = tmp_path_factory.mktemp("page")
    found = {}
    for name, words in FORMS.items():
        cfg = compose_tiny([*words, f"reader={name}", "dataset.train_size=2", "train.steps=1", "train.batch_size=1",
                            "train.eval_examples=0", "train.learning_rate=1e-2", "generation.max_new_tokens=6"])
        cfg.paths.outputs, cfg.paths.cache = f"{home}/outputs", f"{home}/cache"
        found[name] = training.train(cfg)
    return found


@pytest.fixture
def place(runs, tmp_path, monkeypatch):
    """An empty working folder in which outputs/NAME/RUN are the runs."""
    for name, folder in runs.items():
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "RUN").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def executed(code):
    names = {"text": TEXT, "questions": QUESTIONS}
    exec(compile(code, "docs/python.md", "exec"), names)
    return names


def test_every_reader_has_a_section_of_ten_lines():
    named = {name for code in BLOCKS.values() for name in re.findall(r"outputs/(\w+)/RUN", code)}
    assert named == set(FORMS)
    assert all(len([line for line in code.splitlines() if line and not line.startswith(" ")]) <= 15 for code in BLOCKS.values())


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "COMI-1"])
def test_a_block_of_the_page_runs(name, place, capsys):
    names = executed(BLOCKS[name])
    assert capsys.readouterr().out.strip()
    kept, again = names.get("document", names.get("session")), names.get("again")
    if "answers" in names:
        now = [names["reader"].answer_from(kept, question) for question in QUESTIONS]
        assert all(now) and (now == names["answers"]) == ("session" not in names or "comet" in names)  # a session read on
    if again is not None:
        assert again == (now[0] if isinstance(again, str) else now)


def test_a_memory_is_answered_from_in_another_process(place):
    names = executed(BLOCKS["COMI-0"])
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{BLOCKS['COMI-1']}"
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == f"{QUESTIONS[0]} {names['answers'][0]}\n"


def test_bytes_are_printed_against_the_cache(place, capsys):
    for name in ("COMI-0", "Mean pooling-0", "RAM-0", "RAM with COMI's grouping-0", "CoMeT-0"):
        executed(BLOCKS[name])
        printed = capsys.readouterr().out
        on_disk, cache = re.search(r"([\d,]+) bytes (?:on disk|the memory); the (?:document|text)'s key/value cache: ([\d,]+)",
                                   printed).groups()
        assert int(on_disk.replace(",", "")) < int(cache.replace(",", "")), printed


def test_what_is_longer_than_the_positions_is_read_in_segments_or_refused(place, capsys):
    executed(BLOCKS["Longer than the backbone's positions-0"])
    segments, session, refused = capsys.readouterr().out.splitlines()
    tokens, positions, slots = map(int, re.findall(r"\d+", segments))
    assert tokens > positions > slots and positions == 224
    assert session.startswith(f"{tokens + 1} tokens read")  # with BOS
    assert re.fullmatch(rf"a text of {tokens} tokens: this reader reads at most \d+ beside prefix, question and answer; .*", refused)


def test_a_batch_of_documents_is_each_by_itself(place):
    reader = load_reader("outputs/comi/RUN")
    texts = [TEXT, TEXT + " The moon is white.", ""]
    assert reader.answer(texts, QUESTIONS) == [reader.answer([t], [q])[0] for t, q in zip(texts, QUESTIONS)]
    assert reader.answer([], []) == []
    with pytest.raises(ValueError, match="^2 texts and 1 questions: give one question for each text$"):
        reader.answer(texts[:2], QUESTIONS[:1])
