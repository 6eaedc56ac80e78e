"""docs/python.md: every block of the page runs, on tiny runs of the readers that it names."""

import re

import pytest
from tiny_runs import QUESTIONS, TEXT, page_blocks, run_block, tiny_run

import breviary

FORMS = {
    "comi": ["compressor=comi"],
    "mean_pool": ["compressor=mean_pool", "compressor.join=depth"],
    "ram": ["compressor=ram", "compressor.segment_size=16"],
    "ram_comi": ["compressor=ram_comi", "compressor.segment_size=16"],
    "icae": ["compressor=icae", "compressor.memory_tokens=4"],
    "comet": ["compressor=comet"],
    "full_context": ["compressor=full_context"],
    "segments": ["compressor=comi", "compressor.segment_size=64", "compressor.ratio=8", "backbone.positions=224"],
    "depth": ["compressor=comi", "compressor.join=depth", "backbone.positions=224"],
}


BLOCKS = page_blocks()
INPUTS = "# From Python-0"  # the text and questions of all others
# The first of these is tested by scripts/test_export.py.
OTHERS = ("COMI-1", "Longer than the backbone's positions-0", INPUTS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: run folder}."""
    return {name: tiny_run(tmp_path_factory.mktemp(name), *words) for name, words in FORMS.items()}


@pytest.fixture
def place(runs, tmp_path, monkeypatch):
    """A working folder with the runs as outputs/NAME/RUN."""
    for name, folder in runs.items():
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "RUN").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_reader_has_a_short_block():
    named = {name for code in BLOCKS.values() for name in re.findall(r"outputs/(\w+)/RUN", code)}
    assert named == set(FORMS)
    assert all(
        len([line for line in code.splitlines() if line and not line.startswith(" ")]) <= 15 for code in BLOCKS.values()
    )


def test_the_inputs_of_the_page_are_a_text_and_questions():
    names = run_block(BLOCKS[INPUTS])
    assert names["text"] != TEXT and all(question.endswith("?") for question in names["questions"])
    assert type(names["text"]) is type(TEXT) and type(names["questions"]) is type(QUESTIONS)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in OTHERS])
def test_a_block_of_the_page_runs(name, place, capsys):
    names = run_block(BLOCKS[name])
    printed = capsys.readouterr().out
    kept, again = names.get("document", names.get("session")), names.get("again")
    if "answers" in names:
        now = [names["reader"].answer_from(kept, question) for question in QUESTIONS]
        assert all(now) and (now == names["answers"]) == (
            "session" not in names or "comet" in names
        )  # a session has read more since
    if again is not None:
        assert again == (now[0] if isinstance(again, str) else now)
    if "bytes on disk" in printed or "bytes the memory" in printed:
        sizes = re.search(
            r"([\d,]+) bytes (?:on disk|the memory); the (?:document|text)'s key/value cache: ([\d,]+)", printed
        )
        on_disk, cache = (int(size.replace(",", "")) for size in sizes.groups())
        assert on_disk < cache == kept.cache_bytes and on_disk in {
            file.stat().st_size for file in place.glob("velkeld.*")
        }
    assert printed.strip()


def test_a_text_longer_than_the_positions_is_encoded_in_segments_or_rejected(place, capsys):
    run_block(BLOCKS["Longer than the backbone's positions-0"])
    segments, session, error = capsys.readouterr().out.splitlines()
    tokens, positions, slots = map(int, re.findall(r"\d+", segments))
    assert tokens > positions > slots and positions == 224
    assert session.startswith(f"{tokens + 1} tokens read")  # with BOS
    assert re.fullmatch(
        rf"a text of {tokens} tokens: this reader accepts at most \d+ beside prefix, question and answer; .*", error
    )


def test_a_batch_gives_the_answers_of_single_calls(place):
    reader = breviary.load_reader("outputs/comi/RUN")
    texts = [TEXT, TEXT + " The moon is white.", ""]
    assert reader.answer(texts, QUESTIONS) == [reader.answer([t], [q])[0] for t, q in zip(texts, QUESTIONS)]
    assert reader.answer([], []) == []
    with pytest.raises(ValueError, match="^2 texts and 1 questions: give one question for each text$"):
        reader.answer(texts[:2], QUESTIONS[:1])
