"""Attention functions by name: equal numbers, what flash-attn receives, checks before loading, compiled layers."""

import sys
import types

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from breviary.backbones.attention import (
    BLOCK,
    BLOCKWISE,
    SharedPrefix,
    blockwise_attention,
    check_attention,
    check_head_masks,
    check_training_attention,
)
from breviary.backbones.stack import ReadOnlyCache, Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.config.build import ReaderSpec
from breviary.config.checks import check_kernels
from breviary.memory.assembly import Layout
from tests.tiny import compose_tiny

IDS = torch.tensor([[5, 9, 300, 17, 44, 8], [7, 7, 7, 200, 1, 30]])


def stack_of(attention, family="llama", **arguments):
    return Stack(TinyBackbone(family, layers=2, attn_implementation=attention, **arguments).load()).eval()


def states_of(stack, key_mask=None, cache=None, queries=6, cut=0):
    ids = IDS[:, -queries:]
    positions = torch.arange(6 - queries, 6).expand(ids.shape) + cut
    return stack.run(stack.embed(ids), range(2), positions, key_mask, cache)


def masks():
    """Key masks of every form that readers use, for 6 queries, or 2 queries behind 4 cached keys."""
    ragged = torch.tensor([[True] * 6, [True, True, False, True, False, True]])
    heads = torch.stack([ragged, ragged.roll(1, 1) | (torch.arange(6) > 3)], 1)
    bias = (torch.arange(24).view(2, 2, 6) % 7 / 3).masked_fill(~ragged[:, None], -torch.inf)
    return {"none": None, "ragged": ragged, "heads": heads, "bias": bias}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("queries", [6, 2, 1])
@torch.no_grad()
def test_implementations_compute_equal_numbers(name, queries):
    """At valid queries: those of padding attend to themselves, and biases may be -inf there."""
    mask, stored, valid = masks()[name], None, masks()["ragged"][:, 6 - queries :]
    g = torch.Generator().manual_seed(0)
    if queries < 6:
        mask = torch.ones(2, 6, dtype=torch.bool) if mask is None else mask
        stored = {n: tuple(torch.randn(2, 2, 6 - queries, 16, generator=g) for _ in range(2)) for n in range(2)}
    mask = mask if mask is None or mask.dim() == 2 else {0: mask, 1: mask}
    expected = states_of(stack_of("eager"), mask, stored and ReadOnlyCache(stored), queries)
    for attention in ("sdpa", "flex"):
        actual = states_of(stack_of(attention), mask, stored and ReadOnlyCache(stored), queries)
        torch.testing.assert_close(actual[valid], expected[valid], rtol=1e-5, atol=2e-5)


# ------------------------------------------------------------------ flash-attn, up to its call


def row_attention(q, k, v, scale):
    """Causal attention aligned at the last query and key: (N, H, W) over (K, J, W)."""
    seen = torch.arange(len(k)) <= torch.arange(len(k) - len(q), len(k))[:, None]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("nhw,khw->hnk", q, k) * scale
    return torch.einsum("hnk,khw->nhw", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.fixture
def flash_calls(monkeypatch):
    """A module flash_attn with the package's signatures; records the starts of rows that it is called with."""
    calls = []

    def flash_attn_func(q, k, v, dropout_p, softmax_scale, causal):
        assert causal and not dropout_p
        calls.append((q.shape[1], k.shape[1]))
        return torch.stack([row_attention(*row, softmax_scale) for row in zip(q, k, v)])

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal
    ):
        assert causal and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        calls.append((cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), max_seqlen_q, max_seqlen_k))
        qs, ks = (starts.diff().tolist() for starts in (cu_seqlens_q, cu_seqlens_k))
        rows = zip(q.split(qs), k.split(ks), v.split(ks))
        return torch.cat([row_attention(*row, softmax_scale) for row in rows])

    module = types.SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return calls


@torch.no_grad()
def test_flash_attn_receives_the_starts_of_rows_without_padding(flash_calls):
    stack, plain, mask = stack_of("flash_attention_2"), stack_of("sdpa"), masks()["ragged"]
    for given, positions_from in ((None, 0), (torch.ones_like(mask), 0), (mask, 900)):  # positions that jump, too
        actual, expected = (states_of(one, given, cut=positions_from) for one in (stack, plain))
        valid = torch.ones_like(mask) if given is None else given
        torch.testing.assert_close(actual[valid], expected[valid], rtol=1e-5, atol=1e-5)
    assert flash_calls == [(6, 6)] * 4 + [([0, 6, 10], [0, 6, 10], 6, 6)] * 2
    flash_calls.clear()
    stored = {n: tuple(torch.randn(2, 2, 4, 16) for _ in range(2)) for n in range(2)}
    actual, expected = (states_of(one, mask, ReadOnlyCache(stored), 2) for one in (stack, plain))
    torch.testing.assert_close(actual[mask[:, 4:]], expected[mask[:, 4:]], rtol=1e-5, atol=1e-5)
    assert flash_calls == [([0, 2, 3], [0, 6, 10], 2, 6)] * 2


def test_flash_attn_refuses_a_mask_of_each_head():
    with pytest.raises(ValueError, match=r"flash_attention_2: heads attend to different keys.*sdpa or flex"):
        mask = masks()["heads"]
        states_of(stack_of("flash_attention_2"), {0: mask, 1: mask})


# ------------------------------------------------------------------ checks before weights are loaded


def test_checks_state_what_an_implementation_needs():
    [unknown] = check_attention("flash", "bfloat16", "auto")
    assert unknown == "backbone.attn_implementation=flash: allowed are sdpa, eager, flash_attention_2, flex"
    package, device, dtype = check_attention("flash_attention_2", "float32", "cpu")
    assert "pip install flash-attn" in package and "GPU only" in device and "bfloat16 and float16" in dtype
    assert not check_attention("flex", "float32", "cpu") and not check_attention("sdpa", "float64", "cpu")
    assert "no backward pass on a CPU" in check_training_attention("flex", "cpu")[0]
    assert not check_training_attention("sdpa", "cpu")
    assert check_head_masks("flash_attention_2", True) and not check_head_masks("flex", True)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["compressor=snapkv", "backbone.attn_implementation=flash_attention_2"], "keeps different keys in each head"),
        (["compressor=comet", "backbone.compile=true"], "run with a memory"),
        (["compressor=comi", "engine=zero3", "backbone.compile=true"], "use engine=zero2"),
        (["compressor=comi", "engine=zero2", "backbone.compile=true"], None),
    ],
)
def test_readers_and_engines_that_do_not_fit_are_refused(settings, part):
    cfg = compose_tiny(settings)
    backbone = TinyBackbone(**{k: cfg.backbone[k] for k in ("attn_implementation", "compile")})
    problems = check_kernels(cfg.engine, ReaderSpec.of(cfg), backbone)
    assert [part in problem for problem in problems] == ([True] if part else [])


# ------------------------------------------------------------------ blocks, and keys that rows share


@pytest.mark.parametrize(("queries", "keys"), [(3, 7), (BLOCK + 5, BLOCK + 300), (2 * BLOCK, 2 * BLOCK + 1)])
def test_queries_behind_earlier_keys_need_no_mask(queries, keys):
    g = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, queries, 8, generator=g, requires_grad=True)
    k, v = (torch.randn(1, 2, keys, 8, generator=g) for _ in range(2))
    seen = torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None]
    outs = [blockwise_attention(None, q, k, v, mask)[0] for mask in (None, seen[None, None])]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(out.sin().sum(), q)[0] for out in outs), rtol=0, atol=1e-5)
    stack = stack_of("sdpa")
    stack.config._attn_implementation = BLOCKWISE
    all_valid = torch.ones(1, keys, dtype=torch.bool)
    inputs = stack.attention_inputs(torch.zeros(1, queries, 64), torch.zeros(1, queries).long(), all_valid)
    assert inputs["attention_mask"] is None


@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 0, 3)])
@pytest.mark.parametrize("rows", [(0, 1, 2), (0, 0, 2, 2), (1, 0, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_keys_in_two_parts_equal_the_joined_ones(lengths, rows, dtype):
    g = torch.Generator().manual_seed(0)
    B, (H, J, W) = len(rows), (6, 2, 8)
    q = torch.randn(B, H, 1, W, generator=g, dtype=dtype)
    keys, values = (torch.randn(3, J, 6, W, generator=g, dtype=dtype) for _ in range(2))
    k, v = (torch.randn(B, J, 4, W, generator=g, dtype=dtype) for _ in range(2))
    own = torch.rand(B, 4, generator=g) < 0.6
    own[:, -1] = True
    actual = blockwise_attention(None, q, k, v, SharedPrefix(keys, values, lengths, rows, own))[0]
    index = torch.tensor(rows)
    valid = torch.arange(6) < torch.tensor(lengths)[index][:, None]
    joined = [torch.cat([shared[index], new], 2) for shared, new in ((keys, k), (values, v))]
    expected = blockwise_attention(None, q, *joined, torch.cat([valid, own], 1)[:, None, None])[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------ torch.compile


def test_compiled_layers_are_one_graph_for_all_layers_and_lengths():
    """Captured without a break (fullgraph by count), and neither layers nor lengths compile again."""
    plain, stack = stack_of("sdpa"), stack_of("sdpa")
    counter = CompileCounterWithBackend("eager")
    stack.compile_layers(counter)
    for length in (6, 5, 4):
        ids, positions = IDS[:, :length], Layout.of([torch.ones(2, length, dtype=torch.bool)], 1).positions()
        outs = [one.run(one.embed(ids), range(2), positions) for one in (plain, stack)]
        torch.testing.assert_close(*outs, rtol=0, atol=1e-6)
    outs[1].sum().backward()
    torch._dynamo.reset()
    assert counter.frame_count == 1
    assert all(weight.grad is not None for weight in stack.layers.parameters())
