"""Out of memory: one sentence with what was computed, the batch's sizes and the keys to change; nothing is lost."""

import json
import os
import re
import signal

import pytest
import torch
from calling import ROW, call, write
from tiny_runs import QUESTIONS, TEXT, tiny_run

import eval as evaluation
import train as training
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Reader
from breviary.evaluation.results import PREDICTIONS
from breviary.readers.compressed import CompressedReader
from breviary.runs.checkpoints import last_checkpoint
from breviary.runtime.memory_errors import OutOfMemory, memory_errors
from breviary.serving.loading import load_reader
from data.collate import Collator
from tests.unit.breviary.runs.test_full_disk import TRAIN

CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1 is free."
BATCH = r"a batch of {} with up to \d+ context, \d+ question and \d+ answer tokens"


def exhaust(*args, **kwargs):
    """The allocator's own error: no machine has so much memory."""
    torch.empty(2**60)


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error, place",
    [
        (torch.OutOfMemoryError(CUDA), r"the GPU in a test \(tried to allocate 20.00 GiB\)"),
        (RuntimeError("CUDA error: out of memory\nCompile with"), "the GPU in a test"),
        (MemoryError(), "the host in a test"),
        (OSError(12, "Cannot allocate memory"), "the host in a test"),
        (
            caused(
                RuntimeError("exited unexpectedly"),
                RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            ),
            "the host, whose kernel killed a data loader process, in a test: set train.workers=0 or fewer",
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Aborted. "), None),
        (ConnectionResetError(), None),
        (RuntimeError("shapes"), None),
    ],
)
def test_errors_that_mean_exhausted_memory(error, place):
    with pytest.raises(OutOfMemory if place else type(error)) as raised, memory_errors("a test", "set a key"):
        raise error
    if place:
        assert re.match(f"out of memory on {place}", str(raised.value))
        assert str(raised.value).endswith("set a key") and raised.value.__cause__ is error
    else:
        assert raised.value is error


def test_a_connection_to_a_data_loader_process_that_breaks():
    with pytest.raises(OutOfMemory, match="killed a data loader process"), memory_errors("a", "b", receives=True):
        raise ConnectionResetError


def fail_at(patch, number, failure, owner, method):
    """The call with this number fails."""
    original, calls = getattr(owner, method), []

    def failing(self, *args, **kwargs):
        calls.append(1)
        return failure() if len(calls) == number else original(self, *args, **kwargs)

    patch.setattr(owner, method, failing)


def raise_cuda():
    raise torch.OutOfMemoryError(CUDA)


def assert_one_sentence(printed, begins):
    assert re.match(f"error: out of memory on {begins}", printed) and printed.count("\n") == 1, printed


def test_a_training_step_and_the_way_on_with_a_smaller_batch(tmp_path, monkeypatch, capsys):
    words = [*TRAIN, "train.steps=3", "train.batch_size=2"]
    with monkeypatch.context() as patch:
        fail_at(patch, 3, raise_cuda, Reader, "forward")
        assert call(patch, tmp_path, training, *words) == 2
    [run] = (tmp_path / "outputs").glob("*/*_*")
    printed = capsys.readouterr().err
    sizes = BATCH.format(2)
    assert_one_sentence(
        printed, rf"the GPU in a training step, {sizes} \(tried to allocate 20.00 GiB\): set a smaller "
    )
    assert "train.batch_size and as much more train.accumulation" in printed
    assert printed.endswith(f"; resume={run} goes on from checkpoint-2, also with such changes\n")
    words += [f"resume={run}", "train.batch_size=1", "train.accumulation=2"]
    assert call(monkeypatch, tmp_path, training, *(word for word in words if word != "resume=auto")) == 0
    assert last_checkpoint(run).name == "checkpoint-3"


def test_an_evaluation_batch(tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "test.jsonl", [{**ROW, "id": str(n)} for n in range(6)])
    words = ["compressor=full_context", "baselines=[]", "dataset=jsonl", f"dataset.test={data}", "backbone.layers=2"]
    words += ["eval_batch_size=3", "generation.max_new_tokens=1"]
    with monkeypatch.context() as patch:
        fail_at(patch, 2, exhaust, CompressedReader, "answer_with_loss")
        assert call(patch, tmp_path, evaluation, *words) == 2
    sizes = BATCH.format(3)
    begins = rf"the host in an evaluation batch, {sizes} \(tried to allocate \d+ bytes\): set a smaller eval_batch_size"
    assert_one_sentence(capsys.readouterr().err, begins)
    [file] = (tmp_path / "outputs").rglob(PREDICTIONS)
    before = file.read_text()
    assert before.count("\n") == 3
    assert call(monkeypatch, tmp_path, evaluation, *words) == 0
    assert file.read_text().startswith(before)
    assert len({json.loads(line)["id"] for line in file.read_text().splitlines()}) == 6


def test_loading_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TinyBackbone, "load", exhaust)
    assert call(monkeypatch, tmp_path, training, *TRAIN) == 2
    assert_one_sentence(
        capsys.readouterr().err, r"the host in loading weights \(tried .*\): set backbone.dtype=bfloat16"
    )


def test_a_data_loader_process_that_the_kernel_kills(tmp_path, monkeypatch, capsys):
    parent, collate = os.getpid(), Collator.__call__

    def killed_in_a_worker(self, items):
        return collate(self, items) if os.getpid() == parent else os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Collator, "__call__", killed_in_a_worker)
    assert call(monkeypatch, tmp_path, training, *TRAIN, "train.workers=1") == 2
    assert_one_sentence(capsys.readouterr().err, "the host, whose kernel killed a data loader process, in ")


def test_the_python_interface(tmp_path, monkeypatch):
    reader = load_reader(tiny_run(tmp_path, "backbone.layers=2", "compressor.encoder_layers=1"))
    context = reader.read(TEXT)
    monkeypatch.setattr(type(reader.reader), "encode_contexts", exhaust)
    with pytest.raises(OutOfMemory, match=f"in encoding a text, {BATCH.format(1)} .*: give shorter texts"):
        reader.read(TEXT)
    monkeypatch.setattr(type(context), "answer", exhaust)
    monkeypatch.setattr(type(context), "stream", exhaust)
    place = rf"in answering from a text of {context.tokens_read} tokens, a batch of "
    with pytest.raises(OutOfMemory, match=place + "2 with"):
        reader.answer_from(context, QUESTIONS[:2])
    with pytest.raises(OutOfMemory, match=place + "1 with"):
        next(reader.stream(context, QUESTIONS[0]))
