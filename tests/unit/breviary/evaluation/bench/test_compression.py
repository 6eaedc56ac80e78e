"""Benchmarks: the rows that the encoder runs, and the measurements of a compression."""

import pytest

from breviary.evaluation.bench.answers import has_ratio
from breviary.evaluation.bench.compression import QUESTION, _encoder_rows, measure_compression
from breviary.evaluation.timing import random_batch, reader_from_overrides

SMALL = ["backbone=tiny", "backbone.layers=3", "compressor.encoder_layers=2"]


@pytest.mark.parametrize(
    "overrides, shapes",
    [
        (["compressor=comi"], [(1, 90)]),  # context and question in one row
        (["compressor=comi", "compressor.segment_size=32"], [(3, 32), (1, QUESTION)]),  # the last segment is padded
        (["compressor=ram", "compressor.segment_size=16"], [(5, 16), (1, QUESTION)]),
    ],
)
def test_the_floor_runs_the_rows_that_the_compressor_encodes(overrides, shapes):
    reader = reader_from_overrides(*overrides, *SMALL)
    batch = random_batch(reader, 90, QUESTION)
    assert [tuple(ids.shape) for ids in _encoder_rows(reader.compressor.context_encoder, batch)] == shapes


@pytest.mark.parametrize("join", ["input", "depth"])
def test_a_compression_is_measured_against_its_floor(join):
    row = measure_compression(["compressor=ram", *SMALL], join, length=90, ratio=4, runs=1)
    assert (row["join"], row["tokens"], row["ratio"]) == (join, 90, 4)
    assert row["time_ratio"] == pytest.approx(row["ours_s"] / row["floor_s"])


def test_readers_without_a_ratio():
    assert has_ratio(["compressor=comi"]) and has_ratio(["compressor=truncate"])
    assert not has_ratio(["compressor=comet"]) and not has_ratio(["compressor=no_context"])
