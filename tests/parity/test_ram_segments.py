"""ram.segments, ram.losses and ram.labels equal their readable twin ram.reference, in values and gradients.

Tolerances. fp64: 1e-10, as sums of tens of terms run in another order. fp32: 1e-5 for values and gradients of order
1, as the reference divides by the product of norms where the fast path normalises the query first (a few ulp). A low
temperature multiplies the input of the softmax, and these ulp with it. bf16 states are compared with the reference on
the same numbers in fp32, so only the result's rounding to bf16 remains: 1/256 of its size.
"""

import contextlib
import itertools

import pytest
import torch

from ram import labels, losses, reference, segments

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
RATIOS = (1, 1.5, 2, 1 / 0.29, 4, 1 / 0.07, 50)


def make(dtype, seed=0, garbage=0.0):
    """States with a common direction, as in language models; padding holds `garbage`.

    Rows: full; padded on the right with a short last segment; padding anywhere and an empty segment between others;
    one token; none.
    """
    g = torch.Generator().manual_seed(seed)
    states = torch.randn(5, 6, 4, 9, generator=g, dtype=torch.float64)
    states = states + 0.5 * torch.randn(5, 1, 1, 9, generator=g, dtype=torch.float64)
    query = torch.randn(5, 9, generator=g, dtype=torch.float64)
    mask = torch.ones(5, 6, 4, dtype=torch.bool)
    mask[1] = torch.arange(24).view(6, 4) < 14
    mask[2] = torch.rand(6, 4, generator=g) < 0.6
    mask[2, 2] = False
    mask[3] = torch.arange(24).view(6, 4) == 0
    mask[4] = False
    return states.masked_fill(~mask[..., None], garbage).to(dtype), mask, query.to(dtype)


def close(ours, theirs, dtype=torch.float32, scale=1.0):
    tolerance = TOLERANCE[dtype] * scale
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def compare(dtype, call, ours, reference, *leaves, scale=1.0):
    """Asserts that `call(function, *leaves)` has equal values and gradients for both functions."""
    results = []
    for function in (ours, reference):
        copies = [leaf.clone().requires_grad_() for leaf in leaves]
        result = call(function, *copies)
        g = torch.Generator().manual_seed(7)
        pull = torch.randn(result.shape, generator=g, dtype=torch.float64).to(result.dtype)
        results.append((result.detach(), torch.autograd.grad((result * pull).sum(), copies, materialize_grads=True)))
    (value, grads), (expected, expected_grads) = results
    close(value, expected, dtype, scale)
    for mine, other in zip(grads, expected_grads):
        close(mine, other, dtype, scale)
    return expected, expected_grads


# ---- relevance, selection ----


@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan")])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_relevance(dtype, garbage):
    for seed in range(3):
        states, mask, query = make(dtype, seed, garbage)
        _, grads = compare(
            dtype,
            lambda f, states, query, mask=mask: f(states, mask, query),
            segments.relevance,
            reference.relevance,
            states,
            query,
        )
        assert all(grad.abs().max() > 0 for grad in grads)


@pytest.mark.parametrize("budget", segments.BUDGETS)
def test_selection(budget):
    """Over all ratios; scores on a coarse grid, so that many are equal."""
    for seed, ratio, grid in itertools.product(range(4), RATIOS, (None, 2)):
        states, mask, query = make(torch.float32, seed)
        relevance, lengths = segments.relevance(states, mask, query), mask.sum(-1)
        if grid:
            relevance = (relevance * grid).round() / grid
        ours = segments.select_segments(relevance, lengths, ratio, budget)
        assert torch.equal(ours, reference.select_segments(relevance, lengths, ratio, budget))


def test_selection_with_a_budget_in_slots_and_several_slots_per_skimmed_segment():
    g = torch.Generator().manual_seed(0)
    kept = 0
    for _ in range(100):
        relevance = torch.randint(0, 6, (4, 8), generator=g) / 6
        lengths = torch.randint(0, 7, (4, 8), generator=g)
        slots = torch.randint(0, 40, (4,), generator=g)
        each = (None, torch.zeros_like(lengths), -(-lengths // 3))  # slots of a skimmed segment: one, none, some
        for settings in ({"slots": slots}, {"ratio": 1.5, "budget": "strict"}):
            for skimmed in each:
                ours = segments.select_segments(relevance, lengths, **settings, skimmed=skimmed)
                assert torch.equal(ours, reference.select_segments(relevance, lengths, **settings, skimmed=skimmed))
                kept += int(ours.sum())
    assert 0 < kept < 100 * 32 * 6


# ---- skimming ----


@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan")])
@pytest.mark.parametrize("mode", segments.SKIM_MODES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_weights_and_vectors(dtype, mode, garbage):
    for seed, temperature in ((0, 1.0), (1, 0.05), (2, 7.0)):
        states, mask, query = make(dtype, seed, garbage)
        scale = max(1, 1 / temperature)
        if mode == "query_weighted":
            compare(
                dtype,
                lambda f, states, query, mask=mask, t=temperature: f(states, mask, query, t),
                segments.skim_weights,
                reference.skim_weights,
                states,
                query,
                scale=scale,
            )
        else:  # these weights do not depend on the states
            close(
                segments.skim_weights(states, mask, query, temperature, mode),
                reference.skim_weights(states, mask, query, temperature, mode),
                dtype,
            )
        g = torch.Generator().manual_seed(seed)
        values = torch.randn(5, 6, 4, 3, generator=g, dtype=torch.float64).masked_fill(~mask[..., None], garbage)
        pooled, _ = compare(
            dtype,
            lambda f, *leaves, mask=mask, t=temperature: f(leaves[0], mask, leaves[1], t, leaves[2], mode),
            segments.skim,
            reference.skim,
            states,
            query,
            values.to(dtype),
            scale=scale,
        )
        assert bool(pooled.any()) == (mode != "drop")


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_vectors_of_the_states_themselves(dtype):
    for seed, temperature in ((0, 1.0), (1, 0.05)):
        states, mask, query = make(dtype, seed, float("nan"))
        _, grads = compare(
            dtype,
            lambda f, states, query, mask=mask, t=temperature: f(states, mask, query, t),
            segments.skim,
            reference.skim,
            states,
            query,
            scale=max(1, 1 / temperature),
        )
        assert all(grad.abs().max() > 0 for grad in grads)


# ---- contrastive loss, labels ----


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_contrastive_loss(dtype, reduction):
    """Rows without a positive, without a segment, with positives on padding, and batches of such rows only."""
    g = torch.Generator().manual_seed(0)
    for trial, temperature in itertools.product(range(6), (0.05, 0.1, 1.0)):
        relevance = (2 * torch.rand(6, 7, generator=g, dtype=torch.float64) - 1).to(dtype)
        positives = torch.rand(6, 7, generator=g) < (0.3 if trial else 0.0)
        valid = torch.rand(6, 7, generator=g) < 0.7
        valid[0], positives[1] = False, False
        value, (grad,) = compare(
            dtype,
            lambda f, r, p=positives, v=valid, t=temperature: f(r, p, v, t, reduction),
            losses.contrastive_loss,
            reference.contrastive_loss,
            relevance,
            scale=1 / temperature,
        )
        counted = bool((positives & valid).any())
        assert counted == (trial > 0) and bool(value > 0) == bool(grad.any()) == counted


def test_positive_segments():
    g = torch.Generator().manual_seed(0)
    for width, length, share in itertools.product((0, 1, 5, 6, 13), (1, 3, 6, 20), (0.0, 0.1, 0.5)):
        marks = torch.rand(4, width, generator=g) < share
        assert torch.equal(labels.positive_segments(marks, length), reference.positive_segments(marks, length))


# ---- precision ----


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_half_precision_states(autocast):
    """With bf16 states, also under autocast, only the final rounding differs from the fp32 computation."""
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    for seed, temperature in itertools.product(range(3), (1.0, 0.05)):
        states, mask, query = make(torch.bfloat16, seed, float("nan"))
        exact = (states.float(), mask, query.float())
        with context:
            relevance = segments.relevance(states, mask, query)
            keep = segments.select_segments(relevance, mask.sum(-1), 1 / 0.29, "strict")
            weights = segments.skim_weights(states, mask, query, temperature)
            pooled = segments.skim(states, mask, query, temperature)
            loss = losses.contrastive_loss(relevance.bfloat16(), keep, mask.any(-1), 0.05)
        assert relevance.dtype == weights.dtype == loss.dtype == torch.float32 and pooled.dtype == torch.bfloat16
        close(relevance, reference.relevance(*exact))
        assert torch.equal(keep, reference.select_segments(relevance, mask.sum(-1), 1 / 0.29, "strict"))
        close(weights, reference.skim_weights(*exact, temperature), scale=1 / temperature)
        torch.testing.assert_close(pooled.float(), reference.skim(*exact, temperature), atol=1e-4, rtol=1 / 256)
        close(loss, reference.contrastive_loss(relevance.bfloat16().float(), keep, mask.any(-1), 0.05), scale=20)


def test_autocast_does_not_lower_precision():
    """With fp32 states, nothing is rounded to bf16, forward or backward."""
    states, mask, query = make(torch.float32, 4)
    results = []
    for context in (contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        leaves = [leaf.clone().requires_grad_() for leaf in (states, query)]
        with context:
            relevance = segments.relevance(leaves[0], mask, leaves[1])
            pooled = segments.skim(leaves[0], mask, leaves[1], 0.1)
            loss = losses.contrastive_loss(relevance, relevance > 0, mask.any(-1))
        (loss + pooled.sum()).backward()
        results.append((relevance, pooled, loss, *(leaf.grad for leaf in leaves)))
    for plain, under in zip(*results):
        assert torch.equal(plain, under)
