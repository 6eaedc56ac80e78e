"""The evaluation loop: complete rows, the same whatever the order, the batches, the processes and the interruptions."""

from dataclasses import replace

import pytest
import torch

from breviary.contract import Generation
from breviary.evaluation.loop import PHASES, context_batches, evaluate
from breviary.evaluation.results import PREDICTION_KEYS, PREDICTIONS, Predictions
from data.collate import Collator
from data.invented_facts import InventedFacts
from data.metrics import scores
from data.prompts import Prompt
from data.tokenised import tokenise_split
from tests.tiny import compose_tiny, disturb, row_ids, tiny_reader

ASKED = Generation(max_new_tokens=5)


@pytest.fixture(scope="module", params=["depth", "input"])
def reader(request):
    reader = tiny_reader(compose_tiny(["compressor=comi", f"compressor.join={request.param}"]))
    disturb(reader)
    return reader


@pytest.fixture(scope="module")
def items(tokenizer):
    """Nine questions on six contexts of 1 to 4 facts; those on one context do not stand together."""
    contexts = [InventedFacts(facts=1 + i % 4).examples("test")[i] for i in range(6)]
    again = [replace(example, id=f"{example.id}-again", question="Which ship?") for example in contexts[:3]]
    return tokenise_split([*contexts, *again], tokenizer, Prompt(), None, None)


def rows_of(reader, items, tokenizer, batch_size=4, **kwargs):
    batches = evaluate(reader, items, Collator(tokenizer.pad_token_id), scores, ASKED, batch_size, **kwargs)
    return [row for rows in batches for row in rows]


def same(rows, others):
    """Equal rows up to times, context reuse and rounding, whatever their order."""
    by_id = {row["id"]: row for row in others}
    assert sorted(by_id) == sorted(row["id"] for row in rows) and len(by_id) == len(rows) == len(others)
    for row in rows:
        other = by_id[row["id"]]
        assert row["nll"] == pytest.approx(other["nll"], rel=1e-5)
        # Without a context cache, which equal calls do not use, no document is held.
        unmeasured = {"document_bytes"} if None in (row["document_bytes"], other["document_bytes"]) else set()
        for key in row.keys() - {"nll", "times", "context_reused"} - unmeasured:
            assert row[key] == other[key], key


# ------------------------------------------------------------------ batches


def test_questions_on_one_context_stand_together():
    found = context_batches([5, 3, 5, 9, 3], ["a", "b", "a", "c", "b"], 2)
    assert found == [[3, 0], [2, 1], [4]]


def test_the_longest_contexts_come_first():
    """So that an evaluation that does not fit into memory fails at once."""
    lengths = [7, 1, 5, 9, 3, 2]
    order = [i for batch in context_batches(lengths, list("abcdef"), 2) for i in batch]
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)


def test_every_index_once():
    found = context_batches([1] * 10, [str(i % 3) for i in range(10)], 3)
    assert sorted(i for batch in found for i in batch) == list(range(10)) and max(map(len, found)) == 3
    assert context_batches([], [], 3) == []


# ------------------------------------------------------------------ rows


def test_rows_are_complete_and_right(reader, items, tokenizer):
    rows = rows_of(reader, items, tokenizer)
    assert {row["id"] for row in rows} == {example.id for example in items.examples} and len(rows) == 9
    collate = Collator(tokenizer.pad_token_id)
    place = {example.id: i for i, example in enumerate(items.examples)}
    reader.eval()
    for row in rows:
        assert row.keys() >= PREDICTION_KEYS
        example = items.examples[place[row["id"]]]
        [gold] = [document.start for document in example.documents if document.is_gold]
        assert row["gold_position"] == gold / len(example.context) < 1
        assert row["times"].keys() == {f"{phase}_ms" for phase in PHASES}
        assert (row["times"]["read_ms"] > 0) is not row["context_reused"]
        assert all(milliseconds > 0 for phase, milliseconds in row["times"].items() if phase != "read_ms")
        alone = collate([items[place[row["id"]]]])
        with torch.no_grad():
            loss = reader.loss(alone)
        assert row["nll"] == pytest.approx(loss.nll.item(), rel=1e-5)
        assert row["answer_tokens"] == len(row_ids(alone, 0, "answer"))
        assert row["context_tokens"] == len(row_ids(alone, 0, "context")) == items.lengths[place[row["id"]]]
        assert row["memory_slots"] == loss.slots.item()
        assert row["prediction"] == reader.answer(alone, ASKED)[0]
        assert row["scores"] == scores(row["prediction"], row["references"]) and row["truncated"] is False
    reader.train()


def test_a_context_asked_twice_is_read_once(reader, items, tokenizer):
    rows = {row["id"]: row for row in rows_of(reader, items, tokenizer, batch_size=2)}
    again = [id for id in rows if id.endswith("-again")]
    assert [rows[id]["context_reused"] for id in again] == [True] * 3
    assert not any(row["context_reused"] for id, row in rows.items() if id not in again)


def test_cut_contexts_are_marked(reader, tokenizer):
    examples = [InventedFacts(facts=n).examples("test")[0] for n in (1, 3)]
    examples[1] = replace(examples[1], id="long")
    items = tokenise_split(examples, tokenizer, Prompt(), 20, None)
    rows = {row["id"]: row for row in rows_of(reader, items, tokenizer)}
    assert rows["long"]["truncated"] is True and rows["long"]["context_tokens"] == 20


@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_results_do_not_depend_on_the_batches(reader, items, tokenizer, batch_size):
    same(rows_of(reader, items, tokenizer, batch_size), rows_of(reader, items, tokenizer))


def test_results_do_not_depend_on_the_order(reader, items, tokenizer):
    turned = tokenise_split(items.examples[::-1], tokenizer, Prompt(), None, None)
    same(rows_of(reader, turned, tokenizer), rows_of(reader, items, tokenizer))


# ------------------------------------------------------------------ interruptions and processes


def test_killed_and_continued_equals_uninterrupted(reader, items, tokenizer, tmp_path):
    whole = rows_of(reader, items, tokenizer)
    first = Predictions(tmp_path / PREDICTIONS)
    for rows in evaluate(reader, items, Collator(tokenizer.pad_token_id), scores, ASKED, 4):
        first.append(rows)
        break
    with open(tmp_path / PREDICTIONS, "ab") as file:
        file.write(b'{"id": "half a li')
    rest = Predictions(tmp_path / PREDICTIONS)
    assert len(rest.done) == 4
    rest.append(rows_of(reader, items, tokenizer, done=frozenset(rest.done)))
    same(Predictions(tmp_path / PREDICTIONS).rows, whole)


def test_nothing_left_to_answer(reader, items, tokenizer):
    assert rows_of(reader, items, tokenizer, done=frozenset(example.id for example in items.examples)) == []


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_questions_out(reader, items, tokenizer, world):
    parts = [rows_of(reader, items, tokenizer, batch_size=2, rank=rank, world_size=world) for rank in range(world)]
    same([row for part in parts for row in part], rows_of(reader, items, tokenizer))


@pytest.mark.parametrize("world", [2, 4])
def test_equal_calls_repeat_a_batch_and_drop_its_rows(reader, items, tokenizer, world):
    calls, parts = [], []
    handle = reader.decoder.final_norm.register_forward_hook(lambda *_: calls.append(1))
    for rank in range(world):
        parts.append(rows_of(reader, items, tokenizer, batch_size=2, rank=rank, world_size=world, equal_calls=True))
        calls.append(0)
    handle.remove()
    made = "".join(map(str, calls)).split("0")[:-1]
    assert len(made) == world and len(set(made)) == 1 and made[0]
    same([row for part in parts for row in part], rows_of(reader, items, tokenizer))


def test_the_reader_is_left_as_it_was(reader, items, tokenizer):
    reader.train()
    rows_of(reader, items, tokenizer)
    assert reader.training and reader.compressor.training
    assert reader.context_cache is None and reader.all_steps is False

    def broken(prediction, references, example):
        raise RuntimeError("scores fail")

    with pytest.raises(RuntimeError, match="scores fail"):
        list(evaluate(reader, items, Collator(tokenizer.pad_token_id), broken, ASKED, 4))
    assert reader.training and reader.context_cache is None


def test_drawn_ratios_and_dropout_are_off(items, tokenizer):
    reader = tiny_reader(
        compose_tiny(
            ["compressor=mean_pool", "compressor.ratio=2", "compressor.ratio_choices=[8]", "decoder.lora_dropout=0.5"]
        )
    )
    reader.begin_step(0, 0)
    rows = rows_of(reader, items, tokenizer)
    assert all(row["memory_slots"] == -(-row["context_tokens"] // 2) for row in rows)
    same(rows, rows_of(reader, items, tokenizer))
