"""comet.layout: where text, compression and readout tokens stand (spec 1.2), against the twin's columns."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from comet.layout import BEACONS, READOUTS, TEXT, beacon_count, chunk_layout
from comet.reference import reference_columns

many = settings(derandomize=True, deadline=None, max_examples=200)
NAMES = {TEXT: "text", BEACONS: "beacon", READOUTS: "readout"}
ROW = st.tuples(
    st.integers(0, 13), st.integers(0, 20), st.booleans(), st.integers(1, 7)
)  # text, before, closes, stride


def piece(rows, readouts, spare=0, round_to=1):
    """chunk_layout of rows (text, before, closes, stride)."""
    text, before, closes, stride = (torch.tensor(values) for values in zip(*rows))
    mask = torch.arange(int(text.max())) < text[:, None]
    beacons = max(beacon_count(before, text, closes, stride) for text, before, closes, stride in rows) + spare
    return chunk_layout(mask, before, closes, stride, beacons, readouts, round_to)


def columns_of(layout, row):
    """[(kind, number)] of a row's real columns, in order."""
    standing = {}
    for part, name in NAMES.items():
        for number, column in enumerate(layout.columns_of(part)[row].tolist()):
            if layout.mask[row, column]:
                standing[column] = (name, number)
    assert len(standing) == int(layout.mask[row].sum())
    return [standing[column] for column in sorted(standing)]


def expected(text, before, closes, stride, readouts):
    """The columns that a piece adds to those of its open chunk, numbered from its own first."""
    whole = reference_columns(before + text, stride, closes, readouts)
    earlier = len(reference_columns(before, stride, False, readouts))
    assert whole[:earlier] == reference_columns(before, stride, False, readouts)
    new, first = whole[earlier:], {"text": before, "beacon": before // stride, "readout": 0}
    return [(kind, number - first[kind]) for kind, number in new]


@many
@given(
    rows=st.lists(ROW, min_size=1, max_size=4),
    readouts=st.integers(0, 3),
    spare=st.integers(0, 2),
    round_to=st.sampled_from([1, 16]),
)
def test_columns_are_the_twin_s(rows, readouts, spare, round_to):
    """Rows of different lengths, strides and states beside each other."""
    # A chunk closes behind a group that has its compression token already, or behind new text.
    rows = [
        (text, before - before % stride if not text else before, closes, stride)
        for text, before, closes, stride in rows
    ]
    layout = piece(rows, readouts, spare, round_to)
    assert layout.mask.shape[1] % round_to == 0
    for row, (text, before, closes, stride) in enumerate(rows):
        assert columns_of(layout, row) == expected(text, before, closes, stride, readouts)
        real = int(layout.mask[row].sum())
        assert layout.mask[row, :real].all()  # padding last


@many
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    stride=st.integers(1, 7),
    readouts=st.integers(0, 3),
    closes=st.booleans(),
)
def test_pieces_put_together_are_the_whole_chunk(sizes, stride, readouts, closes):
    together, before, beacons = [], 0, 0
    for number, size in enumerate(sizes):
        last = closes and number + 1 == len(sizes)
        if last and not size:
            return  # closing an open group without new text: the next test
        first = {"text": before, "beacon": beacons, "readout": 0}
        for kind, at in columns_of(piece([(size, before, last, stride)], readouts), 0):
            together.append((kind, first[kind] + at))
        beacons += beacon_count(before, size, last, stride)
        before += size
    assert together == reference_columns(before, stride, closes, readouts)


def test_an_open_group_that_is_closed_without_new_text_is_compressed_first():
    assert columns_of(piece([(0, 6, True, 4)], 2), 0) == [("beacon", 0), ("readout", 0), ("readout", 1)]
    assert columns_of(piece([(0, 8, True, 4)], 2), 0) == [("readout", 0), ("readout", 1)]
    assert columns_of(piece([(0, 6, True, 4), (3, 2, False, 4)], 1), 1) == [
        ("text", 0),
        ("text", 1),
        ("beacon", 0),
        ("text", 2),
    ]


@pytest.mark.parametrize(
    "arguments, count",
    [
        ((0, 16, True, 4), 4),
        ((0, 16, False, 4), 4),
        ((0, 15, True, 4), 4),
        ((0, 15, False, 4), 3),
        ((3, 1, False, 4), 1),
        ((3, 0, False, 4), 0),
        ((2, 0, True, 4), 1),
        ((4, 0, True, 4), 0),
        ((0, 0, True, 4), 0),
        ((7, 6, True, 4), 3),
    ],
)
def test_compression_tokens_are_counted(arguments, count):
    assert beacon_count(*arguments) == count


def test_without_compression_tokens_the_chunk_is_its_text_and_its_readouts():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    layout = chunk_layout(mask, torch.zeros(2).long(), torch.tensor([True, False]), torch.tensor([2, 2]), 0, 1)
    assert columns_of(layout, 0) == [("text", 0), ("text", 1), ("text", 2), ("readout", 0)]
    assert columns_of(layout, 1) == [("text", 0)]
