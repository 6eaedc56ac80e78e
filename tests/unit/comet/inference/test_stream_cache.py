"""comet.inference.context_cache: a context is read once, whatever is asked, and nothing else changes."""

import pytest
import torch
from comet_helpers import comet

from breviary.contract import Generation
from comet.inference.context_cache import StreamCache
from comet.inference.stream import Stream
from tests.tiny import disturb

ASKED = Generation(max_new_tokens=20, min_new_tokens=20)  # beyond the end of a chunk
FORMS = [[], ["compressor.queue_budget=0"], ["compressor.global_slots=0"], ["compressor.backend=scatter"]]


@pytest.fixture(scope="module", params=FORMS, ids=str)
def reader(request):
    reader = comet(*request.param, dtype="float64").eval()
    disturb(reader)
    return reader


def outcome(reader, batch):
    with torch.no_grad():
        return reader.loss(batch).nll, [one.ids for one in reader.decode(batch, ASKED)]


def test_what_is_asked_of_kept_contexts_is_answered_as_of_contexts_read_anew(reader, ragged_examples, collate):
    """Ragged contexts, one asked twice in a batch, batches that find some, all or none kept, one that goes on from two streams."""
    batches = [collate([ragged_examples[i] for i in rows]) for rows in ((3, 0, 3, 4), (0, 1, 2), (1, 4, 0), (2, 2))]
    plain = [outcome(reader, batch) for batch in batches]
    reader.context_cache = StreamCache(8)
    reused = []
    for batch, (nll, ids) in zip(batches, plain):
        found = reader.loss(batch).nll
        reused.append(reader.context_cache.reused)
        torch.testing.assert_close(found, nll, rtol=1e-9, atol=1e-9)
        assert [one.ids for one in reader.decode(batch, ASKED)] == ids
        assert reader.context_cache.reused == [True] * len(batch)
    reader.context_cache = None
    assert reused == [[False, False, True, False], [True, False, False], [True, True, True], [True, True]]


def test_each_context_is_read_once(reader, ragged_examples, collate, monkeypatch):
    read, plain = [], Stream.read

    def counting(stream, ids, lengths):
        read.append(len(lengths))
        return plain(stream, ids, lengths)

    monkeypatch.setattr(Stream, "read", counting)
    batch = collate([ragged_examples[i] for i in (1, 3, 1, 3, 1)])
    cache = StreamCache(4)
    cache.opened(reader, batch)
    cache.opened(reader, batch.rows([1, 0]))
    assert read == [2]


def test_the_least_recently_asked_context_goes_first(reader, ragged_examples, collate):
    cache = StreamCache(2)
    for row, reused in ((0, False), (1, False), (0, True), (2, False), (0, True), (1, False)):
        cache.opened(reader, collate([ragged_examples[row]]))
        assert cache.reused == [reused], row
