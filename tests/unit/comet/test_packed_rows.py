"""Texts of a batch packed into rows: the results of each text equal those of the text alone."""

import pytest
import torch
from comet_helpers import tiny_comet
from hypothesis import given
from hypothesis import strategies as st

from comet.chunked_text import pack_rows


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([4, 8])), min_size=1, max_size=12))
def test_every_text_is_in_one_row_and_no_row_is_longer_than_the_longest_text(texts):
    chunks, strides = zip(*texts)
    rows = pack_rows(chunks, strides)
    assert sorted(text for row in rows for text in row) == list(range(len(texts)))
    assert all(sum(chunks[text] for text in row) <= max(chunks) for row in rows)
    assert all(len({strides[text] for text in row}) == 1 for row in rows)


@pytest.mark.parametrize(
    "chunks, rows",
    [([4, 1, 3, 2, 2], [[0], [1, 2], [3, 4]]), ([2, 2], [[0], [1]]), ([0, 3, 0], [[0, 1, 2]]), ([0, 0], [[0, 1]])],
)
def test_first_fit_decreasing(chunks, rows):
    assert sorted(pack_rows(chunks, [4] * len(chunks))) == rows


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
def test_loss_and_gradients_equal_those_of_one_text_per_row(ragged, overrides, monkeypatch):
    reader, results = tiny_comet(*overrides).train(), []
    for step in range(20):  # random chunks and strides leave room in some steps
        reader.begin_step(step, 0)
        if len(reader.chunk_batch(ragged).text.ids) < len(ragged):
            break
    shared = len(reader.chunk_batch(ragged).text.ids)
    assert shared < len(ragged)
    for rows in (shared, len(ragged)):
        assert len(reader.chunk_batch(ragged).text.ids) == rows
        nll = reader.loss(ragged).nll
        results.append(
            [nll, *torch.autograd.grad(nll.sum(), [weight for weight in reader.parameters() if weight.requires_grad])]
        )
        monkeypatch.setattr("comet.batching.pack_rows", lambda chunks, strides: [[text] for text in range(len(chunks))])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
