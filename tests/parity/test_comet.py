"""comet.layers against its slow twin comet.reference: the stream at every token, and gradients of all weights.

Tolerances. fp64: 1e-10, sums of tens of terms in another order. fp32: 1e-5 of a tensor's largest value, a few hundred
roundings over two layers, five chunks and their backward pass. transformers' eager attention takes its softmax in fp32
whatever the type, so it is compared as fp32 is.
"""

import pytest
import torch
from comet_helpers import comet, drawn_ids, gradients, largest_difference, states_of, text_of, twin

from breviary.backbones.attention import BLOCKWISE
from comet.layers import BACKENDS

PLANS = [[16, 16, 9, 16, 14], [3, 16, 1], [7], [16, 16, 16, 16]]  # a short first chunk, rests, one chunk, the roll-over
FAMILIES = ("llama", "qwen2", "qwen3")


def pull(states):
    """A scalar in which every number of the rows (N, D) has another weight."""
    g = torch.Generator().manual_seed(7)
    return sum((row * torch.randn(row.shape, generator=g, dtype=torch.float64).to(row.dtype)).sum() for row in states)


def compare(reader, plans, tolerance=1e-10, stride=4):
    """Equal values and gradients of our rows read together and the twin's, read one by one."""
    ids = drawn_ids(len(plans), max(map(sum, plans)))
    ours = states_of(reader, text_of(ids, plans, stride))
    theirs = [twin(reader, row[: sum(sizes)], sizes, stride) for row, sizes in zip(ids, plans)]
    for found, expected in zip(ours, theirs):
        assert found.shape == expected.shape and found.dtype == expected.dtype == reader.decoder.dtype
        assert (found - expected).abs().max().item() < tolerance * max(expected.abs().max().item(), 1)
    found, expected = gradients(reader, pull(ours)), gradients(reader, pull(theirs))
    assert largest_difference(found, expected) < tolerance
    return expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients(family, backend):
    reader = comet(f"backbone.family={family}", f"compressor.backend={backend}")
    expected = compare(reader, PLANS)
    assert [name for name, grad in expected.items() if not grad.any()] == [
        "decoder.final_norm.weight"
    ]  # behind the stream


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_in_single_precision(family, backend):
    compare(comet(f"backbone.family={family}", f"compressor.backend={backend}", dtype="float32"), PLANS[:2], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("attention, used, tolerance", [("eager", "eager", 1e-5), ("sdpa", BLOCKWISE, 1e-10)])
def test_every_attention(attention, used, tolerance, backend):
    reader = comet(f"backbone.attn_implementation={attention}", f"compressor.backend={backend}")
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
    compare(comet(*overrides, f"compressor.backend={backend}"), PLANS[:2])


@pytest.mark.parametrize("stride", [1, 3, 8, 16])
def test_other_strides(stride):
    """A stride that does not divide the sizes, and one slot a chunk."""
    compare(comet("compressor.queue_budget=20"), PLANS[:3], stride=stride)


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputing_activations_changes_nothing(backend):
    reader, found = comet(f"compressor.backend={backend}").train(), []
    for checkpointing in (False, True):
        reader.decoder.checkpointing = checkpointing
        calls = []
        handle = reader.decoder.layers[0].register_forward_pre_hook(lambda *args: calls.append(1))
        found.append(gradients(reader, pull(states_of(reader, text_of(drawn_ids(2, 71), PLANS[:2])))))
        handle.remove()
        assert len(calls) == 5 * (1 + checkpointing)
    assert all(torch.equal(found[1][name], grad) for name, grad in found[0].items())


def test_what_stands_at_a_seat_never_matters():
    """Both backends give the same numbers, though one overwrites seats in the sequence and the other has none."""
    ids, found = drawn_ids(2, 71), []
    for backend in BACKENDS:
        found.append(states_of(comet(f"compressor.backend={backend}"), text_of(ids, PLANS[:2])))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
