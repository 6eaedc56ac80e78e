"""comi.information_gain: properties of gains, weights and memories (sizes: test_allocation.py)."""

import hypothesis.strategies as st
import pytest
import torch
from drawn_states import batch_of, draw, right_padded
from hypothesis import given, settings
from torch.nn.functional import normalize

from breviary.memory.merging import consecutive_groups, groups_from_sizes, merge_slots
from comi.information_gain import marginal_information_gain, merge_groups, merge_weights, precompute, reallocate_groups

few = settings(derandomize=True, deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**31)


# ---- gain and redundancy (E2, quirks) ----


def test_redundancy_of_opposed_tokens_is_negative():
    """E2: three states at 120 degrees, all cosines -1/2; padding must not raise the maximum to 0."""
    angles = torch.tensor([0.0, 2.0, 4.0]) * torch.pi / 3
    states = torch.zeros(1, 9, 2)
    states[0, :3] = torch.stack([angles.cos(), angles.sin()], -1)
    states[0, 3:7] = torch.tensor([1.0, 0.0])
    groups = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1, -1]])
    gain = marginal_information_gain(states, groups >= 0, torch.zeros(1, 2), groups)
    torch.testing.assert_close(gain, torch.tensor([[0.5] * 3 + [-1.0] * 4 + [0.0] * 2]))


def test_quirks_by_hand():
    """Released numerics: groups shorter than the row's longest one are padded with similarity 0."""
    states = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]).expand(2, 5, 2)
    groups = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 2, 2]])
    mask = torch.ones(2, 5).bool()
    query = torch.tensor([[1.0, 0.0]]).expand(2, 2)
    right, published = (marginal_information_gain(states, mask, query, groups, quirks=q) for q in (False, True))
    assert right.tolist() == [[2, 0, -1, -1, -1], [2, 0, 0, -1, -1]]
    assert published.tolist() == [[1, -1, -1, -1, -1], [2, 0, 0, -1, -1]]


def test_quirks_change_weights():
    """Cosines: u with v and w -0.6, v with w 1. A longer group in the row makes the redundancy of u 0."""
    states = torch.tensor([[[1.0, 0.0], [-0.6, 0.8], [-0.6, 0.8], *[[0.0, 1.0]] * 4]])
    groups = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    for quirks, gain in ((False, 0.6), (True, 0.0)):
        weights = merge_weights(states, torch.ones(1, 7).bool(), torch.zeros(1, 2), groups, 2, quirks=quirks)
        expected = torch.tensor([gain, -1.0, -1.0]).softmax(0)
        torch.testing.assert_close(weights[0], torch.cat([expected, torch.full((4,), 0.25)]))


def test_quirks_on_a_row_without_tokens():
    states, query = draw(0, 2, 6)
    mask = right_padded([6, 0], 6)
    gain = marginal_information_gain(states, mask, query, consecutive_groups(mask, 4), quirks=True)
    assert gain[0].all() and not gain[1].any()


@few
@given(SEEDS, st.integers(1, 40), st.integers(1, 12))
def test_gain_against_all_pairs(seed, width, ratio):
    states, query = draw(seed, 2, width, shared=0.0)
    mask = torch.rand(2, width, generator=torch.Generator().manual_seed(seed)) < 0.7
    groups = consecutive_groups(mask, ratio)
    unit = normalize(states, dim=-1)
    pairs = (groups[:, :, None] == groups[:, None]) & mask[:, :, None] & ~torch.eye(width).bool()
    most = (unit @ unit.mT).masked_fill(~pairs, -torch.inf).amax(-1)
    expected = (unit @ normalize(query, dim=-1)[..., None])[..., 0] - torch.where(most == -torch.inf, 0, most)
    torch.testing.assert_close(
        marginal_information_gain(states, mask, query, groups), expected.masked_fill(~mask, 0), atol=1e-5, rtol=0
    )


def test_alone_or_without_query():
    """A lone token has redundancy 0; a zero query (E15) relevance 0."""
    states, query = draw(0, 1, 5)
    groups = torch.tensor([[0, 1, 2, 3, 4]])
    mask = torch.ones(1, 5).bool()
    relevance = torch.nn.functional.cosine_similarity(states, query[:, None], dim=-1)
    torch.testing.assert_close(marginal_information_gain(states, mask, query, groups), relevance)
    assert not marginal_information_gain(states, mask, torch.zeros_like(query), groups).any()


# ---- merging (F5, F6, F7) ----


@few
@given(
    SEEDS,
    st.lists(st.integers(0, 90), min_size=1, max_size=4),
    st.integers(1, 20),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_weights_are_convex(seed, lengths, ratio, dtype):
    states, query = draw(seed, len(lengths), 90, dtype=dtype)
    mask = right_padded(lengths, 90)
    sizes = reallocate_groups(states, mask, query, ratio, temperature=0.1)
    groups = groups_from_sizes(sizes, mask)
    weights = merge_weights(states, mask, query, groups, sizes.shape[1])
    assert weights.dtype == torch.float32
    assert (weights[mask] > 0).all() and not weights[~mask].any()
    sums = torch.stack([weights.masked_fill(groups != g, 0).sum(1) for g in range(sizes.shape[1])], 1)
    torch.testing.assert_close(sums, (sizes > 0).float())


def test_groups_of_one_token_are_unchanged():
    states, mask, query = batch_of(0, [9, 4], torch.bfloat16)
    sizes = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    memory, memory_mask = merge_groups(states, mask, query, sizes)
    assert torch.equal(memory, states.masked_fill(~mask[..., None], 0)) and torch.equal(memory_mask, mask)


@pytest.mark.parametrize("identical", [False, True])
def test_plain_means(identical):
    """With gains of 0, or with identical tokens, the result is the mean of each group."""
    states, mask, query = batch_of(1, [50, 33, 20])
    states = states[:, :1].expand_as(states) if identical else states
    sizes = reallocate_groups(states, mask, query, 6, temperature=0.1)
    scale = 1.0 if identical else 0.0
    memory, memory_mask = merge_groups(states, mask, query, sizes, scale, scale)
    expected, expected_mask = merge_slots(states, groups_from_sizes(sizes, mask), sizes.shape[1])
    torch.testing.assert_close(memory, expected, atol=1e-5, rtol=0)
    assert torch.equal(memory_mask, expected_mask)


@few
@given(SEEDS, st.lists(st.integers(1, 90), min_size=1, max_size=3), st.integers(1, 20))
def test_both_steps_off_is_mean_pooling(seed, lengths, ratio):
    """F7: consecutive groups of `ratio`, the last one short; the number of slots equals that of the coarse step."""
    states, mask, query = batch_of(seed, lengths)
    slots = -(-mask.shape[1] // ratio)
    groups = consecutive_groups(mask, ratio)
    weights = merge_weights(states, mask, query, groups, slots, 0.0, 0.0)
    memory, memory_mask = merge_slots(states, groups, slots, weights)
    for row, length in enumerate(lengths):
        means = torch.stack([part.mean(0) for part in states[row, :length].split(ratio)])
        torch.testing.assert_close(memory[row, memory_mask[row]], means, atol=1e-5, rtol=0)
    on = reallocate_groups(states, mask, query, ratio, min_group_size=1)
    assert torch.equal((on > 0).sum(1), memory_mask.sum(1))


def test_empty_groups_are_dropped():
    """E5: the published rule may assign no token to a group; its slot is dropped and the others move left."""
    states, mask, query = batch_of(0, [6, 3])
    memory, memory_mask = merge_groups(states, mask, query, torch.tensor([[2, 0, 4], [0, 0, 3]]), 0.0, 0.0)
    assert memory_mask.tolist() == [[True, True, False], [True, False, False]]
    expected = torch.stack([states[0, :2].mean(0), states[0, 2:].mean(0), torch.zeros(8)])
    torch.testing.assert_close(memory[0], expected)
    torch.testing.assert_close(memory[1, 0], states[1, :3].mean(0))


def test_duplicates_are_suppressed():
    """F6: {u, u, v} of equal relevance."""
    u, v = [1.0, 1.0, 0.0], [1.0, -0.6, 0.8]
    states, query = torch.tensor([[u, u, v]]), torch.tensor([[1.0, 0.0, 0.0]])
    arguments = (states, torch.ones(1, 3).bool(), query, torch.zeros(1, 3).long(), 1)
    weights = merge_weights(*arguments)[0]
    assert weights[2] > weights[0] and weights[0] == weights[1]
    torch.testing.assert_close(merge_weights(*arguments, beta=0.0)[0], torch.full((3,), 1 / 3))


def test_values_may_differ_from_the_states():
    states, mask, query = batch_of(2, [20, 11])
    sizes = reallocate_groups(states, mask, query, 5)
    values = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = groups_from_sizes(sizes, mask)
    memory, _ = merge_groups(states, mask, query, sizes, values=values)
    weights = merge_weights(states, mask, query, groups, 4)
    expected = torch.stack([weights[0, groups[0] == g].double() @ values[0, groups[0] == g] for g in range(4)])
    torch.testing.assert_close(memory[0], expected)
    assert memory.dtype == torch.float64


# ---- invariance (F3, F4) ----


@few
@given(
    SEEDS,
    st.sampled_from([2.0**-20, 0.25, 1024.0]),
    st.sampled_from([2.0**-12, 8.0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_scale(seed, by, query_by, dtype):
    """Powers of two are exact in binary: sizes and memories must agree to the bit."""
    states, mask, query = batch_of(seed, [70, 41], dtype)
    sizes = reallocate_groups(states, mask, query, 6, temperature=0.1)
    memory, _ = merge_groups(states, mask, query, sizes)
    assert torch.equal(reallocate_groups(states * by, mask, query * query_by, 6, temperature=0.1), sizes)
    assert torch.equal(merge_groups(states * by, mask, query * query_by, sizes)[0], memory * by)


@few
@given(
    SEEDS,
    st.lists(st.integers(1, 150), min_size=1, max_size=4),
    st.integers(1, 20),
    st.integers(0, 30),
    st.sampled_from(["left", "right", "holes"]),
)
def test_padding_and_batch(seed, lengths, ratio, extra, side):
    """A row's result depends neither on its padding and the values there nor on the other rows.

    The examples are the same in every run, as quotas closer to a tie than fp32 noise could round either way.
    """
    states, query = draw(seed, len(lengths), max(lengths), dim=16)
    g = torch.Generator().manual_seed(seed)
    width = max(lengths) + extra
    padded, mask = 100 * torch.randn(len(lengths), width, 16, generator=g), torch.zeros(len(lengths), width).bool()
    for row, length in enumerate(lengths):
        columns = {
            "left": torch.arange(width - length, width),
            "right": torch.arange(length),
            "holes": torch.randperm(width, generator=g)[:length].sort().values,
        }[side]
        padded[row, columns], mask[row, columns] = states[row, :length], True
    sizes = reallocate_groups(padded, mask, query, ratio, temperature=0.5)
    memory, memory_mask = merge_groups(padded, mask, query, sizes)
    for row, length in enumerate(lengths):
        part, one = states[row : row + 1, :length], slice(row, row + 1)
        alone = torch.ones(1, length).bool()
        own = reallocate_groups(part, alone, query[one], ratio, temperature=0.5)
        assert sizes[row, : own.shape[1]].tolist() == own[0].tolist() and not sizes[row, own.shape[1] :].any()
        own_memory, own_mask = merge_groups(part, alone, query[one], own)
        assert memory_mask[row].sum() == own_mask.sum()
        torch.testing.assert_close(memory[row, memory_mask[row]], own_memory[own_mask], atol=1e-5, rtol=1e-5)
        assert not memory[row, ~memory_mask[row]].any()


def test_autocast_does_not_lower_precision():
    states, mask, query = batch_of(0, [120, 77], dim=64)
    sizes = reallocate_groups(states, mask, query, 8)
    memory, _ = merge_groups(states, mask, query, sizes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reallocate_groups(states, mask, query, 8), sizes)
        assert torch.equal(merge_groups(states, mask, query, sizes)[0], memory)


def test_precomputed_values_do_not_change_the_result():
    states, mask, query = batch_of(0, [60, 31], torch.bfloat16)
    precomputed = precompute(states, query)
    sizes = reallocate_groups(states, mask, query, 7, precomputed=precomputed)
    assert torch.equal(sizes, reallocate_groups(states, mask, query, 7))
    for once, twice in zip(
        merge_groups(states, mask, query, sizes, precomputed=precomputed), merge_groups(states, mask, query, sizes)
    ):
        assert torch.equal(once, twice)


# ---- gradients (F9, E8) ----


def test_learned_weights_get_a_gradient():
    states, mask, query = batch_of(0, [40, 23])
    alpha, beta = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    states.requires_grad_(), query.requires_grad_()
    sizes = reallocate_groups(states, mask, query, 8)
    assert not sizes.requires_grad
    memory, _ = merge_groups(states, mask, query, sizes, alpha, beta)
    memory.square().sum().backward()
    for leaf in (alpha, beta, query):
        assert leaf.grad.abs().max() > 0
    assert (states.grad.abs().amax(-1) > 0).tolist() == mask.tolist()


def test_gradient_of_identical_tokens_is_finite():
    """All cosines are 1 and tie; a zero state has no direction."""
    states = torch.ones(1, 12, 4)
    states[0, 5] = 0
    states.requires_grad_()
    memory, _ = merge_groups(states, torch.ones(1, 12).bool(), torch.ones(1, 4), torch.tensor([[5, 4, 3]]))
    memory.sum().backward()
    assert torch.isfinite(states.grad).all()


def test_memory_for_the_backward_pass_is_linear_in_tokens():
    """Tensors saved by autograd grow with tokens, not with tokens times the group's size."""
    saved = []

    def record(tensor):
        saved.append(tensor.numel())
        return tensor

    width = 640
    states, mask, query = batch_of(0, [width], dim=4)
    states.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        merge_groups(states, mask, query, torch.tensor([[width]]))
    assert saved and max(saved) <= 4 * width
