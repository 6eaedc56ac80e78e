"""Warnings about settings that leave nothing to measure."""

from types import SimpleNamespace

import pytest

from breviary.config.budget_notes import budget_notes

RAM = {"keep": "topk", "segment_size": 10, "budget": "nominal"}


def items(lengths, cut=0, lost=0):
    return SimpleNamespace(lengths=lengths, num_truncated=cut, num_gold_lost=lost)


@pytest.mark.parametrize(
    "settings, lengths, expected",
    [
        ({"ratio": 64}, [50, 40, 90], "compressor.ratio=64 is above the length of 2 of 3 contexts"),
        ({"ratio": None, "slots": 50}, [50, 40, 90], "compressor.slots=50 is at least the length of 2 of 3 contexts"),
        ({"ratio": 4, "slots": 50}, [10] * 3, "compressor.slots=50"),  # a number of slots counts, where both are set
        ({"ratio": 8}, [8, 9], None),
        ({"ratio": 8}, [5] + [100] * 20, None),  # a few short contexts are usual
        ({"ratio": 8}, [0, 100], None),
        ({"ratio": 64, "keep": "all"}, [50], None),
        ({"ratio": 64, "keep": "middle"}, [50], "compressor.ratio=64"),
        ({}, [50], None),
        (
            {**RAM, "ratio": 4},
            [50] * 9 + [30],
            "compressor.ratio=4 is above the number of segments (compressor.segment_",
        ),
        ({**RAM, "ratio": 4}, [31], None),
        ({**RAM, "ratio": 4, "keep": "none"}, [30], None),  # skims only, as asked
        ({**RAM, "ratio": 64, "budget": "strict"}, [50], "at most one slot a segment is left of each"),
    ],
)
def test_a_memory_that_is_no_compression(settings, lengths, expected):
    notes = budget_notes(items(lengths), settings)
    assert [expected in note and note.startswith("warning: ") for note in notes] == [True] * (expected is not None)


def test_all_contexts_cut():
    assert budget_notes(items([100, 100], cut=1), {"ratio": 4}) == []
    [note] = budget_notes(items([100, 90], cut=2, lost=1), {"ratio": 4})
    assert note.startswith(
        "warning: all 2 contexts were cut, to at most 100 tokens, and 1 lost their gold; see limits."
    )
