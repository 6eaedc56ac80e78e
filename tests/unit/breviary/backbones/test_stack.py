"""Stack against the plain model: masks, caches, blocks of queries, dtypes, checkpointing."""

import copy

import pytest
import torch
from transformers import DynamicCache

from breviary.backbones.attention import BLOCK, BLOCKWISE, blockwise_attention
from breviary.backbones.stack import CapturingCache, ReadOnlyCache, Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import set_trainable

FAMILIES = ("llama", "qwen2", "qwen3")
BOTH = pytest.mark.parametrize("attention", ["sdpa", "eager"])
EACH = pytest.mark.parametrize("family", FAMILIES)
IDS = torch.tensor([[5, 9, 300, 17, 44, 8], [7, 7, 7, 200, 1, 30]])


def tiny(family="llama", attention="sdpa", **arguments):
    return TinyBackbone(family, **{"layers": 3, "attn_implementation": attention, **arguments})


def logits_of(stack, ids, positions=None, key_mask=None):
    positions = torch.arange(ids.shape[1]).expand(ids.shape) if positions is None else positions
    return stack.head(stack.norm(stack.run(stack.embed(ids), range(len(stack)), positions, key_mask)))


def left_padded(ids, pads):
    """Rows of `ids` shifted right by their padding (token 0), with positions and mask."""
    out = torch.zeros(len(ids), ids.shape[1] + max(pads), dtype=torch.long)
    mask = torch.zeros_like(out, dtype=torch.bool)
    for b, pad in enumerate(pads):
        out[b, pad : pad + ids.shape[1]] = ids[b]
        mask[b, pad : pad + ids.shape[1]] = True
    return out, (mask.long().cumsum(1) - 1).clamp(min=0), mask


# ------------------------------------------------------------------ equality with the model


@BOTH
@EACH
def test_logits_and_gradients_equal_those_of_the_model(family, attention):
    model = tiny(family, attention).load()
    stack = Stack(tiny(family, attention).load())
    actual, expected = logits_of(stack, IDS), model(IDS).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    actual.logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    for own, plain in ((stack.embed_tokens, model.model.embed_tokens), (stack.layers[1], model.model.layers[1])):
        for a, b in zip(own.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


@BOTH
@EACH
def test_padding_on_either_side_leaves_the_logits_unchanged(family, attention):
    stack = Stack(tiny(family, attention).load())
    with torch.no_grad():
        plain = logits_of(stack, IDS)
        ids, positions, mask = left_padded(IDS, (2, 0))
        left = logits_of(stack, ids, positions, mask)[mask]
        torch.testing.assert_close(left, plain.flatten(0, 1), rtol=1e-5, atol=1e-5)
        right, after = torch.nn.functional.pad(IDS, (0, 3)), torch.arange(9).expand(2, 9)
        torch.testing.assert_close(logits_of(stack, right, after)[:, :6], plain, rtol=1e-5, atol=1e-5)


@BOTH
def test_a_key_mask_equals_removing_the_keys(attention):
    """Masking a key equals removing its token from the sequence, at the same positions."""
    stack = Stack(tiny(attention=attention).load())
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 1, 1, 0, 1, 1]]).bool()
    positions = torch.arange(6).expand(2, 6)
    with torch.no_grad():
        masked = logits_of(stack, IDS, positions, mask)
        for b in range(2):
            own = logits_of(stack, IDS[b : b + 1, mask[b]], positions[b : b + 1, mask[b]])
            torch.testing.assert_close(masked[b][mask[b]], own[0], rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_fully_masked_row_has_finite_outputs_and_gradients(attention, dtype):
    stack = Stack(tiny(attention=attention, dtype=dtype).load())
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[1] = False
    states = stack.embed(IDS).detach().requires_grad_()
    out = stack.run(states, range(3), torch.arange(6).expand(2, 6), mask)
    out.float().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(states.grad).all()


@BOTH
def test_every_slot_attends_to_itself(attention):
    """A masked slot attends only to itself: kernels return NaN for a fully masked row of scores."""
    stack = Stack(tiny(attention=attention).load())
    positions, mask = torch.arange(6).expand(2, 6), torch.zeros_like(IDS, dtype=torch.bool)
    mask[:, -1] = True  # without a valid slot behind them, no mask would be needed
    with torch.no_grad():
        masked = logits_of(stack, IDS, positions, mask)
        for n in range(6):
            alone = logits_of(stack, IDS[:, n : n + 1], positions[:, n : n + 1])
            torch.testing.assert_close(masked[:, n : n + 1], alone, rtol=1e-5, atol=1e-5)


@EACH
def test_runs_of_consecutive_layers_compose(family):
    stack = Stack(tiny(family).load())
    positions = torch.arange(6).expand(2, 6)
    with torch.no_grad():
        whole = stack.run(stack.embed(IDS), range(3), positions)
        for n in range(4):
            states = stack.run(stack.embed(IDS), range(n), positions)
            assert torch.equal(stack.run(states, range(n, 3), positions), whole)


@BOTH
@EACH
def test_a_read_only_cache_equals_one_pass(family, attention):
    stack = Stack(tiny(family, attention).load())
    positions = torch.arange(6).expand(2, 6)
    with torch.no_grad():
        whole = stack.run(stack.embed(IDS), range(3), positions)
        capture = CapturingCache()
        stack.run(stack.embed(IDS[:, :4]), range(3), positions[:, :4], cache=capture)
        cache = ReadOnlyCache([capture.layers[i] for i in range(3)])
        mask = torch.ones(2, 6, dtype=torch.bool)
        for _ in range(2):  # any number of times
            rest = stack.run(stack.embed(IDS[:, 4:]), range(3), positions[:, 4:], mask, cache)
            torch.testing.assert_close(rest, whole[:, 4:], rtol=1e-5, atol=1e-5)
    assert cache.layers[0][0].shape[2] == 4


def test_an_all_true_mask_is_not_passed_to_the_kernel(monkeypatch):
    """A whole text, then one more token: plain causal attention skips keys that a masked kernel would compute."""
    stack, masks, whole = Stack(tiny().load()), [], torch.ones_like(IDS, dtype=torch.bool)
    plain = torch.nn.functional.scaled_dot_product_attention

    def recorded(*args, attn_mask=None, **kwargs):
        masks.append(attn_mask is not None)
        return plain(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)

    def masked(ids, positions, key_mask, cache):
        del masks[:]
        states = stack.run(stack.embed(ids), range(3), positions, key_mask, cache)
        assert len(set(masks)) == 1 and len(masks) == 3
        return states, masks[0]

    positions = torch.arange(6).expand(2, 6)
    with torch.no_grad():
        expected = stack.run(stack.embed(IDS), range(3), positions)
        cache = DynamicCache()
        first, hidden = masked(IDS[:, :4], positions[:, :4], whole[:, :4], cache)
        assert not hidden
        last, hidden = masked(IDS[:, 4:5], positions[:, 4:5], whole[:, :5], cache)
        assert not hidden
        torch.testing.assert_close(torch.cat([first, last], 1), expected[:, :5], rtol=1e-5, atol=1e-5)
        assert masked(IDS[:, 5:], positions[:, 5:], whole.index_fill(1, torch.tensor(0), False), cache)[1]
        assert masked(IDS, positions, whole.index_fill(1, torch.tensor(0), False), None)[1]
        padded = whole.clone()
        padded[0, 4:] = False
        states, hidden = masked(IDS, positions, padded, None)
        assert not hidden  # padding on the right: no valid token attends to it
        torch.testing.assert_close(states[padded], expected[padded], rtol=1e-5, atol=1e-5)


def test_rows_of_equal_length_share_a_mask():
    """Several new tokens after cached keys need a mask, but one for all rows."""
    stack, states = Stack(tiny().load()), torch.zeros(3, 2, 64)
    mask = stack.attention_inputs(states, torch.zeros(3, 2).long(), torch.ones(3, 5).bool())["attention_mask"]
    assert (mask.dtype, mask.shape) == (torch.bool, (1, 1, 2, 5))
    ragged = torch.ones(3, 5).bool().index_fill(1, torch.tensor(1), False)
    assert stack.attention_inputs(states, torch.zeros(3, 2).long(), ragged)["attention_mask"].shape == (3, 1, 2, 5)


def test_earlier_keys_need_a_key_mask():
    stack = Stack(tiny().load())
    with pytest.raises(AssertionError, match="without a key mask"):
        stack.run(stack.embed(IDS), range(3), torch.arange(6).expand(2, 6), cache=DynamicCache())


def test_key_value_bytes_are_those_of_a_cache():
    stack, cache = Stack(tiny(dtype="bfloat16").load()), DynamicCache()
    stack.run(stack.embed(IDS), range(3), torch.arange(6).expand(2, 6), torch.ones_like(IDS, dtype=torch.bool), cache)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert 2 * 6 * stack.key_value_bytes(3) == held


@EACH
def test_keys_values_equals_what_the_layer_caches(family):
    """Also with adapters and at non-consecutive positions."""
    stack = Stack(tiny(family).load())
    set_trainable(stack, "lora")
    for name, parameter in stack.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [3, 4, 7, 8, 9, 40]])
    states = stack.run(stack.embed(IDS), range(1), positions)
    cache = CapturingCache()
    stack.run_layer(1, states, stack.attention_inputs(states, positions), cache)
    for actual, expected in zip(stack.keys_values(1, states, positions), cache.layers[1]):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------ blocks of queries


@pytest.mark.parametrize("queries", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("earlier", [0, 5, 700])
def test_blockwise_attention_equals_full_attention(queries, earlier):
    g = torch.Generator().manual_seed(queries + earlier)
    K = earlier + queries
    query = torch.randn(2, 4, queries, 8, generator=g, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, 2, K, 8, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    slots = torch.arange(K)
    valid = torch.rand(2, K, generator=g) < 0.7
    seen = (slots <= slots[K - queries :, None]) & valid[:, None] | (slots == slots[K - queries :, None])
    actual = blockwise_attention(None, query, key, value, seen[:, None], scaling=0.3)[0]
    wide = [x.repeat_interleave(2, 1) for x in (key, value)]
    scores = (query @ wide[0].transpose(2, 3) * 0.3).masked_fill(~seen[:, None], -torch.inf)
    expected = (scores.softmax(-1) @ wide[1]).transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    for one, other in zip(*(torch.autograd.grad(out.sin().sum(), (query, key, value)) for out in (actual, expected))):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("device, shared", [("cpu", True), ("meta", False)])
def test_heads_are_repeated_where_no_fast_kernel_takes_grouped_heads_with_a_mask(monkeypatch, device, shared):
    calls = []

    def recorded(query, key, value, enable_gqa=False, **kwargs):
        calls.append((key.shape[1], value.shape[1], enable_gqa))
        return query

    monkeypatch.setattr("breviary.backbones.attention.causal.scaled_dot_product_attention", recorded)
    query, key = torch.zeros(1, 4, 3, 8, device=device), torch.zeros(1, 2, 5, 8, device=device)
    blockwise_attention(None, query, key, key, torch.ones(1, 1, 3, 5, dtype=torch.bool, device=device))
    assert calls == [(2, 2, True) if shared else (4, 4, False)]
    blockwise_attention(None, query, query, query, None)
    assert calls[1:] == [(4, 4, False)]


@EACH
def test_a_blockwise_stack_equals_the_plain_model(family):
    model, stack = tiny(family).load(), Stack(tiny(family).load())
    stack.config._attn_implementation = BLOCKWISE
    torch.testing.assert_close(logits_of(stack, IDS), model(IDS).logits, rtol=0, atol=1e-6)
    ids, positions, mask = left_padded(IDS, (2, 0))
    actual = logits_of(stack, ids, positions, mask)
    torch.testing.assert_close(actual[0, 2:], model(IDS).logits[0], rtol=0, atol=1e-5)


# ------------------------------------------------------------------ dtypes and checkpointing


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.half(),
        lambda m: torch.nn.ModuleList([m]).to(dtype=torch.bfloat16)[0],
    ],
    ids=["bfloat16()", "to", "half()", "parent.to"],
)
@EACH
def test_rotary_frequencies_stay_float32(family, cast):
    stack = Stack(tiny(family).load())
    before = {name: buffer.clone() for name, buffer in stack.rotary.named_buffers()}
    stack = cast(stack)
    assert stack.layers[0].self_attn.q_proj.weight.dtype != torch.float32
    assert before and all(torch.equal(stack.rotary.get_buffer(name), exact) for name, exact in before.items())
    assert {buffer.dtype for buffer in stack.rotary.buffers()} == {torch.float32}
    cos, _ = stack.rotary(torch.zeros(1, 1, 1), torch.tensor([[2000]]))
    exact, _ = tiny(family).load().model.rotary_emb(torch.zeros(1, 1, 1), torch.tensor([[2000]]))
    assert torch.equal(cos, exact)


def test_rotary_frequencies_move_with_the_stack():
    stack = Stack(tiny().load()).to("meta", torch.bfloat16)
    assert {(buffer.device.type, buffer.dtype) for buffer in stack.rotary.buffers()} == {("meta", torch.float32)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_stream_has_the_dtype_of_the_backbone(dtype):
    stack = Stack(tiny(dtype=dtype).load())
    expected = getattr(torch, dtype)
    states = stack.run(stack.embed(IDS), range(3), torch.arange(6).expand(2, 6))
    assert stack.dtype == states.dtype == stack.embed_tokens.weight.dtype == expected
    assert {buffer.dtype for buffer in stack.rotary.buffers()} == {torch.float32}


@BOTH
def test_checkpointing_leaves_loss_and_gradients_unchanged(attention):
    """Including gradients through cached keys and values of a context to the layers that computed them."""
    results = []
    for checkpointing in (False, True):
        stack = Stack(tiny(attention=attention).load()).train()
        stack.checkpointing = checkpointing
        positions, cache = torch.arange(6).expand(2, 6), CapturingCache()
        read = stack.run(stack.embed(IDS[:, :4]), range(3), positions[:, :4], cache=cache)
        read_only = ReadOnlyCache([cache.layers[i] for i in range(3)])
        rest = stack.run(
            stack.embed(IDS[:, 4:]), range(3), positions[:, 4:], torch.ones(2, 6, dtype=torch.bool), read_only
        )
        loss = stack.head(stack.norm(rest)).logsumexp(-1).sum() + read.square().mean()
        loss.backward()
        results.append((loss.detach(), [p.grad for p in stack.parameters()]))
    (loss, gradients), (again, recomputed) = results
    assert torch.equal(loss, again)
    for a, b in zip(gradients, recomputed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_checkpointing_stores_no_activations():
    def stored_elements(checkpointing):
        stack, sizes = Stack(tiny().load()).train(), []
        stack.checkpointing = checkpointing
        states = stack.embed(IDS)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            stack.run(states, range(3), torch.arange(6).expand(2, 6))
        return sum(sizes)

    assert stored_elements(True) < stored_elements(False) / 5


def test_a_stack_can_be_copied():
    stack = Stack(tiny().load())
    with torch.no_grad():
        assert torch.equal(logits_of(copy.deepcopy(stack), IDS), logits_of(stack, IDS))


@pytest.mark.parametrize("configured, ends", [(None, ()), (7, (7,)), ([7, 9], (7, 9))])
def test_end_ids_are_those_of_the_generation_config(configured, ends):
    model = TinyBackbone().load()
    model.generation_config.eos_token_id = configured
    assert Stack(model).end_ids == ends
