"""ram.losses: properties of the contrastive loss (spec 5: 10)."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from ram.losses import contrastive_loss

few = settings(derandomize=True, deadline=None, max_examples=60)
SEEDS = st.integers(0, 2**31)
TEMPERATURES = st.sampled_from([0.05, 0.1, 1.0])


def draw(seed, rows=4, segments=7, share=0.3):
    g = torch.Generator().manual_seed(seed)
    relevance = 2 * torch.rand(rows, segments, generator=g) - 1
    valid = torch.rand(rows, segments, generator=g) < 0.8
    return relevance, (torch.rand(rows, segments, generator=g) < share) & valid, valid


@few
@given(SEEDS, TEMPERATURES)
def test_the_loss_is_the_negative_log_probability_of_the_positives(seed, temperature):
    """In fp64, row by row; `mean` divides the sum by the number of rows that have a positive."""
    relevance, positives, valid = draw(seed)
    exact = relevance.double()
    total = contrastive_loss(exact, positives, valid, temperature, "sum")
    masses = (exact / temperature).exp() * valid
    rows = -((masses * positives).sum(1) / masses.sum(1)).log()
    counted = positives.any(1)
    torch.testing.assert_close(total, rows[counted].sum(), atol=1e-10, rtol=1e-10)
    mean = contrastive_loss(exact, positives, valid, temperature)
    torch.testing.assert_close(mean, total / max(int(counted.sum()), 1), atol=1e-10, rtol=1e-10)


@few
@given(SEEDS, TEMPERATURES)
def test_the_loss_is_not_negative_and_decreases_with_more_positives(seed, temperature):
    relevance, positives, valid = draw(seed)
    last = None
    for further in range(positives.shape[1]):
        loss = contrastive_loss(relevance[:1], positives[:1], valid[:1], temperature)
        assert loss >= -1e-6
        if positives[0].any():
            assert last is None or loss <= last + 1e-6
            last = loss
        positives[0, further] = valid[0, further]
    assert contrastive_loss(relevance[:1], valid[:1], valid[:1], temperature).abs() < 1e-6


@few
@given(SEEDS, st.floats(-1e4, 1e4))
def test_padding_does_not_change_the_loss(seed, garbage):
    """Padding segments with arbitrary scores, marked as positive."""
    relevance, positives, valid = draw(seed)
    pads, marked = torch.full((4, 3), garbage), torch.ones(4, 3, dtype=torch.bool)
    wide = (torch.cat([relevance, pads], 1), torch.cat([positives, marked], 1), torch.cat([valid, ~marked], 1))
    torch.testing.assert_close(contrastive_loss(*wide), contrastive_loss(relevance, positives, valid))


def test_rows_without_a_positive_are_ignored():
    relevance, positives, valid = draw(0)
    positives[0, 0] = valid[0, 0] = True
    positives[2:] = False
    counted = positives.any(1)
    for reduction in ("mean", "sum"):
        torch.testing.assert_close(
            contrastive_loss(relevance, positives, valid, reduction=reduction),
            contrastive_loss(relevance[counted], positives[counted], valid[counted], reduction=reduction),
        )


def test_sums_over_parts_of_a_batch_add_up():
    """Therefore gradient accumulation and world size do not change the loss."""
    relevance, positives, valid = draw(1, rows=8)
    whole = contrastive_loss(relevance, positives, valid, reduction="sum")
    parts = [
        contrastive_loss(*(x[i : i + 2] for x in (relevance, positives, valid)), reduction="sum")
        for i in range(0, 8, 2)
    ]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(whole / positives.any(1).sum(), contrastive_loss(relevance, positives, valid))


def test_without_positives_loss_and_gradient_are_0():
    relevance, positives, valid = draw(2)
    for rows_valid in (valid, torch.zeros_like(valid)):
        leaf = relevance.clone().requires_grad_()
        loss = contrastive_loss(leaf, torch.zeros_like(positives), rows_valid)
        loss.backward()
        assert loss == 0 and not leaf.grad.any()


def test_the_gradient_raises_positives_and_lowers_the_others():
    relevance, positives, valid = draw(3, share=0.5)
    leaf = relevance.requires_grad_()
    contrastive_loss(leaf, positives, valid, 1.0).backward()
    counted = (positives.any(1) & (valid & ~positives).any(1))[:, None]
    assert counted.any()
    assert (leaf.grad[counted & positives] < 0).all() and (leaf.grad[counted & valid & ~positives] > 0).all()
    assert not leaf.grad[~valid].any()


def test_any_positive_suffices():
    """The sum is inside the logarithm, so one relevant positive is enough."""
    relevance, valid = torch.tensor([[0.9, -0.9, 0.0]]), torch.ones(1, 3).bool()
    both, first, second = (
        contrastive_loss(relevance, torch.tensor([marks]), valid)
        for marks in ([True, True, False], [True, False, False], [False, True, False])
    )
    assert both <= first < 0.01 and second > 10


def test_half_precision_at_a_low_temperature_is_finite():
    relevance, positives, valid = draw(4)
    leaf = relevance.bfloat16().requires_grad_()
    loss = contrastive_loss(leaf, positives, valid, 0.05)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(leaf.grad).all()
    torch.testing.assert_close(loss, contrastive_loss(relevance.bfloat16().float(), positives, valid, 0.05))


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"reduction": "max"}, "'max': allowed are mean, sum"),
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
    ],
)
def test_misuse_is_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        contrastive_loss(*draw(0), **wrong)
