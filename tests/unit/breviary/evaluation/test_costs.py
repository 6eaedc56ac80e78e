"""Reading is divided by the contexts newly read, peaks are of one reader, provenance is of the start."""

from collections import Counter
from dataclasses import replace

import pytest

from breviary.contract import Generation
from breviary.evaluation import loop, session
from breviary.evaluation.loop import evaluate
from breviary.evaluation.results import summarise
from breviary.evaluation.table import COST_COLUMNS, markdown_table, table_row
from breviary.readers.cache_selection import CacheSelection
from breviary.readers.compressed import CompressedReader
from breviary.runtime import timing
from data.collate import Collator
from data.invented_facts import InventedFacts
from data.metrics import scores
from data.prompts import Prompt
from data.tokenised import tokenise_split
from tests.tiny import compose_tiny, evaluate_tiny, tiny_reader

READERS = {
    "full_context": ["compressor=full_context"],
    "mean_pool": ["compressor=mean_pool"],
    "comi": ["compressor=comi", "compressor.join=input"],
    "comet": ["compressor=comet"],
    "snapkv": ["compressor=snapkv", "compressor.question=known"],
    "kvzip": ["compressor=kvzip"],
}


@pytest.fixture(scope="module")
def items(tokenizer):
    """Two contexts, the first with three questions, the second with one."""
    first, second = InventedFacts(facts=2).examples("test")[:2]
    again = [replace(first, id=f"again-{i}", question=f"Which {i}?") for i in range(2)]
    return tokenise_split([first, *again, second], tokenizer, Prompt(), None, None)


@pytest.fixture
def clock(monkeypatch):
    """Time in units of work: a decoder or encoder layer that runs takes one second; nothing else takes any."""
    now = Counter()

    def tick(self, states, layers, *rest, **named):
        now["s"] += len(layers)
        return run(self, states, layers, *rest, **named)

    from breviary.backbones.stack import Stack

    run = Stack.run
    monkeypatch.setattr(Stack, "run", tick)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(now["s"]))


def predictions(name, items, tokenizer, size):
    reader = tiny_reader(compose_tiny([*READERS[name], "backbone.layers=2", "backbone.width=32"]))
    batches = evaluate(reader, items, Collator(tokenizer.pad_token_id), scores, Generation(max_new_tokens=2), size)
    return {row["id"]: row for batch in batches for row in batch}


@pytest.mark.parametrize("size", [1, 4])
def test_full_context_is_read_once_for_each_context(items, tokenizer, clock, size):
    """Both contexts are read by 2 layers in one pass, or in a pass each."""
    rows = predictions("full_context", items, tokenizer, size)
    new = [row["times"] for row in rows.values() if not row["context_reused"]]
    assert len(new) == 2 and all(times["compress_ms"] == 0 for times in new)
    assert sorted(times["read_ms"] for times in new) == ([1000, 1000] if size == 4 else [2000, 2000])
    assert all(row["times"]["read_ms"] == 0 for row in rows.values() if row["context_reused"])
    assert summarise([*rows.values()], None)["times"]["read_ms"] == (1000 if size == 4 else 2000)
    assert all(row["times"]["prefill_ms"] > 0 for row in rows.values())


@pytest.mark.parametrize("name", READERS)
def test_every_reader_states_the_same_phases(items, tokenizer, name):
    rows = predictions(name, items, tokenizer, 2)
    for row in rows.values():
        assert row["times"].keys() == {f"{phase}_ms" for phase in loop.PHASES}
        assert (row["times"]["read_ms"] > 0) is not row["context_reused"]


@pytest.mark.parametrize(("name", "question"), [("snapkv", "known"), ("kvzip", "unknown")])
def test_eviction_reads_each_context_once(items, tokenizer, monkeypatch, name, question):
    """In both modes: a known question only selects anew, an unknown one costs nothing but its own prefill."""
    encoded, encode = [], CacheSelection.encode
    monkeypatch.setattr(CacheSelection, "encode", lambda self, c: encoded.extend(c.ids) or encode(self, c))
    rows = predictions(name, items, tokenizer, 2)
    assert len(encoded) == summarise([*rows.values()], None)["contexts_read"] == 2 < len(rows)
    assert all((row["times"]["compress_ms"] > 0) is (question == "known") for row in rows.values())
    per_question = [row["document_bytes"] / row["memory_bytes"] for row in rows.values()]
    assert all(3 < ratio < 6 if question == "known" else 1 <= ratio < 1.2 for ratio in per_question)


def test_results_before_schema_3_show_what_they_measured():
    former = {"encode_ms": 3.0, "compress_ms": 1.0, "prefill_ms": 2.0, "decode_ms": 5.0}
    results = {"reader": "x", "n": 1, "metrics": {}, "truncated": 0, "run": "r", "times": former}
    results |= dict.fromkeys(("requested_ratio", "effective_ratio", "memory_slots", "memory_bytes"))
    row = table_row(results)
    assert row["read_ms"] is None and row["encode_ms"] == 3
    assert "encode ms | read ms | compress ms" in markdown_table([row])
    assert "encode" not in markdown_table([table_row(results | {"times": {"read_ms": 1.0}})])
    assert len(COST_COLUMNS) == 10


BASELINE = ["compressor=full_context", "reader=full_context", "backbone.layers=2", "dataset.test_size=2"]
BASELINE += ["generation.max_new_tokens=2", "baselines=[no_context]"]


def test_the_peak_of_memory_is_that_of_one_reader(tmp_path, monkeypatch):
    """Full context answers while 400 MB are held, no context after they are freed."""
    answer, held = CompressedReader.answer_with_loss, []

    def answer_holding(self, batch, generation):
        if self.requested_ratio == 1 and not held:
            held.append(len(bytearray(b"\1" * 400_000_000)))
        return answer(self, batch, generation)

    monkeypatch.setattr(CompressedReader, "answer_with_loss", answer_holding)
    full, none = evaluate_tiny([*BASELINE, f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}"])
    assert full["peak_memory_of"] == none["peak_memory_of"] == "reader"
    assert full["peak_memory_bytes"] - none["peak_memory_bytes"] > 300_000_000


def test_provenance_is_that_of_the_start(tmp_path, monkeypatch):
    def state(commit):
        return {"commit": commit, "dirty": False, "versions": {"torch": "1"}, "hardware": {"cpu": "x"}}

    monkeypatch.setattr(session, "environment", lambda: state("first"))
    evaluated = session.evaluate

    def commit_meanwhile(*arguments, **named):
        monkeypatch.setattr(session, "environment", lambda: state("second"))
        monkeypatch.setattr("breviary.evaluation.results.environment", lambda: state("second"))
        yield from evaluated(*arguments, **named)

    monkeypatch.setattr(session, "evaluate", commit_meanwhile)
    words = [*BASELINE, "baselines=[]", f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}"]
    [results] = evaluate_tiny(words)
    assert results["commit"] == "first" and results["versions"] == {"torch": "1"} and "continued" not in results


def test_a_continued_evaluation_names_both_commits(tmp_path, monkeypatch):
    def state(commit):
        return {"commit": commit, "dirty": False, "versions": {}, "hardware": {}}

    def killed(*_, **__):
        raise KeyboardInterrupt

    words = [*BASELINE, "baselines=[]", f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}"]
    monkeypatch.setattr(session, "environment", lambda: state("first"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session, "evaluate", killed)
        evaluate_tiny(words)
    monkeypatch.setattr(session, "environment", lambda: state("second"))
    [results] = evaluate_tiny(words)
    assert results["commit"] == "first" and results["continued"] == [state("second")]


def test_peak_memory_is_that_of_the_process_that_needed_most(monkeypatch):
    """Ranks hold examples of other lengths; rank 0, which writes the results, may hold the short ones."""
    monkeypatch.setattr(session, "peak_memory_bytes", lambda: 100)
    monkeypatch.setattr(session, "gather_rows", lambda rows: [*rows, 700, 300])
    assert session.peak_of_all_ranks(True) == {"peak_memory_bytes": 700, "peak_memory_of": "reader"}
    assert session.peak_of_all_ranks(False)["peak_memory_of"] == "process"
