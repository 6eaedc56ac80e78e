"""Several processes that share the chunks of a text equal one process: loss, every gradient, and the messages.

float64, so that results differ in the order of summation only. Each case runs on 1 and 2 ranks, most also on 4,
with both schedules.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pipeline_cases import (
    CASES,
    LAYERS,
    SLEEP,
    combinations,
    run_benchmark,
    run_cases,
    run_out_of_step,
    run_side_by_side,
    run_timed,
    run_without_gradients,
)

from comet.bench.pipeline import PipelineBenchmark, print_makespans, print_times
from comet.bench.pipeline_figure import draw_pipeline
from comet.pipeline.monitor import BACKWARD, FORWARD, task_spans
from comet.pipeline.schedule import chunk_owners, rank_tasks, simulate

COMBINATIONS = [(count, *choice) for count in (1, 2, 4) for choice in combinations(count)]
# float32 and bfloat16: sums over chunks in another order. Autocast accumulates a weight's gradient over the chunks of a
# process in bfloat16: up to four rounding errors of 2^-8. Messages are exact.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 4 * 2**-8}
# Number of computed chunks of each text: those up to the last supervised token; 4 unless listed.
COMPUTED = {
    "nine": [9],
    "nine_recomputed": [9],
    "supervised_last_chunk": [9],
    "supervised_in_the_middle": [6],
    "two_chunks": [2],
    "one_chunk": [1],
    "nothing_supervised": [0],
    "ragged_rows": [7],
    "ragged_rows_recomputed": [7],
    "truncated": [7],
    "two_batches": [9, 7],
    "two_losses": [9, 4],
    "frozen_decoder": [9],
    "packed": [6],
}
WITHOUT_MESSAGES = ("no_memory",)


@pytest.fixture(scope="session")
def differences(ranks, tmp_path_factory):
    """differences(R): {(case, schedule): differences from one process}; each R runs once."""
    folder, results = tmp_path_factory.mktemp("pipelines"), {}

    def load(count):
        if count > 1:
            load(1)  # writes what the others are compared with
        if count not in results:
            results[count] = AssertionError(f"{count} ranks failed in an earlier test")
            ranks(None if count == 1 else count, run_cases, count, folder)
            results[count] = torch.load(folder / f"pipeline{count}.pt")
        if isinstance(results[count], AssertionError):
            raise results[count]
        return results[count]

    return load


@pytest.mark.parametrize("count, case, schedule", COMBINATIONS)
def test_a_pipeline_equals_one_process(differences, count, schedule, case):
    row = differences(count)[case, schedule]
    print(count, schedule, case, row)  # visible with pytest -rP
    tolerance = TOLERANCE[CASES[case].dtype]
    assert row["loss"] < tolerance and row["gradient"] < tolerance
    assert row["value"] > 0 or case == "nothing_supervised"


def test_every_weight_has_a_gradient(differences):
    """Otherwise equal gradients would prove nothing."""
    for case in ("nine", "ragged_rows", "packed", "nine_recomputed", "scatter", "two_losses"):
        assert differences(1)[case, "cyclic"]["zero_gradients"] == [], case


@pytest.mark.parametrize("count, case, schedule", COMBINATIONS)
def test_one_message_per_layer_border_and_direction(differences, count, schedule, case):
    """A border lies between two consecutive chunks of different ranks. Recomputed activations send nothing twice."""
    borders = 0
    for chunks in COMPUTED.get(case, [4]):
        owner = chunk_owners(chunks, count, schedule)
        borders += sum(one != other for one, other in zip(owner, owner[1:]))
    expected = 0 if case in WITHOUT_MESSAGES else LAYERS * borders
    assert differences(count)[case, schedule]["sent"] == [expected, expected]


def test_two_pipelines_count_every_batch_once(ranks, tmp_path):
    """2 x 2 ranks, unequal batches, two micro-batches, random chunks, and a second loss with its own count."""
    ranks(4, run_side_by_side, tmp_path)
    for schedule, row in torch.load(tmp_path / "side_by_side.pt").items():
        print(schedule, row)
        assert row["loss"] < 1e-10 and row["gradient"] < 1e-10
        together, alone = row["counts"]
        assert together == alone and set(alone) == {"answer", "copy", "slots", "context_tokens"}
        assert all(count > 0 for count in alone.values())


def test_a_message_of_another_step_raises(ranks):
    with pytest.raises(
        AssertionError,
        match=r"rank 1 expected the memory of step 2, chunk 2, layer 0 and received the memory of "
        r"step 1, chunk 2, layer 0",
    ):
        ranks(2, run_out_of_step)


def test_without_gradients_no_gradient_messages_are_sent(ranks, tmp_path):
    ranks(2, run_without_gradients, tmp_path)
    plain = torch.load(tmp_path / "plain.pt")
    assert plain["evaluated"] == plain["alone"]
    assert plain["shares"] == pytest.approx([plain["alone"]] * 3, rel=1e-12)
    assert plain["sent"] == [3 * 3 * LAYERS, 0]


@pytest.mark.parametrize("count", (2, 4))
def test_recorded_tasks_follow_the_schedule(ranks, tmp_path, count):
    """Each rank's order of tasks equals the simulator's in the forward pass, and its reverse in the backward pass.

    No task starts before the tasks that it depends on are computed, on any rank, and ranks compute concurrently.
    """
    ranks(count, run_timed, tmp_path, count)
    for schedule, events in torch.load(tmp_path / "timed.pt", weights_only=False).items():
        owner, planned = chunk_owners(9, count, schedule), simulate(9, LAYERS, count, schedule)
        for direction, step in ((FORWARD, 1), (BACKWARD, -1)):
            spans = {}
            for rank, own in enumerate(events):
                recorded = task_spans(own, direction)
                assert list(recorded) == rank_tasks(owner, LAYERS, rank, schedule)[::step]
                assert list(recorded)[::step] == sorted(recorded, key=lambda task: planned.spans[task])
                spans |= recorded
            assert spans.keys() == planned.spans.keys()
            for chunk, layer in spans:
                for before in ((chunk, layer - 1), (chunk - 1, layer)):
                    if min(before) >= 0:
                        first, second = [before, (chunk, layer)][::step]
                        assert spans[second][0] >= spans[first][0] + SLEEP
            elapsed = max(end for _, end in spans.values()) - min(start for start, _ in spans.values())
            alone = sum(end - start for start, end in spans.values())
            print(count, schedule, direction, elapsed / alone, planned.makespan / (9 * LAYERS))
            assert elapsed < 0.9 * alone


def test_the_benchmark_writes_rows_tables_and_a_figure(ranks, tmp_path, capsys):
    """In the naive variant, no two ranks compute at the same time."""
    benchmark = PipelineBenchmark(runs=1, chunks=4, layers=2, chunk=16, width=16, slots=2, queue=4)
    ranks(2, run_benchmark, tmp_path, benchmark)
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
        lanes = [list(task_spans(own, direction).values()) for own in measured["timed"]["events"]["naive"]]
        first, second = lanes[::step]
        assert len(first) == len(second) == 4 and second[0][0] >= max(start for start, _ in first)
    for row in measured["cells"]:
        assert row["planned"] == simulate(4, 2, 2, row["schedule"]).makespan <= row["cells"] * 1.01
    print_times(measured["timed"])
    print_makespans(measured["cells"])
    draw_pipeline(measured["timed"], tmp_path / "bench.png")
    assert "cyclic" in capsys.readouterr().out and (tmp_path / "bench.png").stat().st_size > 10_000
