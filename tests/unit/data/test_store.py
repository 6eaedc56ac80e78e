"""Examples and tokens on disk: made once, never used half-written, equal for any number of processes, streamed."""

import gzip
import json
import os
import pickle
import threading
import time
import tracemalloc
import warnings
from array import array
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
from filelock import FileLock

from breviary.backbones.tiny import tiny_tokenizer
from breviary.contract import Document, Example
from data import tokenised
from data.chat.dataset import ChatML
from data.invented_facts import InventedFacts
from data.jsonl import Jsonl
from data.mixture import Mixture
from data.prompts import Prompt
from data.store import arrow, content, folders, processes
from data.store.examples import StoredExamples, decoded, encoded, examples_hash, store_examples, store_split
from data.tokenised import tokenise_split

FULL = Example(
    "a", "Größe \ud800 rot", "Which?", ("red", "rot"), (Document("T", 0, 5, True),), "short", "So:", ("red", "blue")
)
EVERY_FIELD = replace(FULL, **{"messages": (("user", "Hi", False),)} if "messages" in Example.__annotations__ else {})


def rows(count: int, words: int = 3) -> list[dict]:
    return [
        {
            "id": str(i),
            "context": " ".join(f"word{i + j}" for j in range(words)),
            "question": f"q{i}?",
            "answers": ["a"],
        }
        for i in range(count)
    ]


def write(file: Path, lines: list) -> str:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return str(file)


def test_an_example_with_every_field_is_read_as_it_was_written():
    assert all(
        field.default is MISSING or getattr(EVERY_FIELD, field.name) != field.default for field in fields(Example)
    )
    assert decoded(encoded(EVERY_FIELD)) == EVERY_FIELD and encoded(EVERY_FIELD).isascii()
    assert list(store_examples([EVERY_FIELD, FULL], None)) == [EVERY_FIELD, FULL]


def test_stored_examples_are_a_sequence_and_are_pickled_by_file_name(tmp_path):
    file = write(tmp_path / "a.jsonl", rows(5, words=1000))
    data = Jsonl(file, None, None)
    stored = store_split(data, "train", str(tmp_path / "cache"))
    examples = data.examples("train")
    assert isinstance(stored, StoredExamples) and len(stored) == 5 and stored[-1] == examples[-1]
    assert stored[1:3] == examples[1:3] and stored[:5] is stored and stored[:None] is stored
    assert stored.data_hash == examples_hash(examples) == examples_hash(stored)
    with pytest.raises(IndexError):
        stored[5]
    items = tokenise_split(stored, tiny_tokenizer(), Prompt(), None, str(tmp_path / "cache"))
    copies = pickle.dumps(items)
    assert len(copies) < 30_000 < sum(len(example.context) for example in examples)  # no text, no ids
    again = pickle.loads(copies)
    assert [again[i] for i in range(5)] == [items[i] for i in range(5)] and again.lengths == items.lengths


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_is_read_once_until_it_or_the_arguments_change(tmp_path, monkeypatch, suffix):
    file = write(tmp_path / f"a.jsonl{suffix}", rows(4))
    read = []
    stream = Jsonl.stream
    monkeypatch.setattr(Jsonl, "stream", lambda self, split: read.append(split) or stream(self, split))

    def count(**arguments):
        stored = store_split(Jsonl(file, file, None, **arguments), "train", str(tmp_path / "cache"))
        return len(stored), len(read)

    assert [count(), count(), count(train_limit=2), count(train_limit=2)] == [(4, 1), (4, 1), (2, 2), (2, 2)]
    write(Path(file), [*rows(3), *rows(1)[:0], {**rows(4)[3], "question": "changed?"}])
    assert [count(train_limit=2), count()] == [(2, 2), (4, 3)]  # the first two lines are the same
    with pytest.warns(UserWarning, match="max_documents=3 is ignored"):
        assert count(max_documents=3) == (4, 4)
    with pytest.warns(UserWarning, match="max_documents=3 is ignored"):  # of a split that is not read again, too
        assert count(max_documents=3) == (4, 4)


def test_bad_lines_are_named_and_leave_no_folder(tmp_path):
    lines = [*rows(3), "not json", *rows(2), {**rows(5)[4], "answers": []}]
    data = Jsonl(write(tmp_path / "a.jsonl", lines), None, None)
    with pytest.raises(ValueError, match="4 bad lines in") as raised:
        store_split(data, "train", str(tmp_path / "cache"))
    assert [line.strip()[:45] for line in str(raised.value).splitlines()[1:5]] == [
        "line 4: not JSON (Expecting value at column 1",
        "line 5: the id '0' is already that of line 1;",
        "line 6: the id '1' is already that of line 2;",
        "line 7: 'answers' is an empty list; it must h",
    ]
    assert not [file for file in (tmp_path / "cache").iterdir() if file.is_dir()]


def test_chats_and_mixtures_of_files_are_read_once(tmp_path, monkeypatch):
    messages = [{"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yes"))]
    chats = write(tmp_path / "c.jsonl", [{"id": str(i), "messages": messages} for i in range(3)])
    parts = {"chats": ChatML(chats, None, None), "texts": Jsonl(write(tmp_path / "a.jsonl", rows(4)), None, None)}
    mixed, cache = Mixture(parts), str(tmp_path / "cache")
    examples = mixed.examples("train")
    assert [*store_split(mixed, "train", cache)] == examples and len(examples) == 7
    monkeypatch.setattr(Mixture, "examples", lambda *_: pytest.fail("read again"))
    assert [*store_split(Mixture(parts), "train", cache)] == examples
    assert Mixture(parts, seed=1).content_hash("train") != mixed.content_hash("train")
    assert Mixture({**parts, "own": InventedFacts()}).content_hash("train") is None
    with pytest.raises(ValueError, match="1 bad line in .*\n  line 2: the id '0' is already that of line 1"):
        ChatML(write(Path(chats), [{"id": "0", "messages": messages}] * 2), None, None).examples("train")


def files_of(folder: Path) -> dict[str, bytes]:
    [made] = folder.glob("tokenised-*")
    return {file.name: file.read_bytes() for file in sorted(made.iterdir())}


def test_the_files_are_equal_for_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenised, "SHARD_BYTES", 400)
    file, found = write(tmp_path / "a.jsonl", rows(20, words=8)), []
    for most in (1, 3):
        monkeypatch.setattr(processes, "MOST", most)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
        cache = tmp_path / str(most)
        stored = store_split(Jsonl(file, None, None), "train", str(cache))
        items = tokenise_split(stored, tiny_tokenizer(), Prompt(), 5, str(cache))
        assert [item["example"].id for item in items] == [str(i) for i in range(20)]
        found.append(files_of(cache))
    assert found[0] == found[1] and len(found[0]) > 3


class Fails(Prompt):
    def tokenise(self, example, tokenizer):
        raise ValueError(f"no: {example.id}")


def test_the_error_of_the_first_range_reaches_the_caller_from_a_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenised, "SHARD_BYTES", 400)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    stored = store_split(Jsonl(write(tmp_path / "a.jsonl", rows(20)), None, None), "train", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="no: 0"):
        tokenise_split(stored, tiny_tokenizer(), Fails(), None, str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("tokenised-*/")) and not list((tmp_path / "cache").glob("partial-*"))


def test_batches_hold_few_rows_and_counts_few_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "BATCH_BYTES", 2000)
    items = tokenise_split(list(map(example_of, rows(40, words=50))), tiny_tokenizer(), Prompt(), None, str(tmp_path))
    chunks = items._rows.column("context").chunks
    assert len(chunks) > 10 and [len(items[i]["context"]) for i in range(40)] == items.lengths
    assert items.lengths.itemsize == 4 and isinstance(items.lengths, array)
    assert items.is_truncated == [False] * 40 and items.is_truncated[0] is False


def example_of(row: dict) -> Example:
    return Example(row["id"], row["context"], row["question"], tuple(row["answers"]))


# ------------------------------------------------------------------ folders


def make(folder: Path, text: str = "made") -> None:
    def build(aside: Path) -> None:
        aside.mkdir()
        (aside / "file").write_text(text)

    folders.make_once(folder, build, "data")


def test_what_a_killed_process_left_is_removed_and_never_used(tmp_path):
    left = tmp_path / f"partial-data-{folders.socket.gethostname()}-1/complete"
    left.mkdir(parents=True)
    (left / "file").write_text("half")
    make(tmp_path / "data")
    assert (tmp_path / "data/file").read_text() == "made" and [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_process_waits_for_the_one_that_writes_and_opens_its_folder(tmp_path, capsys):
    folder, lock = tmp_path / "data", FileLock(str(tmp_path / "data.lock"))
    lock.acquire()

    def other():
        (tmp_path / "aside").mkdir()
        (tmp_path / "aside/file").write_text("other")
        os.rename(tmp_path / "aside", folder)

    threading.Timer(0.05, other).start()
    make(folder)
    lock.release()
    assert (folder / "file").read_text() == "other"
    assert f"waiting for another process that writes data into {folder}" in capsys.readouterr().out


def test_a_process_that_writes_nothing_is_not_waited_for_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "WAIT_S", 0.01)
    monkeypatch.setattr(folders, "_POLL_S", 0.02)
    with (
        FileLock(str(tmp_path / "data.lock")),
        pytest.raises(ValueError, match=r"for 0.01 s; end it, .*paths.tokenised="),
    ):
        make(tmp_path / "data")


def test_other_processes_of_a_machine_give_the_first_one_a_start(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(folders, "HEAD_START_S", 5)
    threading.Timer(0.05, (tmp_path / "data.lock").touch).start()
    begin = time.monotonic()
    folders._let_first_process_begin(tmp_path / "data", tmp_path / "data.lock")
    assert 0.04 < time.monotonic() - begin < 4
    monkeypatch.setenv("LOCAL_RANK", "0")
    folders._let_first_process_begin(tmp_path / "none", tmp_path / "none.lock")
    assert time.monotonic() - begin < 4.5


def test_a_damaged_folder_is_named(tmp_path):
    store_examples([FULL], str(tmp_path))
    [folder] = tmp_path.iterdir()
    (folder / "examples.arrow").write_bytes(b"")
    with pytest.raises(ValueError, match=f"^{folder} is damaged .*delete this folder"):
        store_examples([FULL], str(tmp_path))


def test_a_data_set_without_a_hash_of_its_content_is_asked_each_time(tmp_path):
    class Own:
        def examples(self, split):
            return [replace(FULL, id=split)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store_split(Own(), "train", str(tmp_path))[0].id == "train"
        assert store_split(Own(), "test", str(tmp_path))[0].id == "test"


def test_streaming_needs_no_memory_for_the_file(tmp_path, monkeypatch):
    """Ten times the data: the peak grows by less than a tenth of the difference."""
    monkeypatch.setattr(arrow, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(content, "_PIECE", 20_000)
    peaks = []
    for count in (20, 200):
        data = Jsonl(write(tmp_path / f"{count}.jsonl", rows(count, words=700)), None, None)
        tracemalloc.start()
        store_split(data, "train", str(tmp_path / "cache"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    size = os.path.getsize(tmp_path / "200.jsonl")
    assert size > 1_000_000 and peaks[1] - peaks[0] < size / 10, peaks
