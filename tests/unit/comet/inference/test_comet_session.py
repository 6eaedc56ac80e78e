"""comet.inference.session: a text read in pieces, questioned, continued, saved and loaded."""

from types import SimpleNamespace

import pytest
import torch
from comet_helpers import C, expected_logits, tiny_comet

from breviary.contract import Generation
from breviary.runs.checkpoints import save_trained
from comet.inference.session import TEMPLATE, Session
from tests.tiny import disturb, recorded_ids

TEXT = (
    "For the town of Velkeld the official metal is copper. The ship Quiloth has violin as lucky instrument. "
    "The lucky animal of the ship Druminne is horse. "
) * 2
QUESTION = "What is the official metal of the town of Velkeld?"
SHORT = Generation(max_new_tokens=6, min_new_tokens=6)


@pytest.fixture(scope="module")
def reader():
    return tiny_comet(dtype="float32")


def ids_of(reader, text):
    return reader.tokenizer(text, add_special_tokens=False)["input_ids"]


def session_after(reader, ids):
    session = reader.open()
    session.read(ids)
    return session


def next_ids(session, count=5):
    """The session's greedy continuation; the session does not change."""
    return list(session.fork().generate(count))


def greedy(reader, ids, count):
    """The reference's greedy continuation of these tokens."""
    text = list(ids)
    with torch.no_grad():
        for _ in range(count):
            text.append(int(expected_logits(reader, torch.tensor(text))[-1].argmax()))
    return text[len(ids) :]


# ---- reading, questions, continuation ----


@pytest.mark.parametrize("size", [1, 7, 16, 50])
def test_a_text_can_be_read_in_pieces(reader, size):
    ids = ids_of(reader, TEXT)
    whole, pieces = session_after(reader, ids), reader.open()
    for start in range(0, len(ids), size):
        pieces.read(ids[start : start + size])
    torch.testing.assert_close(pieces._logits, whole._logits, atol=1e-5, rtol=1e-5)
    assert (
        pieces.tokens_read == whole.tokens_read == len(ids)
        and pieces._open_ids == whole._open_ids == ids[-len(whole._open_ids) :]
    )
    assert pieces.ask(QUESTION, SHORT) == whole.ask(QUESTION, SHORT)


def test_a_string_is_read_as_its_tokens(reader):
    one, other = reader.open(), reader.open()
    one.read(TEXT)
    other.read(ids_of(reader, TEXT))
    assert torch.equal(one._logits, other._logits) and one.tokens_read == other.tokens_read > 4 * C
    one.read("")
    assert torch.equal(one._logits, other._logits) and one.tokens_read == other.tokens_read


def test_an_answer_equals_the_reference_s_after_text_and_question(reader):
    ids = ids_of(reader, TEXT)
    with recorded_ids(reader) as recorder:
        session_after(reader, ids).ask(QUESTION, Generation(max_new_tokens=6))
    prompt = [*ids, *ids_of(reader, TEMPLATE.replace("{question}", QUESTION))]
    assert recorder.ids == [greedy(reader, prompt, 6)]


def test_a_question_does_not_change_the_session(reader):
    ids = ids_of(reader, TEXT)
    session, untouched = session_after(reader, ids), session_after(reader, ids)
    first = session.ask(QUESTION, SHORT)
    session.ask("Which ship?", SHORT)
    assert session.ask(QUESTION, SHORT) == first and session.tokens_read == len(ids)
    assert next_ids(session) == next_ids(untouched)
    assert torch.equal(session._logits, untouched._logits)


def test_an_answer_stops_at_a_new_line(reader):
    session = session_after(reader, ids_of(reader, TEXT))
    assert "\n" not in session.ask(QUESTION)
    [token] = next_ids(session_after(reader, ids_of(reader, TEXT + TEMPLATE.replace("{question}", QUESTION))), 1)
    word = reader.tokenizer.decode([token])
    assert session.ask(QUESTION, Generation(stop=(word,))) == ""


def test_a_custom_template(reader):
    ids = ids_of(reader, TEXT)
    session = reader.open(template=" {question} is")
    session.read(ids)
    with recorded_ids(reader) as recorder:
        session.fork().ask("copper", Generation(max_new_tokens=3))
    assert recorder.ids == [greedy(reader, [*ids, *ids_of(reader, " copper is")], 3)]


def test_special_tokens_of_a_template_are_special_and_those_of_a_question_plain(reader):
    control, plain = reader.tokenizer.eos_token_id, ids_of(reader, " copper")
    session = reader.open(template="</s>{question}")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "read", lambda self, ids: seen.append(ids) or setattr(self, "_logits", 0))
        session._fork_with_question(" copper </s>")
    assert seen[0][: len(plain) + 1] == [control, *plain] and seen[0].count(control) == 1
    assert reader.tokenizer.decode(seen[0]) == "</s> copper </s>"


def test_wrong_templates_and_texts(reader):
    with pytest.raises(ValueError, match="^template is 'Q'; it must hold {question}, for example "):
        reader.open(template="Q")
    for call in (reader.open().read, reader.open().ask):
        with pytest.raises(ValueError, match=r"^the text holds a lone surrogate \('\\udcff', character 1\)"):
            call("a\udcff")


def test_generation_starts_new_chunks(reader):
    ids, session = ids_of(reader, TEXT)[:10], reader.open()
    session.read(ids)
    continuation = list(session.generate(3 * C))
    assert continuation == greedy(reader, ids, 3 * C) and len(continuation) == 3 * C
    assert session.tokens_read == 10 + 3 * C and session._open_ids == continuation[-10:]
    again = session_after(reader, [*ids, *continuation])
    torch.testing.assert_close(session._logits, again._logits, atol=1e-5, rtol=1e-5)


def test_generation_stops_after_an_end_token(reader, monkeypatch):
    session = session_after(reader, ids_of(reader, TEXT))
    continuation = next_ids(session, 20)
    end = continuation[7]
    monkeypatch.setattr(reader.decoder, "end_ids", (end,))
    assert next_ids(session, 20) == continuation[: continuation.index(end) + 1]
    monkeypatch.setattr(reader.decoder, "end_ids", ())
    monkeypatch.setattr(reader, "tokenizer", SimpleNamespace(eos_token_id=end))
    assert next_ids(session, 20) == continuation[: continuation.index(end) + 1]


def test_bytes_are_the_same_after_few_chunks_as_after_many(reader):
    session, sizes = reader.open(), []
    for _ in range(40):
        session.read(ids_of(reader, TEXT)[:C])
        sizes.append(session.bytes)
    assert len(set(sizes[4:])) == 1 and sizes[0] < sizes[4]


def test_a_session_without_text(reader):
    session = reader.open()
    assert session.tokens_read == session.bytes == 0
    with pytest.raises(ValueError, match="^session.generate: no text was read; call session.read first$"):
        list(session.generate(3))
    with pytest.raises(
        ValueError, match="^session.ask: no text was read and the question is empty; call session.read first$"
    ):
        reader.open(template="{question}").ask("")
    with recorded_ids(reader) as recorder:  # the question is the text
        session.ask(QUESTION, Generation(max_new_tokens=3))
    assert recorder.ids == [greedy(reader, ids_of(reader, TEMPLATE.replace("{question}", QUESTION)), 3)]


def test_opening_a_session_ends_training_mode(reader):
    assert not reader.train().open().reader.training


# ---- files ----


@pytest.mark.parametrize("length", [0, 9, 16, 17, 60])
@pytest.mark.parametrize("overrides", [[], ["compressor.global_slots=0"], ["compressor.queue_budget=0"]], ids=" ".join)
def test_a_session_is_saved_and_loaded(overrides, length, tmp_path):
    reader = tiny_comet(*overrides, dtype="float32")
    ids, session = ids_of(reader, TEXT), reader.open(template=" {question}:")
    session.read(ids[:length])
    assert session.save(tmp_path / "s.safetensors") == (tmp_path / "s.safetensors").stat().st_size
    loaded = Session.load(reader, tmp_path / "s.safetensors")
    assert (loaded.tokens_read, loaded._open_ids, loaded.template) == (length, session._open_ids, " {question}:")
    for one in (session, loaded):
        one.read(ids[length : length + 30])
    torch.testing.assert_close(loaded._logits, session._logits, atol=1e-5, rtol=1e-5)
    assert loaded.ask(QUESTION, SHORT) == session.ask(QUESTION, SHORT) and next_ids(loaded) == next_ids(session)


def test_loading_a_session_ends_training_mode(reader, tmp_path):
    session_after(reader, [5, 6, 7]).save(tmp_path / "s")
    assert not Session.load(reader.train(), tmp_path / "s").reader.training


@pytest.fixture
def saved(reader, tmp_path):
    session_after(reader, ids_of(reader, TEXT)).save(tmp_path / "s")
    return tmp_path / "s"


@pytest.mark.parametrize(
    "overrides, difference",
    [
        (["compressor.chunk_size=32"], "chunk_size 16, here 32"),
        (["compressor.stride=8"], "stride 4, here 8"),
        (["compressor.global_slots=2"], "global_slots 3, here 2"),
        (["compressor.queue_budget=4"], "queue_budget 8, here 4"),
        (["backbone.seed=1"], "backbone "),
        (["compressor.gate=false"], "weights "),
    ],
)
def test_a_session_of_other_settings_is_refused(saved, overrides, difference):
    with pytest.raises(ValueError) as error:
        Session.load(tiny_comet(*overrides, dtype="float32"), saved)
    assert str(error.value).startswith(f"{saved}: a session of another reader: ") and difference in str(error.value)


def test_a_session_of_another_dtype_is_refused(saved):
    with pytest.raises(ValueError, match="a session of another reader: dtype float32, here float64"):
        Session.load(tiny_comet(), saved)


def test_a_session_of_other_weights_is_refused(saved):
    for part in ("memory", "decoder"):
        other = tiny_comet(dtype="float32")
        disturb(getattr(other, part), 1e-4)
        with pytest.raises(ValueError, match=r"a session of another reader: weights \w{64}, here \w{64}$"):
            Session.load(other, saved)


def test_other_files_are_refused(reader, saved, tmp_path):
    (tmp_path / "text").write_text("Velkeld")
    (tmp_path / "half").write_bytes(saved.read_bytes()[:-200])
    (tmp_path / "none").write_bytes(b"")
    for name in ("text", "half", "none", "missing"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as session \(.+\); give a file that save wrote"):
            Session.load(reader, tmp_path / name)
    checkpoint = save_trained(tmp_path / "run", reader, reader.fingerprint)
    with pytest.raises(
        ValueError, match="trained.safetensors: contains no saved context, expected session; give a file"
    ):
        Session.load(reader, checkpoint)


def test_a_damaged_session_is_refused(reader, saved):
    values = bytearray(saved.read_bytes())
    values[-1] ^= 1
    saved.write_bytes(values)
    with pytest.raises(ValueError, match="damaged session .checksum does not match"):
        Session.load(reader, saved)


def test_a_session_of_another_schema_is_refused(reader, saved, monkeypatch):
    monkeypatch.setattr("breviary.readers.saved.SCHEMA", 2)
    with pytest.raises(ValueError, match="a session of schema 1, this version reads 2"):
        Session.load(reader, saved)
