"""What one evaluation read, for the next."""

import pytest
from test_context_cache import Counting, contexts

from breviary.readers.cache import ContextCache, EncodingStore
from breviary.runtime.timing import phase, timed_phases


def states(parts):
    return [part.states[part.mask].flatten().tolist() for part in parts]


def test_a_further_evaluation_reads_only_what_none_before_it_read():
    store, compressor = EncodingStore(), Counting()
    for rows in ([[7], [5, 6]], [[8], [7], [5, 6]]):
        cache = ContextCache(store=store)
        encoded = cache.encode(compressor, contexts(*rows))
        assert [encoded.states[b, 0, encoded.mask[b, 0], 0].tolist() for b in range(len(rows))] == rows
        assert not any(cache.reused)  # within this evaluation each is new
    assert [sorted(asked) for asked in compressor.asked] == [[[5, 6], [7]], [[8]]]


def test_the_prefix_belongs_to_the_context():
    store, compressor = EncodingStore(), Counting()
    store.encode(compressor, contexts([5], prefixes=[[1]]))
    store.encode(compressor, contexts([5], prefixes=[[2]]))
    assert len(compressor.asked) == 2


def test_what_was_read_before_takes_as_long_again():
    store, compressor = EncodingStore(), Counting()
    store.encode(compressor, contexts([5], [6, 6]))
    store._entries = {key: (one, seconds) for (key, (one, _)), seconds in zip(store._entries.items(), (3.0, 4.0))}
    with timed_phases() as seconds, phase("encode"):
        store.encode(compressor, contexts([6, 6], [5], [6, 6]))
    assert seconds["encode"] == pytest.approx(11, abs=0.5)


def test_beyond_the_limit_nothing_more_is_kept_and_all_is_right():
    compressor = Counting()
    store = EncodingStore(limit_bytes=2 * 13)  # a token: 4 bytes of states, 1 of mask, 8 of ids
    for _ in range(2):
        assert states(store.encode(compressor, contexts([5], [6, 6], [7]))) == [[5], [6, 6], [7]]
    assert compressor.asked == [[[5], [6, 6], [7]], [[6, 6]]]
