"""comet.pipeline.schedule: owners, order and timing of tasks (spec 2.6, 6: 14). C chunks, R ranks, L layers."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from comet.pipeline.schedule import SCHEDULES, chunk_owners, rank_tasks, simulate

few = settings(derandomize=True, deadline=None, max_examples=60)
sizes = dict(
    chunks=st.integers(0, 12), layers=st.integers(1, 6), ranks=st.integers(1, 5), schedule=st.sampled_from(SCHEDULES)
)


def test_chunk_owners():
    assert chunk_owners(7, 3, "contiguous") == [0, 0, 0, 1, 1, 2, 2]
    assert chunk_owners(7, 3, "cyclic") == [0, 1, 2, 0, 1, 2, 0]
    assert chunk_owners(2, 4, "contiguous") == chunk_owners(2, 4, "cyclic") == [0, 1]


def test_rank_tasks():
    assert rank_tasks([0, 0, 1], 2, 0, "contiguous") == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert rank_tasks([0, 1, 0], 2, 0, "cyclic") == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert rank_tasks([0, 1], 2, 2, "contiguous") == []


@few
@given(**sizes)
def test_every_task_has_one_owner_and_loads_differ_by_at_most_one_chunk(chunks, layers, ranks, schedule):
    owners = chunk_owners(chunks, ranks, schedule)
    loads = [owners.count(rank) for rank in range(ranks)]
    assert len(owners) == chunks and max(loads) - min(loads) <= 1 and loads == sorted(loads, reverse=True)
    tasks = [cell for rank in range(ranks) for cell in rank_tasks(owners, layers, rank, schedule)]
    assert sorted(tasks) == [(chunk, layer) for chunk in range(chunks) for layer in range(layers)]


@few
@given(**sizes, latency=st.sampled_from([0.0, 0.25]), costs=st.lists(st.integers(1, 9), min_size=72, max_size=72))
def test_no_task_starts_before_its_dependencies(chunks, layers, ranks, schedule, latency, costs):
    owners = chunk_owners(chunks, ranks, schedule)
    spans = simulate(chunks, layers, ranks, schedule, lambda chunk, layer: costs[6 * chunk + layer], latency).spans
    assert len(spans) == chunks * layers
    for (chunk, layer), (start, end) in spans.items():
        assert end - start == costs[6 * chunk + layer]
        assert layer == 0 or start >= spans[chunk, layer - 1][1]
        assert chunk == 0 or start >= spans[chunk - 1, layer][1] + latency * (owners[chunk] != owners[chunk - 1])
    for rank in range(ranks):
        order = rank_tasks(owners, layers, rank, schedule)
        assert all(spans[later][0] >= spans[earlier][1] for earlier, later in zip(order, order[1:]))


@pytest.mark.parametrize("layers, ranks, each", [(36, 1, 3), (36, 2, 8), (36, 4, 4), (36, 16, 1), (8, 8, 2), (4, 4, 5)])
def test_closed_forms(layers, ranks, each):
    """Equal costs, n chunks per rank, L >= R: L + R - 1 tasks of n chunks; n L + R - 1 tasks of one chunk."""
    contiguous, cyclic = (simulate(each * ranks, layers, ranks, schedule) for schedule in ("contiguous", "cyclic"))
    assert contiguous.makespan == (layers + ranks - 1) * each
    assert contiguous.bubble == pytest.approx((ranks - 1) / (layers + ranks - 1))
    assert cyclic.makespan == each * layers + ranks - 1
    assert cyclic.bubble == pytest.approx((ranks - 1) / (each * layers + ranks - 1))


def test_bubbles_at_the_paper_s_sizes():
    """128k tokens in chunks of 2048 on 16 ranks, 36 layers."""
    assert simulate(64, 36, 16, "contiguous").bubble == pytest.approx(0.294, abs=5e-4)
    assert simulate(64, 36, 16, "cyclic").bubble == pytest.approx(0.094, abs=5e-4)


def test_blocks_idle_where_late_chunks_cost_more():
    """Chunks with more memory slots cost more. With the cyclic schedule every rank has some of each."""

    def cost(chunk, layer):
        return 1.0 + min(chunk, 8) / 8

    assert simulate(16, 12, 4, "contiguous", cost).makespan > 1.15 * simulate(16, 12, 4, "cyclic", cost).makespan


def test_no_chunks():
    assert simulate(0, 4, 2, "cyclic").makespan == 0 and simulate(0, 4, 2, "contiguous").bubble == 0
