"""comet.chunking: sizes of chunks, whatever the length and the draw (spec 3.3)."""

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


def good(sizes, tokens, chunk):
    return sum(sizes) == tokens and all(1 <= size <= chunk for size in sizes)


# ---- every strategy ----


@pytest.mark.parametrize("strategy", STRATEGIES)
@many
@given(tokens=TOKENS, chunk=CHUNK, smallest=SMALLEST, chunks=CHUNKS, places=st.sets(st.integers(1, 400)))
def test_sizes_sum_to_the_text_and_fit_a_chunk(strategy, tokens, chunk, smallest, chunks, places):
    planner = ChunkPlanner(chunk, 1, strategy, chunks, smallest)
    boundaries = sorted(place for place in places if place <= tokens)
    for drawn in ("a", "b"):
        sizes = planner.plan(tokens, boundaries, drawn)
        assert good(sizes, tokens, chunk), sizes
        assert planner.plan(tokens, boundaries, drawn) == sizes


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_token_is_no_chunk(strategy):
    assert ChunkPlanner(16, 4, strategy).plan(0) == []


@pytest.mark.parametrize("strategy", ["random", "mixture"])
def test_draws_differ_with_what_is_drawn_by(strategy):
    planner = ChunkPlanner(16, 4, strategy)
    assert len({tuple(planner.plan(200, drawn=str(i))) for i in range(100)}) > 10


@pytest.mark.parametrize("strategy", ["fixed", "right_aligned", "uniform", "semantic"])
def test_nothing_else_is_drawn(strategy):
    planner = ChunkPlanner(16, 4, strategy)
    assert len({tuple(planner.plan(200, (9, 100), str(i))) for i in range(20)}) == 1


# ---- each strategy ----


def test_the_rest_stands_last_or_first():
    assert fixed(35, 16) == [16, 16, 3] and right_aligned(35, 16) == [3, 16, 16]
    assert fixed(32, 16) == right_aligned(32, 16) == [16, 16]
    assert fixed(3, 16) == right_aligned(3, 16) == [3]


@many
@given(tokens=TOKENS, chunk=CHUNK, chunks=CHUNKS)
def test_uniform_sizes_differ_by_1_at_most(tokens, chunk, chunks):
    sizes = uniform(tokens, chunk, chunks)
    assert good(sizes, tokens, chunk) and max(sizes) - min(sizes) <= 1
    assert len(sizes) == min(max(chunks, -(-tokens // chunk)), tokens)


def test_a_uniform_plan_keeps_to_the_smallest_size():
    planner = ChunkPlanner(16, 4, "uniform", most_chunks=16, smallest_chunk=4)
    assert planner.plan(18) == [5, 5, 4, 4] and planner.plan(3) == [3] and planner.plan(256) == [16] * 16


@many
@given(tokens=TOKENS, chunk=CHUNK, chunks=CHUNKS, smallest=SMALLEST, seed=st.integers(0, 2**31))
def test_random_sizes_keep_to_their_bounds(tokens, chunk, chunks, smallest, seed):
    sizes, fewest = random_sizes(tokens, chunk, chunks, smallest, random.Random(seed)), -(-tokens // chunk)
    assert good(sizes, tokens, chunk)
    assert fewest <= len(sizes) <= max(fewest, chunks)
    assert min(sizes) >= min(smallest, tokens // len(sizes))


def test_random_sizes_take_every_number_and_size():
    drawn = [random_sizes(60, 16, 8, 4, random.Random(seed)) for seed in range(1500)]
    assert {len(sizes) for sizes in drawn} == {4, 5, 6, 7, 8}
    assert {size for sizes in drawn for size in sizes} == set(range(4, 17))
    first, last = (sum(sizes[at] for sizes in drawn) / len(drawn) for at in (0, -1))
    assert abs(first - last) < 1  # no place is favoured


def test_semantic_cuts_at_the_latest_boundary():
    assert semantic(40, 16, 4, [3, 9, 12, 30, 31]) == [12, 16, 12]  # 30 and 31 are too near to 28
    assert semantic(40, 16, 4, [12, 16, 17, 32]) == [16, 16, 8]
    assert semantic(40, 16, 4, [12, 27]) == [12, 15, 13]
    assert semantic(40, 16, 4, []) == [16, 16, 8]
    assert semantic(16, 16, 4, [5]) == [16]  # one chunk is not cut


@many
@given(tokens=TOKENS, chunk=CHUNK, smallest=SMALLEST, places=st.sets(st.integers(1, 400)))
def test_semantic_skips_no_later_boundary(tokens, chunk, smallest, places):
    places, at = sorted(places), 0
    sizes = semantic(tokens, chunk, smallest, places)
    for size in sizes[:-1]:
        fitting = [place for place in places if at + smallest <= place <= at + chunk]
        assert at + size == (fitting[-1] if fitting else at + chunk)
        at += size
    assert sum(sizes) == tokens


# ---- mixture ----


def chosen(planner, tokens, drawn):
    """Which strategy made a plan, where plans of all differ: full chunks of 16, boundaries at every 10."""
    boundaries = range(10, tokens, 10)
    sizes = planner.plan(tokens, boundaries, drawn)
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


def test_below_one_chunk_a_tenth_is_cut_at_random():
    planner = ChunkPlanner(16, 4, "mixture", smallest_chunk=1)
    cut = [planner.plan(15, drawn=str(i)) != [15] for i in range(4000)]
    assert abs(sum(cut) / 4000 - 0.1 * 14 / 15) < 0.02  # random draws 1 to 15 chunks


# ---- stride ----


def test_a_stride_is_drawn_from_powers_of_two():
    """Weights 9, 4 and 1 of 14."""
    planner = ChunkPlanner(64, 4, widest_stride=16)
    counts = Counter(planner.text_stride(str(i)) for i in range(7000))
    assert counts.keys() == {4, 8, 16}
    for stride, weight in ((4, 9), (8, 4), (16, 1)):
        assert abs(counts[stride] / 7000 - weight / 14) < 0.02
    assert planner.text_stride("x") == planner.text_stride("x")


def test_a_stride_that_is_not_drawn():
    assert {ChunkPlanner(64, 4).text_stride(str(i)) for i in range(20)} == {4}
    assert {ChunkPlanner(64, 4, widest_stride=7).text_stride(str(i)) for i in range(20)} == {4}
