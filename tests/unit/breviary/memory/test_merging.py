"""Tensor functions of breviary.memory.merging: groups, slot counts, merging."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from breviary.memory.merging import (
    consecutive_groups,
    groups_from_sizes,
    last_token_positions,
    max_slot_count,
    merge_slots,
    slot_count,
)

settings.register_profile("merge", derandomize=True, deadline=None, max_examples=60)


def rows_of_bools(max_width=40):
    """Masks with padding anywhere, all rows of one width."""
    return (
        st.integers(1, max_width)
        .flatmap(
            lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=4)
        )
        .map(torch.tensor)
    )


def slow_merge(values, groups, slots, weights):
    """One row, one group, one token at a time."""
    memory = torch.zeros(len(values), slots, values.shape[-1], dtype=torch.float64)
    mask = torch.zeros(len(values), slots, dtype=torch.bool)
    last = torch.zeros(len(values), slots, dtype=torch.int64)
    for b in range(len(values)):
        used = sorted({g for g in groups[b].tolist() if g >= 0})
        for slot, group in enumerate(used):
            columns = [k for k, g in enumerate(groups[b].tolist()) if g == group]
            scale = [1 / len(columns)] * len(columns) if weights is None else weights[b, columns].tolist()
            memory[b, slot] = sum(w * values[b, k].double() for w, k in zip(scale, columns))
            mask[b, slot] = True
            last[b, slot] = columns[-1]
    return memory, mask, last


def test_consecutive_groups_by_hand():
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1]]).bool()
    assert consecutive_groups(mask, 2).tolist() == [[-1, 0, 0, 1, 1, 2], [0, 0, 1, -1, -1, -1], [0, -1, 0, 1, -1, 1]]
    assert consecutive_groups(mask, torch.tensor([4, 1, 3])).tolist() == [
        [-1, 0, 0, 0, 0, 1],
        [0, 1, 2, -1, -1, -1],
        [0, -1, 0, 0, -1, 1],
    ]


def test_groups_from_sizes_by_hand():
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    sizes = torch.tensor([[0, 3, 0, 2], [1, 2, 0, 0]])
    assert groups_from_sizes(sizes, mask).tolist() == [[-1, 1, 1, 1, 3, 3], [0, 1, 1, -1, -1, -1]]


def test_slot_count():
    lengths = torch.tensor([0, 1, 15, 16, 17, 5000])
    assert slot_count(lengths, 16).tolist() == [0, 1, 1, 1, 2, 313]
    assert slot_count(lengths, torch.tensor([1, 1, 2, 3, 17, 4])).tolist() == [0, 1, 8, 6, 1, 1250]
    assert (max_slot_count(17, 4), max_slot_count(17, torch.tensor([5, 3]))) == (5, 6)


@settings(settings.get_profile("merge"))
@given(rows_of_bools(), st.integers(1, 12))
def test_consecutive_groups_agree_with_their_sizes(mask, ratio):
    groups = consecutive_groups(mask, ratio)
    slots = max_slot_count(mask.shape[1], ratio)
    sizes = torch.stack([(groups == g).sum(1) for g in range(slots)], 1)
    assert torch.equal(groups_from_sizes(sizes, mask), groups)
    assert torch.equal((sizes > 0).sum(1), slot_count(mask.sum(1), ratio))
    assert torch.equal(groups >= 0, mask)
    assert torch.equal(consecutive_groups(mask, torch.full((len(mask),), ratio)), groups)


@settings(settings.get_profile("merge"))
@given(rows_of_bools(), st.integers(0, 2**31), st.booleans())
def test_merge_against_loops(mask, seed, weighted):
    g = torch.Generator().manual_seed(seed)
    slots = 7
    groups = torch.where(mask, torch.randint(0, slots, mask.shape, generator=g), -1)  # any order, some empty
    values = torch.randn(*mask.shape, 3, generator=g)
    weights = torch.randn(mask.shape, generator=g) if weighted else None
    memory, memory_mask = merge_slots(values, groups, slots, weights)
    expected, expected_mask, last = slow_merge(values, groups, slots, weights)
    assert torch.equal(memory_mask, expected_mask)
    torch.testing.assert_close(memory.double(), expected, atol=1e-5, rtol=0)
    positions = torch.arange(mask.shape[1]).expand_as(mask)
    assert torch.equal(last_token_positions(positions, groups, slots), last)


def test_the_last_token_is_the_one_in_the_last_column():
    groups = torch.tensor([[2, 2, 0, -1, 0, 3]])
    positions = torch.tensor([[9, 4, 7, 1, 3, 8]])
    assert last_token_positions(positions, groups, 5).tolist() == [[3, 4, 8, 0, 0]]


def test_gradients():
    g = torch.Generator().manual_seed(0)
    groups = torch.tensor([[-1, 0, 0, 2, 2, 2], [0, 1, 1, 3, -1, -1]])
    values = torch.randn(2, 6, 3, generator=g, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 6, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w: merge_slots(v, groups, 4, w)[0], (values, weights))
    assert torch.autograd.gradcheck(lambda v: merge_slots(v, groups, 4)[0], (values,))


def test_sums_run_in_fp32():
    """4096 bf16 ones and a weight that bf16 cannot hold: a bf16 sum stops growing at 256."""
    values = torch.ones(1, 4096, 2, dtype=torch.bfloat16)
    groups = torch.zeros(1, 4096, dtype=torch.int64)
    memory, _ = merge_slots(values, groups, 1, torch.full((1, 4096), 1.001))
    assert memory.dtype == torch.bfloat16
    assert memory.tolist() == [[[4096.0, 4096.0]]]  # 4100.1 rounded to bf16's step of 32
    assert merge_slots(values, groups, 1)[0].tolist() == [[[1.0, 1.0]]]


def test_padding_does_not_reach_the_memory():
    values = torch.ones(1, 4, 2)
    values[0, 0] = float("nan")
    memory, mask = merge_slots(values, torch.tensor([[-1, 0, 0, 1]]), 3)
    assert memory.tolist() == [[[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]]
    assert mask.tolist() == [[True, True, False]]


@pytest.mark.parametrize("width", [0, 5])
def test_rows_without_tokens(width):
    mask = torch.zeros(2, width, dtype=torch.bool)
    groups = consecutive_groups(mask, 2)
    memory, memory_mask = merge_slots(torch.ones(2, width, 3), groups, 3)
    assert memory.shape == (2, 3, 3) and not memory.any() and not memory_mask.any()
    assert torch.equal(groups_from_sizes(torch.zeros(2, 3, dtype=torch.int64), mask), groups)
