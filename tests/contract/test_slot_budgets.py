"""Budgets of every compressor that merges or truncates: ratios, slots, segments."""

import pytest
import torch

from breviary.contract import Context
from breviary.memory.budget import Budget
from tests.forms import FROZEN, each, representative_forms

VECTOR = representative_forms(only_compressors=True)
MERGING = {name: overrides for name, overrides in VECTOR.items() if name.split("-")[0] in ("comi", "mean_pool")}
# COMI's published rule may drop groups; with one token reserved per group, the number of slots is exact.
EXACT = {
    name: overrides + (["compressor.min_group_size=1"] if name.startswith("comi") else [])
    for name, overrides in MERGING.items()
}


# ------------------------------------------------------------------ budgets


def ceil(a, b):
    return -(-a // b)


@pytest.mark.parametrize("ratio", [1, 3, 4, 50])
@each({**EXACT, "truncate": VECTOR["truncate"]})
def test_slots_are_the_ceiling_of_tokens_by_ratio(build, overrides, ratio, ragged):
    reader = build([*overrides, *FROZEN, f"compressor.ratio={ratio}"]).eval()
    footprint = reader.footprint(ragged)
    lengths = ragged.context.lengths.tolist()
    assert footprint.context_tokens.tolist() == lengths
    assert footprint.memory_slots.tolist() == [ceil(length, ratio) for length in lengths]
    assert footprint.requested_ratio == reader.requested_ratio == ratio
    assert footprint.effective_ratio == pytest.approx(sum(lengths) / sum(ceil(length, ratio) for length in lengths))
    layers = 4 - reader.compressor.layer  # float32, 2 key/value heads of width 16, keys and values
    assert footprint.memory_bytes.tolist() == [ceil(n, ratio) * layers * 2 * 2 * 16 * 4 for n in lengths]
    with torch.no_grad():
        assert reader.loss(ragged).slots.tolist() == footprint.memory_slots.tolist()


@each({**MERGING, "truncate": VECTOR["truncate"]})
@pytest.mark.parametrize("slots", [1, 3, 64])
def test_a_budget_in_slots_is_not_exceeded(build, overrides, slots, ragged):
    reader = build([*overrides, *FROZEN, "compressor.ratio=null", f"compressor.slots={slots}"]).eval()
    footprint = reader.footprint(ragged)
    assert (footprint.memory_slots <= slots).all() and (footprint.memory_slots <= footprint.context_tokens).all()
    assert (footprint.memory_slots[footprint.context_tokens > 0] > 0).all()
    assert footprint.requested_ratio is None and reader.requested_ratio is None


@each(EXACT)
def test_a_budget_in_slots_counts_the_whole_context(build, overrides, ragged):
    """Segments share the budget, with at most one more slot per further segment."""
    reader = build(
        [*overrides, *FROZEN, "compressor.ratio=null", "compressor.slots=3", "compressor.segment_size=16"]
    ).eval()
    for slots, tokens in zip(reader.footprint(ragged).memory_slots.tolist(), ragged.context.lengths.tolist()):
        ratio = max(ceil(tokens, 3), 1)
        parts = [min(16, tokens - start) for start in range(0, tokens, 16)]
        assert slots == sum(ceil(part, ratio) for part in parts) <= 3 + max(len(parts) - 1, 0)


@each(EXACT)
def test_a_ratio_applies_to_each_segment(build, overrides, ragged):
    reader = build([*overrides, *FROZEN, "compressor.segment_size=10", "compressor.ratio=4"]).eval()
    expected = [sum(ceil(min(10, n - start), 4) for start in range(0, n, 10)) for n in ragged.context.lengths.tolist()]
    assert reader.footprint(ragged).memory_slots.tolist() == expected


@each(MERGING)
def test_no_segment_is_padding_alone(build, overrides, ragged):
    longest = ragged.context.ids.shape[1]
    for size in (longest + 1, longest, longest - 1, longest // 2, 1):
        reader = build([*overrides, *FROZEN, f"compressor.segment_size={size}"])
        mask = reader.compressor.encode(Context(ragged.context.ids, ragged.context.mask, ragged.prefix)).mask
        assert mask.shape[1] == ceil(longest, size) == mask.any(2).sum(1).max()


@each(MERGING)
def test_a_context_within_one_segment_is_encoded_as_without_segments(build, overrides, ragged):
    longest = ragged.context.ids.shape[1]
    with torch.no_grad():
        nll = [build([*overrides, f"compressor.segment_size={size}"]).loss(ragged).nll for size in (longest, 10_000)]
        cut = build([*overrides, f"compressor.segment_size={longest // 2}"]).loss(ragged).nll
    assert torch.equal(*nll)
    assert not torch.allclose(cut[0], nll[0][0], rtol=1e-4)


def test_random_ratios_apply_in_training_only(build, ragged):
    reader = build(["compressor=mean_pool", "compressor.ratio=2", "compressor.ratio_choices=[8,16]"])
    reader.begin_step(3, 42)
    drawn = Budget(2, None, [8, 16])
    drawn.begin_step(3, 42)
    slots = reader.loss(ragged).slots.tolist()
    assert drawn.requested_ratio(True) in (8, 16) and reader.requested_ratio == drawn.requested_ratio(True)
    assert slots == [ceil(n, drawn.requested_ratio(True)) for n in ragged.context.lengths.tolist()]
    reader.eval()
    assert reader.requested_ratio == 2
    assert reader.loss(ragged).slots.tolist() == [ceil(n, 2) for n in ragged.context.lengths.tolist()]
