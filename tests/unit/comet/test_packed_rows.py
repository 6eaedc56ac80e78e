"""Texts of a batch that share rows: fewer rows idle, every text's numbers as if it were alone."""

import pytest
import torch
from comet_helpers import comet
from hypothesis import given
from hypothesis import strategies as st

from comet.text import shared_rows


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([4, 8])), min_size=1, max_size=12))
def test_every_text_has_one_row_which_is_no_longer_than_the_longest_text(texts):
    chunks, strides = zip(*texts)
    rows = shared_rows(chunks, strides)
    assert sorted(text for row in rows for text in row) == list(range(len(texts)))
    assert all(sum(chunks[text] for text in row) <= max(chunks) for row in rows)
    assert all(len({strides[text] for text in row}) == 1 for row in rows)


@pytest.mark.parametrize(
    "chunks, rows",
    [([4, 1, 3, 2, 2], [[0], [1, 2], [3, 4]]), ([2, 2], [[0], [1]]), ([0, 3, 0], [[0, 1, 2]]), ([0, 0], [[0, 1]])],
)
def test_rows_are_few(chunks, rows):
    assert sorted(shared_rows(chunks, [4] * len(chunks))) == rows


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["compressor.truncate_every=1"],
        ["compressor.widest_stride=16"],
        ["compressor.supervise=text", "compressor.strategy=random"],
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_a_row_for_each_text(ragged, overrides, monkeypatch):
    reader, found = comet(*overrides).train(), []
    for step in range(20):  # chunks and strides that are drawn leave room in some steps
        reader.begin_step(step, 0)
        if len(reader._text(ragged)[0].ids) < len(ragged):
            break
    shared = len(reader._text(ragged)[0].ids)
    assert shared < len(ragged)
    for rows in (shared, len(ragged)):
        assert len(reader._text(ragged)[0].ids) == rows
        nll = reader.loss(ragged).nll
        found.append(
            [nll, *torch.autograd.grad(nll.sum(), [weight for weight in reader.parameters() if weight.requires_grad])]
        )
        monkeypatch.setattr("comet.model.shared_rows", lambda chunks, strides: [[text] for text in range(len(chunks))])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
