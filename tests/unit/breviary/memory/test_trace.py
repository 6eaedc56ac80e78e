"""Spans of a context from the trace of its compression."""

from breviary.memory.trace import TokenSpan, spans_from_trace
from tests.traces import ram_trace


def test_spans_of_segments():
    trace = ram_trace([False, True, False], [0.1, 0.9, -0.2], tokens=8, size=3)
    assert spans_from_trace(8, trace, 3) == (
        TokenSpan("skimmed", 3, 1, relevance=0.1),
        TokenSpan("kept", 3, 2, relevance=0.9),
        TokenSpan("skimmed", 2, 3, relevance=-0.2),
    )
    dropped = spans_from_trace(8, ram_trace([False, True, False], [0.1, 0.9, -0.2], 8, 3, dropped=True), 3)
    assert [span.kind for span in dropped] == ["dropped", "kept", "dropped"]


def test_groups_are_numbered_across_rows():
    trace = {"groups": [[0, 0, 1], [0, 1, -1]], "weights": [[0.25, 0.75, 1.0], [1.0, 1.0, 0.0]]}
    assert spans_from_trace(5, trace) == (
        TokenSpan("group", 2, 1, 2, weights=(0.25, 0.75)),
        TokenSpan("group", 1, 2, 1, weights=(1.0,)),
        TokenSpan("group", 1, 3, 1, weights=(1.0,)),
        TokenSpan("group", 1, 4, 1, weights=(1.0,)),
    )


def test_a_group_may_be_interrupted_and_tokens_may_have_no_group():
    spans = spans_from_trace(5, {"groups": [[0, 1, 0, -1, -1]], "weights": None})
    assert spans == (
        TokenSpan("group", 1, 1, 2),
        TokenSpan("group", 1, 2, 1),
        TokenSpan("group", 1, 1, 2),
        TokenSpan("dropped", 2),
    )


def test_spans_of_kept_tokens_of_an_unknown_trace_and_of_an_empty_context():
    assert spans_from_trace(4, {"kept": [True, True, False, True, False]}) == (
        TokenSpan("kept", 2),
        TokenSpan("dropped", 1),
        TokenSpan("kept", 1),
    )
    assert spans_from_trace(4, {"other": 1}) == (TokenSpan("whole", 4),)
    assert spans_from_trace(0, {"groups": [[-1]], "kept": [False]}) == ()


def test_segments_that_are_cut_at_the_budget():
    trace = {"relevance": [0.5, 0.1], "kept_share": [1.0, 1.0, 1.0, 1.0, 0.0, 9.0]}
    spans = spans_from_trace(5, trace, segment_size=3)
    expected = [("kept", 3, 1, 0.5), ("kept", 1, 2, 0.1), ("dropped", 1, 2, 0.1)]
    assert [(span.kind, span.tokens, span.number, span.relevance) for span in spans] == expected
