"""comet.inference.context_cache: a context is encoded once for all questions, with equal results."""

import pytest
import torch
from comet_helpers import tiny_comet

from breviary.contract import Generation
from comet.inference.context_cache import StreamCache
from comet.inference.stream import Stream
from tests.tiny import disturb

GENERATION = Generation(max_new_tokens=20, min_new_tokens=20)  # beyond the end of a chunk
FORMS = [[], ["compressor.queue_budget=0"], ["compressor.global_slots=0"], ["compressor.backend=scatter"]]


@pytest.fixture(scope="module", params=FORMS, ids=str)
def reader(request):
    reader = tiny_comet(*request.param, dtype="float64").eval()
    disturb(reader)
    return reader


def nll_and_answers(reader, batch):
    with torch.no_grad():
        return reader.loss(batch).nll, [one.ids for one in reader.decode(batch, GENERATION)]


def test_cached_contexts_do_not_change_results(reader, ragged_examples, collate):
    """Ragged contexts, one of them twice in a batch; batches with some, all or no contexts in the cache; one whose
    contexts come from two streams.
    """
    batches = [collate([ragged_examples[i] for i in rows]) for rows in ((3, 0, 3, 4), (0, 1, 2), (1, 4, 0), (2, 2))]
    plain = [nll_and_answers(reader, batch) for batch in batches]
    reader.context_cache = StreamCache(8)
    reused = []
    for batch, (nll, ids) in zip(batches, plain):
        actual = reader.loss(batch).nll
        reused.append(reader.context_cache.reused)
        torch.testing.assert_close(actual, nll, rtol=1e-9, atol=1e-9)
        assert [one.ids for one in reader.decode(batch, GENERATION)] == ids
        assert reader.context_cache.reused == [True] * len(batch)
    reader.context_cache = None
    assert reused == [[False, False, True, False], [True, False, False], [True, True, True], [True, True]]


def test_each_context_is_encoded_once(reader, ragged_examples, collate, monkeypatch):
    rows_read, original = [], Stream.read

    def counting(stream, ids, lengths):
        rows_read.append(len(lengths))
        return original(stream, ids, lengths)

    monkeypatch.setattr(Stream, "read", counting)
    batch = collate([ragged_examples[i] for i in (1, 3, 1, 3, 1)])
    cache = StreamCache(4)
    cache.streams(reader, batch)
    cache.streams(reader, batch.rows([1, 0]))
    assert rows_read == [2]


def test_the_least_recently_used_context_is_evicted_first(reader, ragged_examples, collate):
    cache = StreamCache(2)
    for row, reused in ((0, False), (1, False), (0, True), (2, False), (0, True), (1, False)):
        cache.streams(reader, collate([ragged_examples[row]]))
        assert cache.reused == [reused], row
