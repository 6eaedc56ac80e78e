"""Encoded contexts and memories: answers, saved files, rejected files."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_run

from breviary import load_reader
from breviary.contract import Generation
from breviary.readers.documents import EncodedDocument
from breviary.readers.saved import SCHEMA

TEXT = "For the town of Velkeld the official metal is copper. The ship Quiloth has violin as lucky instrument."
QUESTIONS = ["What is the official metal of the town of Velkeld?", "What is the lucky instrument of the ship Quiloth?"]
FORMS = {
    "comi at the input": ["compressor=comi"],
    "comi in segments": ["compressor=comi", "compressor.segment_size=16"],
    "mean_pool at depth": ["compressor=mean_pool", "compressor.join=depth", "compressor.slot_positions=consecutive"],
    "ram": ["compressor=ram", "compressor.segment_size=8"],
    "ram_comi": ["compressor=ram_comi", "compressor.segment_size=8"],
    "icae": ["compressor=icae", "compressor.memory_tokens=4"],
    "comet": ["compressor=comet"],
    "truncate": ["compressor=truncate"],
}


def opened(home, *words):
    return load_reader(tiny_run(home, *words))


@pytest.fixture(scope="module", params=FORMS)
def reader(request, tmp_path_factory):
    return opened(tmp_path_factory.mktemp("run"), *FORMS[request.param])


@pytest.fixture(scope="module")
def comi(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("run"), "compressor=comi", "compressor.join=depth")


@pytest.fixture
def files(comi, tmp_path):
    """A document and a memory of it, saved."""
    document = comi.read(TEXT)
    document.save(tmp_path / "document")
    comi.memory(document, QUESTIONS[0]).save(tmp_path / "memory")
    return tmp_path


# ---- every reader ----


@pytest.mark.parametrize("text", [TEXT, ""], ids=["text", "nothing"])
def test_an_encoded_context_answers_as_the_text_does(reader, text, tmp_path):
    expected = reader.answer([text] * 2, QUESTIONS)
    kept = reader.read(text)
    assert reader.answer_from(kept, QUESTIONS) == expected and reader.answer_from(kept, QUESTIONS[1]) == expected[1]
    assert ["".join(reader.stream(kept, question)) for question in QUESTIONS] == expected
    assert kept.save(tmp_path / "kept") == (tmp_path / "kept").stat().st_size
    loaded = reader.load(tmp_path / "kept")
    assert reader.answer_from(loaded, QUESTIONS) == expected and loaded.tokens_read == kept.tokens_read
    assert loaded.bytes == kept.bytes or not isinstance(
        kept, EncodedDocument
    )  # a session lays its open chunk out again
    assert kept.cache_bytes == kept.tokens_read * reader.reader.decoder.key_value_bytes(4)


@pytest.mark.parametrize("text", [TEXT, ""], ids=["text", "nothing"])
def test_a_memory_answers_its_question(reader, text, tmp_path):
    kept = reader.read(text)
    if not isinstance(kept, EncodedDocument):
        with pytest.raises(ValueError, match="is already the memory, for any question"):
            reader.memory(kept, QUESTIONS[0])
        return
    for question in QUESTIONS:
        memory = reader.memory(kept, question)
        memory.save(tmp_path / "memory")
        loaded = reader.load(tmp_path / "memory")
        expected = reader.answer_from(kept, question)
        assert reader.answer_from(memory, question) == reader.answer_from(loaded, loaded.question) == expected
        assert "".join(reader.stream(loaded, question)) == expected
        assert len(loaded) == len(memory) and loaded.tokens_read == kept.tokens_read and loaded.question == question
        assert "".join(words for _, words in memory.token_spans()) == text
        with pytest.raises(ValueError, match="a memory from a file holds no tokens of its document"):
            loaded.token_spans()
        with pytest.raises(ValueError, match="this memory was made for the question"):
            reader.memory(memory, QUESTIONS[1])


def test_questions_are_answered_independently(reader):
    kept = reader.read(TEXT)
    questions = [*QUESTIONS, "Which word?"]
    assert reader.answer_from(kept, questions) == [reader.answer_from(kept, question) for question in questions]


@pytest.mark.parametrize("form", [["compressor=comi", "compressor.join=depth"], ["compressor=ram"]], ids=str)
def test_half_precision_is_saved_exactly(form, tmp_path):
    reader = opened(tmp_path, *form, "backbone.dtype=bfloat16")
    expected, kept = reader.answer([TEXT], QUESTIONS[:1]), reader.read(TEXT)
    kept.save(tmp_path / "kept")
    assert [reader.answer_from(reader.load(tmp_path / "kept"), QUESTIONS[0])] == expected
    memory = reader.memory(kept, QUESTIONS[0])
    memory.save(tmp_path / "memory")
    assert load_file(tmp_path / "memory")["embeds"].dtype == torch.bfloat16
    assert [reader.answer_from(reader.load(tmp_path / "memory"), QUESTIONS[0])] == expected


# ---- rejected files ----


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["compressor=comi", "compressor.join=depth", "compressor.ratio=2"],
            "settings .*'ratio': 4.*, here .*'ratio': 2",
        ),
        (["compressor=ram", "compressor.join=depth"], "method comi.model.COMI, here ram.model.RAM"),
        (["compressor=comi", "compressor.join=depth", "backbone.seed=3"], "backbone [0-9a-f]{64}, here [0-9a-f]{64}"),
        (["compressor=comi", "compressor.join=depth", "seed=1"], "weights [0-9a-f]{64}, here [0-9a-f]{64}$"),
        (["compressor=comi", "compressor.join=depth", "backbone.dtype=bfloat16"], "dtype float32, here bfloat16"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_files_of_another_reader_are_rejected(files, tmp_path, words, message):
    other = opened(tmp_path, *words)
    for kind in ("document", "memory"):
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(files / kind))}: a {kind} of another reader: .*{message}"
        ):
            other.load(files / kind)


def test_comet_and_compressors_reject_files_of_each_other(comi, files, tmp_path):
    comet = opened(tmp_path, "compressor=comet")
    comet.read(TEXT).save(tmp_path / "session")
    with pytest.raises(ValueError, match="session: contains session, expected document or memory; "):
        comi.load(tmp_path / "session")
    with pytest.raises(ValueError, match="memory: contains memory, expected session; "):
        comet.load(files / "memory")


def test_a_context_of_another_reader_is_rejected(comi, tmp_path):
    other = opened(tmp_path, "compressor=comi", "compressor.join=depth")
    with pytest.raises(ValueError, match="^this context was encoded by another reader; save it and load it here"):
        other.answer_from(comi.read(TEXT), QUESTIONS)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: b"no file at all"])
def test_a_damaged_file(comi, files, damage):
    for kind in ("document", "memory"):
        (files / kind).write_bytes(damage((files / kind).read_bytes()))
        with pytest.raises(
            ValueError, match=rf"{kind}: cannot be read as document or memory \(.+\); give a file that save wrote"
        ):
            comi.load(files / kind)


def test_a_flipped_bit_a_missing_file_and_a_later_schema(comi, files):
    content = bytearray((files / "memory").read_bytes())
    content[-1] ^= 64
    (files / "memory").write_bytes(content)
    with pytest.raises(ValueError, match="memory: damaged memory "):
        comi.load(files / "memory")
    with pytest.raises(ValueError, match="gone: cannot be read as document or memory"):
        comi.load(files / "gone")
    with safe_open(files / "document", framework="pt") as stream:
        header = stream.metadata() | {"schema": str(SCHEMA + 1)}
    save_file(load_file(files / "document"), files / "document", metadata=header)
    with pytest.raises(ValueError, match=f"document: a document of schema {SCHEMA + 1}, this version reads {SCHEMA}"):
        comi.load(files / "document")


def test_the_header_identifies_the_reader(comi, files):
    with safe_open(files / "memory", framework="pt") as stream:
        header = stream.metadata()
    identity = json.loads(header["reader"])
    assert (header["kept"], header["schema"], header["question"]) == ("memory", "1", QUESTIONS[0])
    assert (
        identity["method"] == "comi.model.COMI"
        and len(identity["backbone"]) == 64
        and identity["settings"]["ratio"] == 4
    )


def test_a_question_that_does_not_fit_is_reported(tmp_path):
    reader = opened(tmp_path, "compressor=comi", "compressor.join=depth", "backbone.positions=128")
    kept = reader.read(TEXT)
    with pytest.raises(
        ValueError, match=r"^a text of \d+ tokens: this reader accepts at most \d+ beside prefix, question and"
    ):
        reader.answer_from(kept, "blue " * 90)
    with pytest.raises(ValueError, match="this reader accepts at most"):
        reader.answer_from(kept, QUESTIONS[0], Generation(max_new_tokens=100))
    with pytest.raises(ValueError, match="this reader accepts at most"):
        reader.answer(["", TEXT * 9], QUESTIONS)
