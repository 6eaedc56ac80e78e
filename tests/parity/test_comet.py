"""comet.layers against comet.reference: last hidden states at every token, and gradients of all weights.

Tolerances. fp64: 1e-10, sums of tens of terms in another order. fp32: 1e-5 of a tensor's largest value, a few hundred
roundings over two layers, five chunks and their backward pass. transformers' eager attention computes its softmax in
fp32 for every dtype, so it has the tolerance of fp32.
"""

import pytest
import torch
from comet_helpers import (
    chunked_text,
    expected_states,
    gradients,
    largest_difference,
    random_ids,
    text_states,
    tiny_comet,
)

from breviary.backbones.attention import BLOCKWISE
from comet.layers import BACKENDS

PLANS = [[16, 16, 9, 16, 14], [3, 16, 1], [7], [16, 16, 16, 16]]  # short first chunk, remainders, one chunk, full
FAMILIES = ("llama", "qwen2", "qwen3")


def weighted_sum(states):
    """A scalar in which every number of the rows (N, D) has a different weight."""
    g = torch.Generator().manual_seed(7)
    return sum((row * torch.randn(row.shape, generator=g, dtype=torch.float64).to(row.dtype)).sum() for row in states)


def compare(reader, plans, tolerance=1e-10, stride=4):
    """Values and gradients of a batch of rows equal those of the reference for each row."""
    ids = random_ids(len(plans), max(map(sum, plans)))
    ours = text_states(reader, chunked_text(ids, plans, stride))
    theirs = [expected_states(reader, row[: sum(sizes)], sizes, stride) for row, sizes in zip(ids, plans)]
    for actual, expected in zip(ours, theirs):
        assert actual.shape == expected.shape and actual.dtype == expected.dtype == reader.decoder.dtype
        assert (actual - expected).abs().max().item() < tolerance * max(expected.abs().max().item(), 1)
    actual, expected = gradients(reader, weighted_sum(ours)), gradients(reader, weighted_sum(theirs))
    assert largest_difference(actual, expected) < tolerance
    return expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients(family, backend):
    reader = tiny_comet(f"backbone.family={family}", f"compressor.backend={backend}")
    expected = compare(reader, PLANS)
    assert [name for name, grad in expected.items() if not grad.any()] == [
        "decoder.final_norm.weight"  # after the last layer
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_in_single_precision(family, backend):
    compare(tiny_comet(f"backbone.family={family}", f"compressor.backend={backend}", dtype="float32"), PLANS[:2], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("attention, used, tolerance", [("eager", "eager", 1e-5), ("sdpa", BLOCKWISE, 1e-10)])
def test_every_attention(attention, used, tolerance, backend):
    reader = tiny_comet(f"backbone.attn_implementation={attention}", f"compressor.backend={backend}")
    assert reader.decoder.config._attn_implementation == used
    compare(reader, PLANS[:2], tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "overrides",
    [
        ["compressor.global_slots=0"],
        ["compressor.queue_budget=0"],
        ["compressor.global_slots=0", "compressor.queue_budget=0"],
        ["compressor.gate=false"],
        ["compressor.gate_bias=2.0", "compressor.eps=0.1"],
        ["compressor.quirks=true"],
        ["compressor.adapter_rank=1", "compressor.global_slots=7", "compressor.queue_budget=5"],
    ],
    ids=" ".join,
)
def test_every_setting(overrides, backend):
    compare(tiny_comet(*overrides, f"compressor.backend={backend}"), PLANS[:2])


@pytest.mark.parametrize("stride", [1, 3, 8, 16])
def test_other_strides(stride):
    """A stride that does not divide the sizes, and one slot per chunk."""
    compare(tiny_comet("compressor.queue_budget=20"), PLANS[:3], stride=stride)


@pytest.mark.parametrize("backend", BACKENDS)
def test_activation_checkpointing_does_not_change_results(backend):
    reader, results = tiny_comet(f"compressor.backend={backend}").train(), []
    for checkpointing in (False, True):
        reader.decoder.checkpointing = checkpointing
        calls = []
        handle = reader.decoder.layers[0].register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        results.append(gradients(reader, weighted_sum(text_states(reader, chunked_text(random_ids(2, 71), PLANS[:2])))))
        handle.remove()
        assert len(calls) == 5 * (1 + checkpointing)
    assert all(torch.equal(results[1][name], grad) for name, grad in results[0].items())


def test_both_backends_compute_the_same_numbers():
    """scatter has columns for memory slots in the sequence, kv_prefix has none."""
    ids, results = random_ids(2, 71), []
    for backend in BACKENDS:
        results.append(text_states(tiny_comet(f"compressor.backend={backend}"), chunked_text(ids, PLANS[:2])))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
