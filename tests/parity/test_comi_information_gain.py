"""comi.information_gain equals its readable twin comi.reference, in values and gradients.

Tolerances. fp64: 1e-10, as sums of tens of terms run in another order. fp32: 1e-5 for values of order 1, as the
reference divides by the product of norms where the fast path multiplies by inverses (a few ulp); 1e-4 for gradients,
which pass two softmaxes. bf16 states are compared with the reference on the same numbers in fp32, so only the memory's
final rounding remains: 1/256 of its size.
"""

import itertools

import pytest
import torch

from breviary.memory.merging import consecutive_groups, groups_from_sizes
from comi import information_gain as mig
from comi import reference

ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}
GRADIENT = {torch.float64: 1e-9, torch.float32: 1e-4}


def make(dtype, seed=0, width=23, shared=0.5, dim=12):
    """States with a common direction, as in language models; padding on the right, left, both sides, and none."""
    g = torch.Generator().manual_seed(seed)
    states = torch.randn(4, width, dim, generator=g, dtype=torch.float64)
    states = states + shared * torch.randn(4, 1, dim, generator=g, dtype=torch.float64)
    query = torch.randn(4, dim, generator=g, dtype=torch.float64)
    mask = torch.ones(4, width, dtype=torch.bool)
    mask[0, width - 6 :] = False
    mask[1, :7] = False
    mask[2, :2] = mask[2, -3:] = False
    return states.to(dtype), mask, query.to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("ratio", [1, 2, 5, 8, 40])
def test_gain_and_sizes(dtype, ratio):
    for seed, beta in ((0, 1.0), (1, 0.0), (2, 2.5), (3, 1.0)):
        states, mask, query = make(dtype, seed)
        groups = consecutive_groups(mask, ratio)
        ours = mig.marginal_information_gain(states, mask, query, groups, 1.5, beta)
        theirs = reference.marginal_information_gain(states, mask, query, groups, 1.5, beta)
        torch.testing.assert_close(ours, theirs, atol=ROUNDING[dtype], rtol=0)
        for temperature, smallest in ((1.0, 0), (0.05, 0), (0.05, 1), (0.2, 3)):
            settings = (states, mask, query, ratio, 1.5, beta, temperature, smallest)
            assert torch.equal(mig.reallocate_groups(*settings), reference.reallocate_groups(*settings))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("quirks", [False, True])
def test_memory_and_gradients(dtype, quirks):
    for seed, ratio in ((0, 3), (1, 6), (2, 23)):
        states, mask, query = make(dtype, seed, shared=0.0)
        sizes = mig.reallocate_groups(states, mask, query, ratio, temperature=0.1)
        g = torch.Generator().manual_seed(seed)
        pull = torch.randn(4, sizes.shape[1], 5, generator=g, dtype=torch.float64).to(dtype)
        values = torch.randn(4, 23, 5, generator=g, dtype=torch.float64).to(dtype)
        results = []
        for module in (mig, reference):
            alpha, beta = torch.tensor(1.3, dtype=dtype), torch.tensor(0.7, dtype=dtype)
            leaves = [leaf.clone().requires_grad_() for leaf in (states, query, values, alpha, beta)]
            memory, memory_mask = module.merge_groups(
                leaves[0], mask, leaves[1], sizes, *leaves[3:], leaves[2], quirks=quirks
            )
            (memory * pull).sum().backward()
            results.append((memory.detach(), memory_mask, [leaf.grad for leaf in leaves]))
        (ours, our_mask, our_grads), (theirs, their_mask, their_grads) = results
        assert torch.equal(our_mask, their_mask)
        torch.testing.assert_close(ours, theirs, atol=ROUNDING[dtype], rtol=0)
        for mine, other in zip(our_grads, their_grads):
            assert other.abs().max() > 0
            torch.testing.assert_close(mine, other, atol=GRADIENT[dtype], rtol=GRADIENT[dtype])


def test_gradients_with_states_as_values():
    states, mask, query = make(torch.float64, 3)
    sizes = mig.reallocate_groups(states, mask, query, 4)
    grads = []
    for module in (mig, reference):
        leaf = states.clone().requires_grad_()
        module.merge_groups(leaf, mask, query, sizes)[0].square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, atol=1e-9, rtol=1e-9)


def test_half_precision_states():
    """With bf16 states, everything but the final rounding equals the fp32 computation on the same numbers."""
    for seed, ratio in itertools.product(range(3), (2, 5)):
        states, mask, query = make(torch.bfloat16, seed)
        exact, exact_query = states.float(), query.float()
        groups = consecutive_groups(mask, ratio)
        gain = mig.marginal_information_gain(states, mask, query, groups)
        assert gain.dtype == torch.float32
        torch.testing.assert_close(
            gain, reference.marginal_information_gain(exact, mask, exact_query, groups), atol=1e-5, rtol=0
        )
        sizes = mig.reallocate_groups(states, mask, query, ratio)
        assert torch.equal(sizes, reference.reallocate_groups(exact, mask, exact_query, ratio))
        memory, _ = mig.merge_groups(states, mask, query, sizes)
        assert memory.dtype == torch.bfloat16
        torch.testing.assert_close(
            memory.float(), reference.merge_groups(exact, mask, exact_query, sizes)[0], atol=1e-5, rtol=1 / 256
        )


@pytest.mark.parametrize("sizes", [[1] * 5 + [195], [60, 9, 70, 61], [64, 64, 72], [63, 65, 0, 1, 71], [200]])
def test_groups_beyond_a_tile(sizes):
    """Groups that straddle, fill and exceed tiles of 64 columns, padded on either side; expected from all pairs."""
    width = 230
    states, _, query = (part[:2] for part in make(torch.float64, 5, width=width))
    mask = torch.zeros(2, width, dtype=torch.bool)
    mask[0, :200] = mask[1, 30:] = True
    groups = groups_from_sizes(torch.tensor([sizes, sizes]), mask)
    unit = torch.nn.functional.normalize(states, dim=-1)
    other = (groups[:, :, None] == groups[:, None, :]) & ~torch.eye(width, dtype=torch.bool)
    cosines = (unit @ unit.mT).masked_fill(~other, -torch.inf).amax(-1)
    redundancy = torch.where(cosines == -torch.inf, 0.0, cosines)
    relevance = (unit @ torch.nn.functional.normalize(query, dim=-1)[:, :, None])[..., 0]
    expected = (relevance - redundancy).masked_fill(~mask, 0)
    for requires_grad in (False, True):  # values are recomputed where gradients are required
        ours = mig.marginal_information_gain(states.clone().requires_grad_(requires_grad), mask, query, groups)
        torch.testing.assert_close(ours.detach(), expected, atol=1e-12, rtol=0)


def test_representatives_beyond_a_block():
    """More groups than one block of 256, beside a shorter row; expected from all pairs."""
    states, _, query = (part[:2] for part in make(torch.float64, 6, width=700))
    mask = torch.ones(2, 700, dtype=torch.bool)
    mask[1, 300:] = False
    unit = torch.nn.functional.normalize(states, dim=-1)
    relevance = (unit @ torch.nn.functional.normalize(query, dim=-1)[:, :, None])[..., 0]
    for b, length in enumerate((700, 300)):
        cosines = (unit[b, :length] @ unit[b, :length].T).fill_diagonal_(-torch.inf).amax(-1)
        gains = (relevance[b, :length] - cosines)[None]
        expected = mig.allocate(gains, torch.tensor([length]), torch.ones_like(gains, dtype=torch.bool), 0.1)
        ours = mig.reallocate_groups(
            states, mask, query, 1, temperature=0.1
        )  # ratio 1: every token is a representative
        assert torch.equal(ours[b, :length], expected[0])
        assert ours[b, length:].sum() == 0


def test_allocation():
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        gains = torch.randn(3, 9, generator=g)
        counts = torch.randint(1, 10, (3,), generator=g)
        valid = torch.arange(9) < counts[:, None]
        lengths = torch.randint(1, 90, (3,), generator=g)
        temperature = float(torch.rand((), generator=g)) + 0.02
        smallest = int(torch.randint(0, 5, (), generator=g))
        assert torch.equal(
            mig.allocate(gains, lengths, valid, temperature, smallest),
            reference.allocate(gains, lengths, valid, temperature, smallest),
        )
