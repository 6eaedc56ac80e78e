"""EncodingStore: encoded contexts shared between evaluations."""

import pytest
from test_context_cache import RecordingCompressor, contexts

from breviary.readers.cache import ContextCache, EncodingStore
from breviary.runtime.timing import phase, timed_phases


def states(parts):
    return [part.states[part.mask].flatten().tolist() for part in parts]


def test_a_second_evaluation_encodes_only_new_contexts():
    store, compressor = EncodingStore(), RecordingCompressor()
    for rows in ([[7], [5, 6]], [[8], [7], [5, 6]]):
        cache = ContextCache(store=store)
        encoded = cache.encode(compressor, contexts(*rows))
        assert [encoded.states[b, 0, encoded.mask[b, 0], 0].tolist() for b in range(len(rows))] == rows
        assert not any(cache.reused)  # every context is new to this evaluation
    assert [sorted(rows) for rows in compressor.encoded] == [[[5, 6], [7]], [[8]]]


def test_the_prefix_is_part_of_the_key():
    store, compressor = EncodingStore(), RecordingCompressor()
    store.encode(compressor, contexts([5], prefixes=[[1]]))
    store.encode(compressor, contexts([5], prefixes=[[2]]))
    assert len(compressor.encoded) == 2


def test_a_hit_adds_the_seconds_of_the_first_encoding():
    store, compressor = EncodingStore(), RecordingCompressor()
    store.encode(compressor, contexts([5], [6, 6]))
    store._entries = {key: (one, seconds) for (key, (one, _)), seconds in zip(store._entries.items(), (3.0, 4.0))}
    with timed_phases() as seconds, phase("read"):
        store.encode(compressor, contexts([6, 6], [5], [6, 6]))
    assert seconds["read"] == pytest.approx(11, abs=0.5)


def test_a_full_store_inserts_nothing_and_stays_correct():
    compressor = RecordingCompressor()
    store = EncodingStore(limit_bytes=2 * 13)  # a token: 4 bytes of states, 1 of mask, 8 of ids
    for _ in range(2):
        assert states(store.encode(compressor, contexts([5], [6, 6], [7]))) == [[5], [6, 6], [7]]
    assert compressor.encoded == [[[5], [6, 6], [7]], [[6, 6]]]
