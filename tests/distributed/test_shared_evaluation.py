"""Evaluation on two processes: shared passes, complete predictions, one file system, the configured timeout."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from breviary.backbones.tiny import tiny_tokenizer
from breviary.contract import Example
from breviary.evaluation import loop, session
from breviary.evaluation.results import RESULTS
from breviary.runtime.distributed import gather_rows, rank, require_shared_folder, start_process_group, world_size
from data.collate import Collator
from data.prompts import Prompt
from data.tokenised import tokenise_split
from tests.tiny import compose_tiny, evaluate_tiny, tiny_reader

SMALL = ["backbone.layers=2", "backbone.width=32"]
BASELINE = ["compressor=full_context", "reader=full_context", "baselines=[]", "eval_batch_size=1", *SMALL]
BASELINE += ["generation.max_new_tokens=2", "dataset.test_size=5"]


def restoration_losses(folder: Path) -> None:
    """Writes the unconditional and shuffled-context losses, and the batches that each process computed."""
    start_process_group(torch.device("cpu"), 60)
    texts = [f"The {'very ' * i}old ship." for i in range(5)]
    examples = [Example(str(i), text, "Restate.", (text,)) for i, text in enumerate(texts)]
    tokenizer = tiny_tokenizer()
    items = tokenise_split(examples, tokenizer, Prompt(answer_template="{answer}"), None, None)
    found = {}
    for name, compressor, measure in (
        ("unconditional", "no_context", loop.unconditional_nll),
        ("shuffled", "mean_pool", loop.shuffled_context_nll),
    ):
        words = ["objective=reconstruct", f"compressor={compressor}", "decoder.train=frozen", *SMALL]
        reader, calls = tiny_reader(compose_tiny(words)), []
        loss = reader.loss
        reader.loss = lambda batch, loss=loss, calls=calls: calls.append(1) or loss(batch)
        losses = measure(reader, items, Collator(tokenizer.pad_token_id), 1)
        found[name] = {"losses": losses, "batches": gather_rows([len(calls)])}
    (folder / f"{world_size()}.{rank()}.json").write_text(json.dumps(found))


def test_unconditional_and_shuffled_passes_are_shared_and_equal_to_one_process(ranks, tmp_path):
    ranks(None, restoration_losses, tmp_path)
    ranks(2, restoration_losses, tmp_path)
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1.0", "2.0", "2.1"))
    assert first == second
    for name in ("unconditional", "shuffled"):
        assert one[name]["batches"] == [5] and first[name]["batches"] == [3, 2]
        assert first[name]["losses"].keys() == one[name]["losses"].keys() == set("01234")
        assert first[name]["losses"] == pytest.approx(one[name]["losses"], rel=1e-6)


def look_at_own_folder(folder: Path) -> None:
    """Every process looks at a folder of its own, as without a common file system, then at one that all see."""
    start_process_group(torch.device("cpu"), 60)
    require_shared_folder(folder / "common")
    try:
        require_shared_folder(folder / str(rank()), wait=0.2)
    except ValueError as error:
        (folder / f"{rank()}.txt").write_text(str(error))


def test_processes_without_a_common_file_system_are_refused(ranks, tmp_path):
    ranks(3, look_at_own_folder, tmp_path)
    messages = {(tmp_path / f"{rank}.txt").read_text() for rank in range(3)}
    [message] = messages
    assert message.startswith("processes 1, 2 of 3 do not see") and "paths.outputs" in message and "\n" not in message
    assert list((tmp_path / "common").iterdir()) == list((tmp_path / "0").iterdir()) == []


def lose_a_row(folder: Path) -> None:
    """An evaluation in which the last process yields no rows."""
    start_process_group(torch.device("cpu"), 60)
    if rank() == world_size() - 1:
        session.evaluate = lambda *_, **__: iter(())
    try:
        evaluate_tiny([*BASELINE, f"paths.outputs={folder}/outputs", f"paths.cache={folder}/cache"])
    except ValueError as error:
        (folder / f"{rank()}.txt").write_text(str(error))


@pytest.mark.parametrize("world", [1, 2])
def test_an_incomplete_evaluation_is_an_error_on_every_process(ranks, tmp_path, world):
    ranks(None if world == 1 else world, lose_a_row, tmp_path)
    for process in range(world):
        message = (tmp_path / f"{process}.txt").read_text()
        missing = {1: "5 of 5", 2: "2 of 5"}[world]
        assert f"{missing} examples have no prediction" in message
    assert not list(tmp_path.rglob(RESULTS))


def test_evaluation_starts_with_the_configured_timeout(monkeypatch, tmp_path):
    started = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda *_, timeout: started.append(timeout) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate_tiny([*BASELINE, "engine.timeout=7", f"paths.outputs={tmp_path}", f"paths.cache={tmp_path}"])
    assert started == [timedelta(seconds=14)]
