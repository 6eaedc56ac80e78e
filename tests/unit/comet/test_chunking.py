"""comet.chunking: sizes of chunks for every strategy (spec 3.3)."""

import random
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from comet.chunking import MIXTURE, STRATEGIES, ChunkPlanner, fixed, random_sizes, right_aligned, semantic, uniform

many = settings(derandomize=True, deadline=None, max_examples=150)
TOKENS = st.integers(1, 400)
CHUNK = st.integers(4, 48)
SMALLEST = st.integers(1, 4)
CHUNKS = st.integers(1, 16)


def are_valid(sizes, tokens, chunk):
    return sum(sizes) == tokens and all(1 <= size <= chunk for size in sizes)


# ---- every strategy ----


@pytest.mark.parametrize("strategy", STRATEGIES)
@many
@given(tokens=TOKENS, chunk=CHUNK, smallest=SMALLEST, chunks=CHUNKS, positions=st.sets(st.integers(1, 400)))
def test_sizes_sum_to_the_text_and_fit_a_chunk(strategy, tokens, chunk, smallest, chunks, positions):
    planner = ChunkPlanner(chunk, 1, strategy, chunks, smallest)
    boundaries = sorted(boundary for boundary in positions if boundary <= tokens)
    for seed in ("a", "b"):
        sizes = planner.plan(tokens, boundaries, seed)
        assert are_valid(sizes, tokens, chunk), sizes
        assert planner.plan(tokens, boundaries, seed) == sizes


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_tokens_result_in_no_chunks(strategy):
    assert ChunkPlanner(16, 4, strategy).plan(0) == []


@pytest.mark.parametrize("strategy", ["random", "mixture"])
def test_random_plans_depend_on_the_seed(strategy):
    planner = ChunkPlanner(16, 4, strategy)
    assert len({tuple(planner.plan(200, seed=str(i))) for i in range(100)}) > 10


@pytest.mark.parametrize("strategy", ["fixed", "right_aligned", "uniform", "semantic"])
def test_other_strategies_do_not_depend_on_the_seed(strategy):
    planner = ChunkPlanner(16, 4, strategy)
    assert len({tuple(planner.plan(200, (9, 100), str(i))) for i in range(20)}) == 1


# ---- each strategy ----


def test_the_remainder_is_last_or_first():
    assert fixed(35, 16) == [16, 16, 3] and right_aligned(35, 16) == [3, 16, 16]
    assert fixed(32, 16) == right_aligned(32, 16) == [16, 16]
    assert fixed(3, 16) == right_aligned(3, 16) == [3]


@many
@given(tokens=TOKENS, chunk=CHUNK, chunks=CHUNKS)
def test_uniform_sizes_differ_by_at_most_1(tokens, chunk, chunks):
    sizes = uniform(tokens, chunk, chunks)
    assert are_valid(sizes, tokens, chunk) and max(sizes) - min(sizes) <= 1
    assert len(sizes) == min(max(chunks, -(-tokens // chunk)), tokens)


def test_a_uniform_plan_respects_the_smallest_size():
    planner = ChunkPlanner(16, 4, "uniform", most_chunks=16, smallest_chunk=4)
    assert planner.plan(18) == [5, 5, 4, 4] and planner.plan(3) == [3] and planner.plan(256) == [16] * 16


@many
@given(tokens=TOKENS, chunk=CHUNK, chunks=CHUNKS, smallest=SMALLEST, seed=st.integers(0, 2**31))
def test_random_sizes_respect_their_bounds(tokens, chunk, chunks, smallest, seed):
    sizes, fewest = random_sizes(tokens, chunk, chunks, smallest, random.Random(seed)), -(-tokens // chunk)
    assert are_valid(sizes, tokens, chunk)
    assert fewest <= len(sizes) <= max(fewest, chunks)
    assert min(sizes) >= min(smallest, tokens // len(sizes))


def test_random_sizes_cover_every_number_and_size():
    plans = [random_sizes(60, 16, 8, 4, random.Random(seed)) for seed in range(1500)]
    assert {len(sizes) for sizes in plans} == {4, 5, 6, 7, 8}
    assert {size for sizes in plans for size in sizes} == set(range(4, 17))
    first, last = (sum(sizes[at] for sizes in plans) / len(plans) for at in (0, -1))
    assert abs(first - last) < 1  # no position is favoured


def test_semantic_cuts_at_the_last_boundary():
    assert semantic(40, 16, 4, [3, 9, 12, 30, 31]) == [12, 16, 12]  # 30 and 31 are too close to 28
    assert semantic(40, 16, 4, [12, 16, 17, 32]) == [16, 16, 8]
    assert semantic(40, 16, 4, [12, 27]) == [12, 15, 13]
    assert semantic(40, 16, 4, []) == [16, 16, 8]
    assert semantic(16, 16, 4, [5]) == [16]  # one chunk is not cut


@many
@given(tokens=TOKENS, chunk=CHUNK, smallest=SMALLEST, positions=st.sets(st.integers(1, 400)))
def test_semantic_uses_the_last_boundary_in_range(tokens, chunk, smallest, positions):
    positions, at = sorted(positions), 0
    sizes = semantic(tokens, chunk, smallest, positions)
    for size in sizes[:-1]:
        fitting = [boundary for boundary in positions if at + smallest <= boundary <= at + chunk]
        assert at + size == (fitting[-1] if fitting else at + chunk)
        at += size
    assert sum(sizes) == tokens


# ---- mixture ----


def chosen(planner, tokens, seed):
    """The strategy of a plan, where the plans of all strategies differ: chunks of 16, boundaries at every 10."""
    boundaries = range(10, tokens, 10)
    sizes = planner.plan(tokens, boundaries, seed)
    for name in ("fixed", "right_aligned", "uniform", "semantic"):
        if sizes == ChunkPlanner(16, 4, name).plan(tokens, boundaries):
            return name
    return "random"


@pytest.mark.parametrize("tokens, shares", [(100, MIXTURE[1]), (191, MIXTURE[1]), (193, MIXTURE[2])])
def test_the_mixture_has_the_published_shares(tokens, shares):
    planner = ChunkPlanner(16, 4, "mixture")
    counts = Counter(chosen(planner, tokens, str(i)) for i in range(4000))
    for name, share in zip(("fixed", "right_aligned", "random", "uniform", "semantic"), shares):
        assert abs(counts[name] / 4000 - share) < 0.025, (name, counts)


def test_below_one_chunk_a_tenth_of_the_texts_is_cut_randomly():
    planner = ChunkPlanner(16, 4, "mixture", smallest_chunk=1)
    cut = [planner.plan(15, seed=str(i)) != [15] for i in range(4000)]
    assert abs(sum(cut) / 4000 - 0.1 * 14 / 15) < 0.02  # random draws 1 to 15 chunks


# ---- stride ----


def test_random_strides_are_powers_of_two_times_the_stride():
    """Weights 9, 4 and 1 of 14."""
    planner = ChunkPlanner(64, 4, widest_stride=16)
    counts = Counter(planner.sample_stride(str(i)) for i in range(7000))
    assert counts.keys() == {4, 8, 16}
    for stride, weight in ((4, 9), (8, 4), (16, 1)):
        assert abs(counts[stride] / 7000 - weight / 14) < 0.02
    assert planner.sample_stride("x") == planner.sample_stride("x")


def test_a_constant_stride():
    assert {ChunkPlanner(64, 4).sample_stride(str(i)) for i in range(20)} == {4}
    assert {ChunkPlanner(64, 4, widest_stride=7).sample_stride(str(i)) for i in range(20)} == {4}
