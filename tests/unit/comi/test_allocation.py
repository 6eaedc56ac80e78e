"""comi.information_gain: group sizes, from given gains (`allocate`) and from states (`reallocate_groups`)."""

import hypothesis.strategies as st
import pytest
import torch
from drawn_states import batch_of, draw, right_padded
from hypothesis import given, settings

from breviary.memory.merging import slot_count
from comi.information_gain import allocate, precompute, reallocate_groups

many = settings(derandomize=True, deadline=None, max_examples=150)
SEEDS = st.integers(0, 2**31)


# ---- the allocator (invariants F1, F2) ----


def quotas_of(gains, length, temperature):
    return length * (-gains.double() / temperature).softmax(-1)


@many
@given(SEEDS, st.integers(1, 60), st.integers(0, 3000), st.sampled_from([0.05, 0.3, 1.0, 5.0]))
def test_allocation_rounds_quotas_and_is_monotone(seed, groups, length, temperature):
    g = torch.Generator().manual_seed(seed)
    gains = (torch.randn(groups, generator=g) * 4).round() / 4  # coarse grid: many equal gains
    sizes = allocate(gains[None], torch.tensor([length]), torch.ones(1, groups, dtype=torch.bool), temperature)[0]
    assert sizes.sum() == length
    assert ((sizes - quotas_of(gains, length, temperature)).abs() < 1).all()
    higher = gains[:, None] > gains[None, :]
    assert (sizes[:, None] <= sizes[None, :])[higher].all()
    equal = gains[:, None] == gains[None, :]
    assert ((sizes[:, None] - sizes[None, :]).abs() <= 1)[equal].all()
    earlier = equal & (torch.arange(groups)[:, None] < torch.arange(groups)[None, :])
    assert (sizes[:, None] >= sizes[None, :])[earlier].all()


@many
@given(SEEDS, st.integers(2, 40), st.integers(1, 2000))
def test_a_higher_gain_never_earns_a_larger_quota(seed, groups, length):
    """Sizes may still grow by one, a paradox of largest-remainder rounding, so the test allows quota + 1."""
    g = torch.Generator().manual_seed(seed)
    gains = torch.randn(1, groups, generator=g)
    raised = gains.clone()
    raised[0, groups // 2] += 0.5
    valid, lengths = torch.ones_like(gains, dtype=torch.bool), torch.tensor([length])
    before, after = (allocate(x, lengths, valid)[0, groups // 2] for x in (gains, raised))
    assert after <= before + 1
    assert after < quotas_of(gains, length, 1.0)[0, groups // 2] + 1


@many
@given(SEEDS, st.integers(1, 40), st.integers(0, 400), st.integers(1, 6))
def test_reserved_tokens(seed, groups, length, smallest):
    """Every group gets min(min_group_size, length // groups) tokens, and the shares divide the rest."""
    g = torch.Generator().manual_seed(seed)
    gains = torch.randn(1, groups + 3, generator=g)
    valid = (torch.arange(groups + 3) < groups)[None]
    sizes = allocate(gains, torch.tensor([length]), valid, 0.05, smallest)[0]
    reserved = min(smallest, length // groups)
    quotas = reserved + quotas_of(gains[0, :groups], length - reserved * groups, 0.05)
    assert sizes.sum() == length and sizes[groups:].sum() == 0
    assert (sizes[:groups] >= reserved).all()
    assert ((sizes[:groups] - quotas).abs() < 1).all()


def test_allocation_by_hand():
    """Shares 1/2, 1/4, 1/4 of 10 tokens: 5, 2.5, 2.5; the earlier of the two halves gets the odd token."""
    gains = -torch.tensor([[2.0, 1.0, 1.0]]).double().log()
    assert allocate(gains, torch.tensor([10]), torch.ones(1, 3).bool()).tolist() == [[5, 3, 2]]
    # One token each first, the shares of the other 7: 3.5, 1.75, 1.75.
    assert allocate(gains, torch.tensor([10]), torch.ones(1, 3).bool(), 1.0, 1).tolist() == [[4, 3, 3]]
    # Extreme shares leave groups empty unless a token is reserved (E5).
    steep = torch.tensor([[9.0, 0.0, 9.0]])
    assert allocate(steep, torch.tensor([10]), torch.ones(1, 3).bool()).tolist() == [[0, 10, 0]]
    assert allocate(steep, torch.tensor([10]), torch.ones(1, 3).bool(), 1.0, 1).tolist() == [[1, 8, 1]]


@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_extreme_gains_still_sum_to_the_length(temperature, shift):
    g = torch.Generator().manual_seed(0)
    gains = torch.randn(64, 300, generator=g) * 100 + shift
    lengths = torch.randint(0, 10**6, (64,), generator=g)
    valid = torch.arange(300) < torch.randint(1, 301, (64, 1), generator=g)
    sizes = allocate(gains, lengths, valid, temperature)
    assert torch.equal(sizes.sum(1), lengths) and (sizes >= 0).all() and not sizes[~valid].any()


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        allocate(torch.zeros(1, 2), torch.tensor([4]), torch.ones(1, 2).bool(), temperature)


def test_ratio_must_be_positive():
    states, mask, query = batch_of(0, [4])
    with pytest.raises(ValueError, match="ratio"):
        reallocate_groups(states, mask, query, 0)


# ---- reallocation (F1, E1, E4, E5) ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["random", "identical"])
def test_sizes_sum_to_the_length_for_any_length(dtype, kind):
    """E1: in bf16 the published arithmetic assigns more tokens than the context has, for 549 of 3,283 lengths."""
    states, query = draw(1, 1, 5000, dim=4, dtype=dtype)
    states = states[:, :1].expand_as(states) if kind == "identical" else states
    lengths = list(range(1, 150)) + list(range(150, 5001, 97)) + [16 * k - 1 for k in range(13, 313, 23)] + [207, 5000]
    for i, length in enumerate(lengths):
        for ratio in (16, 2 + i * 7 % 63):
            mask = torch.ones(1, length, dtype=torch.bool)
            for smallest in (0, 1):
                sizes = reallocate_groups(states[:, :length], mask, query, ratio, min_group_size=smallest)
                assert sizes.shape == (1, -(-length // ratio))
                assert sizes.sum() == length and sizes.min() >= smallest
            if kind == "identical":
                assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_uniform_shares(dtype):
    """E1 on the allocator: equal scores; at ratio 16 every length to 5000, else every 29th and some L = -1 mod r."""
    every = torch.arange(1, 5001)
    for ratio in range(2, 65):
        lengths = every if ratio == 16 else torch.cat([every[ratio % 29 :: 29], every[ratio - 2 :: 37 * ratio]])
        counts = slot_count(lengths, ratio)
        valid = torch.arange(int(counts.max())) < counts[:, None]
        sizes = allocate(torch.full(valid.shape, 0.3, dtype=dtype), lengths, valid)
        assert torch.equal(sizes.sum(1), lengths)
        smallest = sizes.masked_fill(~valid, 5000).amin(1)
        assert (sizes.amax(1) - smallest <= 1).all() and torch.equal(smallest, lengths // counts)


@many
@given(
    SEEDS,
    st.lists(st.integers(0, 300), min_size=1, max_size=4),
    st.integers(1, 64),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([0.01, 1.0]),
    st.integers(0, 2),
)
def test_sizes_of_batches(seed, lengths, ratio, dtype, temperature, smallest):
    states, query = draw(seed, len(lengths), 300, dtype=dtype)
    mask = right_padded(lengths, 300)
    sizes = reallocate_groups(states, mask, query, ratio, 1.0, 1.0, temperature, smallest)
    counts = slot_count(torch.tensor(lengths), ratio)
    assert sizes.dtype == torch.int64 and sizes.shape == (len(lengths), -(-300 // ratio))
    assert sizes.sum(1).tolist() == lengths
    assert not sizes[torch.arange(sizes.shape[1]) >= counts[:, None]].any()
    if smallest:
        assert torch.equal((sizes > 0).sum(1), counts)


def test_relevant_groups_get_fewer_tokens():
    """The most relevant group is compressed least."""
    states, query = draw(3, 1, 64, dim=32, shared=0.0)
    states[0, 20] = 4 * query[0]
    sizes = reallocate_groups(states, torch.ones(1, 64).bool(), query, 16, temperature=0.3)[0]
    assert sizes[1] == sizes.min() and sizes[1] < 16


def test_a_repeated_representative_gets_more_tokens():
    states, query = draw(4, 1, 48, dim=32, shared=0.0)
    for column in (3, 19):  # the same relevant token stands for groups 0 and 1
        states[0, column] = query[0] + 0.2 * states[0, 0]
    states[0, 35] = query[0] + 0.2 * states[0, 1]
    mask = torch.ones(1, 48).bool()
    on = reallocate_groups(states, mask, query, 16, temperature=0.1)[0]
    off = reallocate_groups(states, mask, query, 16, beta=0.0, temperature=0.1)[0]
    assert on[0] > on[2] and on[1] > on[2]
    assert off.max() - off.min() <= 2


def test_the_first_of_equally_relevant_tokens_represents_its_group():
    """Tokens a and b are equally relevant; only where a comes first do groups 0 and 1 look the same."""
    a, b, c, far = [1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, -1.0, 0.0], [-1.0, 0.1, 0.0]
    query = torch.tensor([[1.0, 0.0, 0.0]])
    sizes = {}
    for first, second in ((a, b), (b, a)):
        states = torch.tensor([[first, second, a, far, c, far]])
        relevance = precompute(states, query).relevance[0]
        assert relevance[0] == relevance[1] > relevance[3]
        sizes[first is a] = reallocate_groups(states, torch.ones(1, 6).bool(), query, 2, temperature=0.2)[0].tolist()
    # Redundancies 1, 1, 0 make shares e^5 : e^5 : 1; redundancies 1/2 each make equal shares.
    assert sizes == {True: [3, 3, 0], False: [2, 2, 2]}


def test_a_ratio_for_each_row():
    states, mask, query = batch_of(5, [90, 41, 7, 64])
    ratios = [9, 4, 7, 70]
    together = reallocate_groups(states, mask, query, torch.tensor(ratios), temperature=0.2)
    narrow = reallocate_groups(states, mask, query, torch.tensor(ratios), temperature=0.2, slots=11)
    assert together.shape == (4, 23) and narrow.shape == (4, 11)
    assert torch.equal(together[:, :11], narrow) and not together[:, 11:].any()
    for row, ratio in enumerate(ratios):
        alone = reallocate_groups(
            states[row : row + 1], mask[row : row + 1], query[row : row + 1], ratio, temperature=0.2
        )[0]
        assert together[row, : min(23, len(alone))].tolist() == alone[:23].tolist()
