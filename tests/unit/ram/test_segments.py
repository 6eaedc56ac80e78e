"""ram.segments: properties of relevance, selection and skimming (spec 5: 3, 5, 8, 9)."""

from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from ram.segments import floor_divide, relevance, select_segments, skim, skim_weights, split_segments

few = settings(derandomize=True, deadline=None, max_examples=40)
many = settings(derandomize=True, deadline=None, max_examples=150)
SEEDS = st.integers(0, 2**31)
LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=12)
RATIOS = st.sampled_from([1.0, 1.3, 2.0, 1 / 0.29, 4.0, 11.0])


def draw(seed, rows, segments, length, dim=8, dtype=torch.float32):
    """States with a common direction, and a query."""
    g = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, segments, length, dim, generator=g) + torch.randn(rows, 1, 1, dim, generator=g)
    return states.to(dtype), torch.randn(rows, dim, generator=g).to(dtype)


def mask_of(lengths, length):
    """(1, S, L), each segment's valid tokens first."""
    return (torch.arange(length) < torch.tensor(lengths)[:, None])[None]


def scores_of(seed, segments):
    """(1, S) on a coarse grid, so that many are equal."""
    return torch.randint(0, 6, (1, segments), generator=torch.Generator().manual_seed(seed)) / 6


def slots_taken(keep, lengths):
    """Slots of one row: its kept tokens plus one per other segment."""
    lengths = torch.tensor(lengths)
    return int(torch.where(keep[0], lengths, (lengths > 0).long()).sum())


# ---- splitting ----


def test_only_the_last_segment_is_padded():
    rows = torch.arange(14).view(2, 7)
    assert split_segments(rows, 3).tolist() == [
        [[0, 1, 2], [3, 4, 5], [6, 0, 0]],
        [[7, 8, 9], [10, 11, 12], [13, 0, 0]],
    ]
    assert torch.equal(split_segments(rows[..., None].expand(2, 7, 5), 3)[..., 4], split_segments(rows, 3))
    assert split_segments(rows, 7).shape == (2, 1, 7) and split_segments(rows, 9).shape == (2, 1, 9)
    assert split_segments(rows[:, :0], 4).tolist() == [[[0] * 4]] * 2


# ---- number of kept segments (invariant 3) ----


def test_floor_divide_is_exact():
    """For shares in hundredths of up to 200 segments; int(0.29 * 100) is 28."""
    numbers = torch.arange(201)
    for hundredths in range(1, 101):
        exact = [int(Fraction(hundredths, 100) * n) for n in range(201)]
        ratio = 1 / (hundredths / 100)
        assert floor_divide(numbers, ratio).tolist() == exact
        assert [floor_divide(n, ratio) for n in range(201)] == exact


@many
@given(SEEDS, LENGTHS, RATIOS)
def test_nominal_keeps_the_floor_of_segments_by_ratio(seed, lengths, ratio):
    keep = select_segments(scores_of(seed, len(lengths)), torch.tensor([lengths]), ratio)
    n, k = sum(length > 0 for length in lengths), int(keep.sum())
    assert k == int(n / ratio + 1e-9)
    kept_tokens = sum(length for length, kept in zip(lengths, keep[0].tolist()) if kept)
    assert kept_tokens <= k * 7 and slots_taken(keep, lengths) == kept_tokens + n - k
    assert not keep[torch.tensor([lengths]) == 0].any()


@many
@given(SEEDS, LENGTHS, RATIOS)
def test_strict_keeps_as_many_as_fit(seed, lengths, ratio):
    """Slots fit the budget wherever skimming alone fits, else no segment is kept. One more segment would not fit."""
    relevance, rows = scores_of(seed, len(lengths)), torch.tensor([lengths])
    keep = select_segments(relevance, rows, ratio, "strict")
    limit, n = int(sum(lengths) / ratio + 1e-9), sum(length > 0 for length in lengths)
    if n > limit:
        assert not keep.any()
        return
    assert slots_taken(keep, lengths) <= limit
    others = (~keep & (rows > 0))[0].nonzero()[:, 0].tolist()
    if others:
        following = max(others, key=lambda i: (relevance[0, i].item(), -i))
        one_more = keep.clone()
        one_more[0, following] = True
        assert slots_taken(one_more, lengths) > limit


def test_a_ratio_of_1_keeps_everything():
    lengths = torch.tensor([[4, 4, 3], [4, 0, 0], [0, 0, 0]])
    for budget in ("nominal", "strict"):
        assert torch.equal(select_segments(torch.rand(3, 3), lengths, 1, budget), lengths > 0)


@few
@given(SEEDS, LENGTHS, RATIOS)
def test_a_budget_in_slots_is_strict(seed, lengths, ratio):
    relevance, rows = scores_of(seed, len(lengths)), torch.tensor([lengths])
    slots = floor_divide(rows.sum(1), ratio)
    assert torch.equal(select_segments(relevance, rows, slots=slots), select_segments(relevance, rows, ratio, "strict"))
    several = -(-rows // 3)  # slots of a segment that is not kept
    keep = select_segments(relevance, rows, slots=slots, skimmed=several)
    taken = int(torch.where(keep, rows, several).sum())
    assert taken <= slots or (not keep.any() and taken == several.sum())


@few
@given(SEEDS, LENGTHS)
def test_larger_budgets_keep_supersets(seed, lengths):
    relevance, rows = scores_of(seed, len(lengths)), torch.tensor([lengths])
    ladders = [
        [select_segments(relevance, rows, ratio, budget) for ratio in (16, 7.3, 4, 2, 1.2, 1)]
        for budget in ("nominal", "strict")
    ]
    ladders.append([select_segments(relevance, rows, slots=torch.tensor([n])) for n in range(sum(lengths) + 1)])
    for ladder in ladders:
        for smaller, larger in zip(ladder, ladder[1:]):
            assert (smaller <= larger).all()
            assert slots_taken(smaller, lengths) <= slots_taken(larger, lengths)
        assert ladder[-1].sum() == sum(length > 0 for length in lengths)


# ---- selection (invariants 4, 5) ----


def test_ties_go_to_the_earlier_segment():
    relevance = torch.tensor([[0.5, 0.7, 0.7, 0.5, 0.7]])
    keep = select_segments(relevance, torch.full((1, 5), 3), 5 / 2)
    assert keep.tolist() == [[False, True, True, False, False]]
    assert select_segments(torch.zeros(1, 5), torch.full((1, 5), 3), 5 / 3).tolist() == [[True] * 3 + [False] * 2]


def test_padding_is_never_kept():
    """Here the cosines of real segments are below the 0 of padding."""
    relevance, lengths = torch.tensor([[-0.9, 0.0, -0.1, 0.0]]), torch.tensor([[5, 0, 5, 0]])
    assert select_segments(relevance, lengths, 2).tolist() == [[False, False, True, False]]
    assert select_segments(relevance, lengths, 1.5, "strict").tolist() == [[False, False, True, False]]


@many
@given(SEEDS, LENGTHS, st.integers(0, 9), RATIOS, st.sampled_from(["nominal", "strict", "slots"]))
def test_selection_does_not_depend_on_padding(seed, lengths, padding, ratio, budget):
    """Neither trailing empty segments nor other rows change the selection."""
    g = torch.Generator().manual_seed(seed)
    relevance = torch.rand(1, len(lengths), generator=g) - 0.5
    wide = torch.cat([relevance, torch.rand(1, padding, generator=g)], 1)
    beside = torch.rand(1, wide.shape[1], generator=g)

    def choose(relevance, lengths):
        if budget == "slots":
            return select_segments(relevance, lengths, slots=torch.full((len(lengths),), 11))
        return select_segments(relevance, lengths, ratio, budget)

    alone = choose(relevance, torch.tensor([lengths]))
    among = choose(torch.cat([wide, beside]), torch.tensor([lengths + [0] * padding, [3] * wide.shape[1]]))
    assert torch.equal(among[:1, : len(lengths)], alone) and not among[0, len(lengths) :].any()


@few
@given(SEEDS, st.integers(2, 12), RATIOS)
def test_selection_is_equivariant_to_the_order_of_segments(seed, segments, ratio):
    g = torch.Generator().manual_seed(seed)
    relevance, order = torch.rand(1, segments, generator=g), torch.randperm(segments, generator=g)
    lengths = torch.randint(1, 7, (1, segments), generator=g)
    for budget in ("nominal", "strict"):
        keep = select_segments(relevance, lengths, ratio, budget)
        assert torch.equal(select_segments(relevance[:, order], lengths[:, order], ratio, budget), keep[:, order])


def test_no_gradient_passes_through_selection():
    states, query = draw(0, 1, 5, 4)
    scores = relevance(states.requires_grad_(), torch.ones(1, 5, 4).bool(), query)
    assert scores.requires_grad and not select_segments(scores, torch.full((1, 5), 4), 2).requires_grad


# ---- relevance and skimming (invariants 8, 9) ----


@few
@given(SEEDS, LENGTHS, st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([0.05, 1.0, 10.0]))
def test_weights_are_convex(seed, lengths, dtype, temperature):
    states, query = draw(seed, 1, len(lengths), 7, dtype=dtype)
    mask = mask_of(lengths, 7)
    weights = skim_weights(states, mask, query, temperature)
    assert weights.dtype == torch.float32 and (weights >= 0).all() and not weights[~mask].any()
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).float())
    pooled = skim(states, mask, query, temperature).float()
    lowest = states.float().masked_fill(~mask[..., None], torch.inf).amin(2)
    highest = states.float().masked_fill(~mask[..., None], -torch.inf).amax(2)
    real = mask.any(-1)
    slack = 0.02 if dtype == torch.bfloat16 else 1e-5
    assert (pooled >= lowest - slack)[real].all() and (pooled <= highest + slack)[real].all()
    assert not pooled[~real].any()


def test_without_a_temperature_weights_are_close_to_a_mean():
    """Cosines are in [-1, 1], so weights of the published softmax differ by a factor of at most e^2."""
    states, query = torch.tensor([[[[1.0, 0.0], [-1.0, 0.0]]]]), torch.tensor([[3.0, 0.0]])
    for temperature, spread in ((1.0, 2.0), (0.25, 8.0)):
        weights = skim_weights(states, torch.ones(1, 1, 2).bool(), query, temperature)[0, 0]
        torch.testing.assert_close(weights[0] / weights[1], torch.tensor(spread).exp())


def test_a_skimmed_segment_of_one_token_is_that_token():
    states, query = draw(1, 2, 3, 5)
    mask = torch.zeros(2, 3, 5).bool()
    mask[:, :, 2] = True
    assert torch.equal(skim(states, mask, query, 0.1), states[:, :, 2])


def test_equal_tokens_are_unchanged():
    states, query = draw(2, 2, 3, 1)
    pooled = skim(states.expand(2, 3, 6, 8), torch.ones(2, 3, 6).bool(), query, 0.1)
    torch.testing.assert_close(pooled, states[:, :, 0])


def test_a_high_temperature_yields_the_mean_and_a_low_one_the_nearest_token():
    states, query = draw(3, 2, 4, 6)
    mask = mask_of([6, 6, 4, 1], 6).expand(2, 4, 6)
    means = skim(states, mask, query, mode="mean")
    torch.testing.assert_close(skim(states, mask, query, 1e6), means, atol=1e-5, rtol=0)
    for i, length in enumerate((6, 6, 4, 1)):
        torch.testing.assert_close(means[:, i], states[:, i, :length].mean(1))
    cosines = torch.nn.functional.cosine_similarity(states, query[:, None, None], dim=-1).masked_fill(~mask, -2)
    nearest = states.gather(2, cosines.argmax(2)[..., None, None].expand(-1, -1, 1, 8))[:, :, 0]
    torch.testing.assert_close(skim(states, mask, query, 1e-4), nearest, atol=1e-5, rtol=0)


def test_relevance_uses_the_mean_of_real_tokens():
    states, query = draw(4, 1, 3, 6)
    scores = relevance(states, mask_of([6, 4, 0], 6), query)
    for i, length in enumerate((6, 4)):
        mean = states[0, i, :length].mean(0)
        torch.testing.assert_close(scores[0, i], torch.nn.functional.cosine_similarity(mean, query[0], dim=0))
    assert scores[0, 2] == 0 and (scores.abs() <= 1 + 1e-6).all()


def test_dropped_segments_have_weight_0():
    states, query = draw(5, 2, 3, 4)
    mask = torch.ones(2, 3, 4).bool()
    assert not skim_weights(states, mask, query, mode="drop").any() and not skim(states, mask, query, mode="drop").any()


def test_values_may_differ_from_the_states():
    states, query = draw(6, 2, 3, 4)
    mask = mask_of([4, 2, 0], 4).expand(2, 3, 4)
    values = torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pooled = skim(states, mask, query, 0.2, values)
    weights = skim_weights(states, mask, query, 0.2).double()
    assert pooled.dtype == torch.float64 and pooled.shape == (2, 3, 3)
    torch.testing.assert_close(pooled, (weights[..., None] * values).sum(2))


@few
@given(
    SEEDS,
    st.sampled_from([2.0**-20, 0.25, 1024.0]),
    st.sampled_from([2.0**-12, 8.0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_scale(seed, by, query_by, dtype):
    """Powers of two are exact: scores, selection and weights agree to the bit, and vectors scale by the factor."""
    lengths = [6, 6, 3, 0]
    states, query = draw(seed, 1, 4, 6, dtype=dtype)
    mask = mask_of(lengths, 6)
    plain, scaled = (states, mask, query), (states * by, mask, query * query_by)
    scores = relevance(*plain)
    assert torch.equal(relevance(*scaled), scores)
    for choice in ({"ratio": 2}, {"ratio": 1.5, "budget": "strict"}):
        assert torch.equal(*(select_segments(r, mask.sum(-1), **choice) for r in (scores, relevance(*scaled))))
    assert torch.equal(skim_weights(*scaled, 0.1), skim_weights(*plain, 0.1))
    assert torch.equal(skim(*scaled, 0.1), skim(*plain, 0.1) * by)


@few
@given(SEEDS, LENGTHS, st.integers(0, 5), st.integers(0, 3), st.sampled_from(["left", "right", "holes"]))
def test_segments_do_not_depend_on_padding(seed, lengths, wider, longer, side):
    """Neither on its side and values, nor on the number of empty segments, nor on the next row."""
    states, query = draw(seed, 1, len(lengths), 7)
    g = torch.Generator().manual_seed(seed)
    L, S = 7 + wider, len(lengths) + longer
    padded, mask = 100 * torch.randn(2, S, L, 8, generator=g), torch.zeros(2, S, L).bool()
    mask[1] = True
    for i, length in enumerate(lengths):
        columns = {
            "left": torch.arange(L - length, L),
            "right": torch.arange(length),
            "holes": torch.randperm(L, generator=g)[:length].sort().values,
        }[side]
        padded[0, i, columns], mask[0, i, columns] = states[0, i, :length], True
    queries = torch.cat([query, torch.randn(1, 8, generator=g)])
    alone, among = (states, mask_of(lengths, 7), query), (padded, mask, queries)
    for function in (relevance, skim):
        own, beside = function(*alone)[0], function(*among)[0]
        torch.testing.assert_close(beside[: len(lengths)], own, atol=1e-5, rtol=1e-5)
        assert not beside[len(lengths) :].any()


def test_gradients_of_equal_and_of_zero_tokens_are_finite():
    """All cosines are 1 and tie; a zero state and a zero question have no direction."""
    states = torch.ones(1, 2, 4, 3)
    states[0, 0, 1] = 0
    for query in (torch.ones(1, 3), torch.zeros(1, 3)):
        leaves = states.clone().requires_grad_(), query.requires_grad_()
        mask = torch.ones(1, 2, 4).bool()
        (relevance(leaves[0], mask, leaves[1]).sum() + skim(leaves[0], mask, leaves[1]).square().sum()).backward()
        assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


# ---- error messages ----


def test_invalid_arguments_are_named():
    states, query = draw(0, 1, 2, 3)
    mask, lengths, scores = torch.ones(1, 2, 3).bool(), torch.tensor([[3, 3]]), torch.zeros(1, 2)
    for call, words in (
        (lambda: select_segments(scores, lengths, 2, "loose"), "'loose': allowed are nominal, strict"),
        (lambda: select_segments(scores, lengths), "set exactly one of them"),
        (lambda: select_segments(scores, lengths, 2, slots=torch.tensor([3])), "set exactly one of them"),
        (lambda: skim(states, mask, query, mode="max"), "'max': allowed are query_weighted, mean, drop"),
        (lambda: skim_weights(states, mask, query, 0.0), "temperature=0.0: must be above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
