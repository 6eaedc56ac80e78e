"""comet.layout: order of text, compression and readout tokens (spec 1.2), against the reference's columns."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from comet.layout import COMPRESSION, READOUT, TEXT, chunk_layout, compression_token_count
from comet.reference import reference_columns

many = settings(derandomize=True, deadline=None, max_examples=200)
NAMES = {TEXT: "text", COMPRESSION: "compression", READOUT: "readout"}
ROW = st.tuples(
    st.integers(0, 13), st.integers(0, 20), st.booleans(), st.integers(1, 7)
)  # text, earlier, updates, stride


def piece(rows, readouts, spare=0, round_to=1):
    """chunk_layout of rows (text, earlier, updates, stride)."""
    text, earlier, updates, stride = (torch.tensor(values) for values in zip(*rows))
    mask = torch.arange(int(text.max())) < text[:, None]
    compression = (
        max(compression_token_count(earlier, text, updates, stride) for text, earlier, updates, stride in rows) + spare
    )
    return chunk_layout(mask, earlier, updates, stride, compression, readouts, round_to)


def columns_of(layout, row):
    """[(kind, number)] of a row's valid columns, in order."""
    kinds = {}
    for part, name in NAMES.items():
        for number, column in enumerate(layout.columns_of(part)[row].tolist()):
            if layout.mask[row, column]:
                kinds[column] = (name, number)
    assert len(kinds) == int(layout.mask[row].sum())
    return [kinds[column] for column in sorted(kinds)]


def expected(text, earlier, updates, stride, readouts):
    """The columns that a piece adds to its open chunk, numbered from the piece's first."""
    whole = reference_columns(earlier + text, stride, updates, readouts)
    skipped = len(reference_columns(earlier, stride, False, readouts))
    assert whole[:skipped] == reference_columns(earlier, stride, False, readouts)
    new, first = whole[skipped:], {"text": earlier, "compression": earlier // stride, "readout": 0}
    return [(kind, number - first[kind]) for kind, number in new]


@many
@given(
    rows=st.lists(ROW, min_size=1, max_size=4),
    readouts=st.integers(0, 3),
    spare=st.integers(0, 2),
    round_to=st.sampled_from([1, 16]),
)
def test_columns_equal_those_of_the_reference(rows, readouts, spare, round_to):
    """Rows of different lengths, strides and states in one batch."""
    # A chunk ends after a complete group or after new text.
    rows = [
        (text, earlier - earlier % stride if not text else earlier, updates, stride)
        for text, earlier, updates, stride in rows
    ]
    layout = piece(rows, readouts, spare, round_to)
    assert layout.mask.shape[1] % round_to == 0
    for row, (text, earlier, updates, stride) in enumerate(rows):
        assert columns_of(layout, row) == expected(text, earlier, updates, stride, readouts)
        real = int(layout.mask[row].sum())
        assert layout.mask[row, :real].all()  # padding is last


@many
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    stride=st.integers(1, 7),
    readouts=st.integers(0, 3),
    updates=st.booleans(),
)
def test_concatenated_pieces_equal_the_whole_chunk(sizes, stride, readouts, updates):
    together, earlier, compression = [], 0, 0
    for number, size in enumerate(sizes):
        last = updates and number + 1 == len(sizes)
        if last and not size:
            return  # an unfinished group without new text: see the next test
        first = {"text": earlier, "compression": compression, "readout": 0}
        for kind, at in columns_of(piece([(size, earlier, last, stride)], readouts), 0):
            together.append((kind, first[kind] + at))
        compression += compression_token_count(earlier, size, last, stride)
        earlier += size
    assert together == reference_columns(earlier, stride, updates, readouts)


def test_the_compression_token_of_an_unfinished_group_comes_first_without_new_text():
    assert columns_of(piece([(0, 6, True, 4)], 2), 0) == [("compression", 0), ("readout", 0), ("readout", 1)]
    assert columns_of(piece([(0, 8, True, 4)], 2), 0) == [("readout", 0), ("readout", 1)]
    assert columns_of(piece([(0, 6, True, 4), (3, 2, False, 4)], 1), 1) == [
        ("text", 0),
        ("text", 1),
        ("compression", 0),
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
def test_compression_token_count(arguments, count):
    assert compression_token_count(*arguments) == count


def test_a_layout_without_compression_tokens():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    layout = chunk_layout(mask, torch.zeros(2).long(), torch.tensor([True, False]), torch.tensor([2, 2]), 0, 1)
    assert columns_of(layout, 0) == [("text", 0), ("text", 1), ("text", 2), ("readout", 0)]
    assert columns_of(layout, 1) == [("text", 0)]
