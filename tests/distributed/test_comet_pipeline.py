"""A text whose chunks several processes read is what one process reads: loss, every gradient, and the messages for it.

float64: the same numbers in another order of summing. A case is read by 1, 2 and 4 ranks, by both schedules.
"""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch
from pipeline_cases import (
    CASES,
    LAYERS,
    SLEEP,
    run_alone,
    run_benchmark,
    run_cases,
    run_out_of_step,
    run_side_by_side,
    run_timed,
    run_without_gradients,
)

from comet.pipeline.monitor import BACKWARD, FORWARD, spans_of
from comet.pipeline.schedule import cells, owners, simulate
from scripts.bench import comet_pipeline

RANKS, SCHEDULES = (1, 2, 4), ("contiguous", "cyclic")
# float32 and bfloat16: sums over chunks in another order. Autocast adds up a weight's gradient over the chunks of a process
# in bfloat16: up to four roundings of 2^-8. The messages round nothing.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 4 * 2**-8}
# Chunks that are read: those up to the last supervised place, of each text.
READ = {
    "nine": [9],
    "nine_recomputed": [9],
    "answer_in_the_last_chunk": [9],
    "answer_in_the_middle": [6],
    "two_chunks": [2],
    "one_chunk": [1],
    "nothing_asked": [0],
    "ragged_rows": [7],
    "ragged_rows_recomputed": [7],
    "truncated": [7],
    "two_batches": [9, 7],
    "two_losses": [9, 4],
    "memory_alone_trained": [9],
    "packed": [6],
}
SILENT = ("no_memory",)  # nothing is carried


@pytest.fixture(scope="session")
def found(ranks, tmp_path_factory):
    """found(R): {(case, schedule): deviations}; read once."""
    folder, kept = tmp_path_factory.mktemp("pipelines"), {}

    def load(count):
        if not kept:
            ranks(None, run_alone, folder)
        if count not in kept:
            kept[count] = AssertionError(f"{count} ranks failed in an earlier test")
            ranks(None if count == 1 else count, run_cases, count, folder)
            kept[count] = torch.load(folder / f"pipeline{count}.pt")
        if isinstance(kept[count], AssertionError):
            raise kept[count]
        return kept[count]

    return load


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("count", RANKS)
def test_ranks_together_read_what_one_reads(found, count, schedule, case):
    one = found(count)[case, schedule]
    print(count, schedule, case, one)  # pytest -rP shows it
    tolerance = TOLERANCE[CASES[case].dtype]
    assert one["loss"] < tolerance and one["gradient"] < tolerance
    assert one["value"] > 0 or case == "nothing_asked"


def test_the_cases_reach_every_weight(found):
    """Otherwise equal gradients would say nothing."""
    for case in ("nine", "ragged_rows", "packed", "nine_recomputed", "scatter", "two_losses"):
        assert found(1)[case, "cyclic"]["still"] == [], case


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("count", RANKS)
def test_one_message_for_each_layer_and_border_each_way(found, count, schedule, case):
    """Also where activations are recomputed: nothing is sent twice."""
    borders = 0
    for chunks in READ.get(case, [4]):
        owner = owners(chunks, count, schedule)
        borders += sum(one != other for one, other in zip(owner, owner[1:]))
    expected = 0 if case in SILENT else LAYERS * borders
    assert found(count)[case, schedule]["sent"] == [expected, expected]


def test_pipelines_side_by_side_count_every_batch_once(ranks, tmp_path):
    """2 x 2 ranks, unequal batches, two micro-batches, drawn chunks and a second loss, divided by its own count."""
    ranks(4, run_side_by_side, tmp_path)
    for schedule, one in torch.load(tmp_path / "side_by_side.pt").items():
        print(schedule, one)
        assert one["loss"] < 1e-10 and one["gradient"] < 1e-10
        together, alone = one["counts"]
        assert together == alone and set(alone) == {"answer", "copy", "slots", "context_tokens"}
        assert all(count > 0 for count in alone.values())


def test_a_rank_out_of_step_is_told(ranks):
    with pytest.raises(
        AssertionError,
        match=r"rank 1 waited for the memory of step 2, chunk 2, layer 0 and got the memory of "
        r"step 1, chunk 2, layer 0",
    ):
        ranks(2, run_out_of_step)


def test_without_gradients_nothing_comes_back(ranks, tmp_path):
    ranks(2, run_without_gradients, tmp_path)
    plain = torch.load(tmp_path / "plain.pt")
    assert plain["evaluated"] == plain["alone"]
    assert plain["shares"] == pytest.approx([plain["alone"]] * 3, rel=1e-12)
    assert plain["sent"] == [3 * 3 * LAYERS, 0]


@pytest.mark.parametrize("count", (2, 4))
def test_recorded_runs_keep_to_the_schedule(ranks, tmp_path, count):
    """Each rank's recorded order is the simulator's, forward, and turned round, back; no cell starts before what it needs is
    computed, whichever rank computes it; and ranks compute at the same time."""
    ranks(count, run_timed, tmp_path, count)
    for schedule, events in torch.load(tmp_path / "timed.pt", weights_only=False).items():
        owner, planned = owners(9, count, schedule), simulate(9, LAYERS, count, schedule)
        for direction, step in ((FORWARD, 1), (BACKWARD, -1)):
            spans = {}
            for rank, own in enumerate(events):
                recorded = spans_of(own, direction)
                assert list(recorded) == cells(owner, LAYERS, rank, schedule)[::step]
                assert list(recorded)[::step] == sorted(recorded, key=lambda cell: planned.spans[cell])
                spans |= recorded
            assert spans.keys() == planned.spans.keys()
            for chunk, layer in spans:
                for before in ((chunk, layer - 1), (chunk - 1, layer)):
                    if min(before) >= 0:
                        first, second = [before, (chunk, layer)][::step]
                        assert spans[second][0] >= spans[first][0] + SLEEP
            took = max(end for _, end in spans.values()) - min(start for start, _ in spans.values())
            alone = sum(end - start for start, end in spans.values())
            print(count, schedule, direction, took / alone, planned.makespan / (9 * LAYERS))
            assert took < 0.9 * alone


def test_the_benchmark_measures_what_it_says(ranks, tmp_path, capsys):
    """Small: rows, tables, picture; handed over naively, no two ranks compute at once."""
    given = Namespace(runs=1, chunks=4, layers=2, chunk=16, width=16, slots=2, queue=4)
    ranks(2, run_benchmark, tmp_path, given)
    measured = torch.load(tmp_path / "bench.pt", weights_only=False)
    rows = {row["variant"]: row for row in measured["timed"]["rows"]}
    assert list(rows) == ["cyclic", "contiguous", "naive"] and rows["naive"]["bound"] == 1
    assert all(row["lowest"] <= row["speedup"] <= row["highest"] for row in rows.values())
    assert 1 < rows["contiguous"]["bound"] < rows["cyclic"]["bound"] < 2
    slowed = [rows[name]["bound_here"] / rows[name]["bound"] for name in ("cyclic", "contiguous")]
    assert slowed[0] == pytest.approx(slowed[1]) and slowed[0] == pytest.approx(
        np.median(
            [
                one / other
                for one, other in zip(measured["timed"]["seconds"]["alone"], measured["timed"]["seconds"]["both"])
            ]
        )
    )
    for direction, step in ((FORWARD, 1), (BACKWARD, -1)):
        lanes = [list(spans_of(own, direction).values()) for own in measured["timed"]["events"]["naive"]]
        first, second = lanes[::step]
        assert len(first) == len(second) == 4 and second[0][0] >= max(start for start, _ in first)
    for row in measured["cells"]:
        assert row["planned"] == simulate(4, 2, 2, row["schedule"]).makespan <= row["cells"] * 1.01
    comet_pipeline.show_times(measured["timed"])
    comet_pipeline.show_cells(measured["cells"])
    comet_pipeline.draw(measured["timed"], tmp_path / "bench.png")
    assert "cyclic" in capsys.readouterr().out and (tmp_path / "bench.png").stat().st_size > 10_000
