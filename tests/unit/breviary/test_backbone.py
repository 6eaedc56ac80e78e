"""The stack against the plain model; masks, caches, types; what is refused and what is trained."""

import copy
import re

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig, Qwen2Config

from breviary.backbone import Backbone, TinyBackbone, architecture_problems, set_trainable, truncated_config
from breviary.stack import CapturingCache, ReadOnlyCache, Stack

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
    """Rows of `ids` moved right by their pads, with positions and mask; pads hold token 0."""
    out = torch.zeros(len(ids), ids.shape[1] + max(pads), dtype=torch.long)
    mask = torch.zeros_like(out, dtype=torch.bool)
    for b, pad in enumerate(pads):
        out[b, pad : pad + ids.shape[1]] = ids[b]
        mask[b, pad : pad + ids.shape[1]] = True
    return out, (mask.long().cumsum(1) - 1).clamp(min=0), mask


# ------------------------------------------------------------------ the stack is the model


@BOTH
@EACH
def test_logits_and_gradients_equal_the_model_s(family, attention):
    model = tiny(family, attention).load()
    stack = Stack(tiny(family, attention).load())
    found, expected = logits_of(stack, IDS), model(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    found.logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    for own, plain in ((stack.embed_tokens, model.model.embed_tokens), (stack.layers[1], model.model.layers[1])):
        for a, b in zip(own.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


@BOTH
@EACH
def test_padding_either_side_changes_nothing(family, attention):
    stack = Stack(tiny(family, attention).load())
    with torch.no_grad():
        plain = logits_of(stack, IDS)
        ids, positions, mask = left_padded(IDS, (2, 0))
        left = logits_of(stack, ids, positions, mask)[mask]
        torch.testing.assert_close(left, plain.flatten(0, 1), rtol=1e-5, atol=1e-5)
        right, after = torch.nn.functional.pad(IDS, (0, 3)), torch.arange(9).expand(2, 9)
        torch.testing.assert_close(logits_of(stack, right, after)[:, :6], plain, rtol=1e-5, atol=1e-5)


@BOTH
def test_key_mask_hides_keys_and_nothing_else(attention):
    """Without a hidden key the sequence is the same as never having had it, at the same positions."""
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
def test_a_fully_masked_row_is_finite_and_harmless(attention, dtype):
    stack = Stack(tiny(attention=attention, dtype=dtype).load())
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[1] = False
    states = stack.embed(IDS).detach().requires_grad_()
    out = stack.run(states, range(3), torch.arange(6).expand(2, 6), mask)
    out.float().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(states.grad).all()


@BOTH
def test_every_slot_sees_itself(attention):
    """Also a masked one, and nothing else: no row of scores is fully masked, which kernels answer with NaN."""
    stack = Stack(tiny(attention=attention).load())
    positions, mask = torch.arange(6).expand(2, 6), torch.zeros_like(IDS, dtype=torch.bool)
    with torch.no_grad():
        masked = logits_of(stack, IDS, positions, mask)
        for n in range(6):
            alone = logits_of(stack, IDS[:, n : n + 1], positions[:, n : n + 1])
            torch.testing.assert_close(masked[:, n : n + 1], alone, rtol=1e-5, atol=1e-5)


@EACH
def test_one_may_leave_and_enter_at_any_layer(family):
    stack = Stack(tiny(family).load())
    positions = torch.arange(6).expand(2, 6)
    with torch.no_grad():
        whole = stack.run(stack.embed(IDS), range(3), positions)
        for n in range(4):
            states = stack.run(stack.embed(IDS), range(n), positions)
            assert torch.equal(stack.run(states, range(n, 3), positions), whole)


@BOTH
@EACH
def test_read_only_keys_give_what_one_pass_gives(family, attention):
    stack = Stack(tiny(family, attention).load())
    positions = torch.arange(6).expand(2, 6)
    with torch.no_grad():
        whole = stack.run(stack.embed(IDS), range(3), positions)
        capture = CapturingCache()
        stack.run(stack.embed(IDS[:, :4]), range(3), positions[:, :4], cache=capture)
        kept = ReadOnlyCache([capture.layers[i] for i in range(3)])
        mask = torch.ones(2, 6, dtype=torch.bool)
        for _ in range(2):  # any number of times
            rest = stack.run(stack.embed(IDS[:, 4:]), range(3), positions[:, 4:], mask, kept)
            torch.testing.assert_close(rest, whole[:, 4:], rtol=1e-5, atol=1e-5)
    assert kept.layers[0][0].shape[2] == 4


def test_earlier_keys_need_a_key_mask():
    stack = Stack(tiny().load())
    with pytest.raises(AssertionError, match="without a key mask"):
        stack.run(stack.embed(IDS), range(3), torch.arange(6).expand(2, 6), cache=DynamicCache())


def test_key_value_bytes_are_those_of_a_cache():
    stack, cache = Stack(tiny(dtype="bfloat16").load()), DynamicCache()
    stack.run(stack.embed(IDS), range(3), torch.arange(6).expand(2, 6), torch.ones_like(IDS, dtype=torch.bool), cache)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert 2 * 6 * stack.key_value_bytes(3) == held


# ------------------------------------------------------------------ types and checkpointing


@pytest.mark.parametrize("cast", [lambda m: m.bfloat16(), lambda m: m.to(torch.bfloat16), lambda m: m.half(),
                                  lambda m: torch.nn.ModuleList([m]).to(dtype=torch.bfloat16)[0]],
                         ids=["bfloat16()", "to", "half()", "parent.to"])
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
def test_the_stream_has_the_backbone_s_type(dtype):
    stack = Stack(tiny(dtype=dtype).load())
    wanted = getattr(torch, dtype)
    states = stack.run(stack.embed(IDS), range(3), torch.arange(6).expand(2, 6))
    assert stack.dtype == states.dtype == stack.embed_tokens.weight.dtype == wanted
    assert {buffer.dtype for buffer in stack.rotary.buffers()} == {torch.float32}


@BOTH
def test_checkpointing_gives_identical_loss_and_gradients(attention):
    """Through a context's kept keys and values as well, whose gradients reach the layers that made them."""
    found = []
    for checkpointing in (False, True):
        stack = Stack(tiny(attention=attention).load()).train()
        stack.checkpointing = checkpointing
        positions, cache = torch.arange(6).expand(2, 6), CapturingCache()
        read = stack.run(stack.embed(IDS[:, :4]), range(3), positions[:, :4], cache=cache)
        kept = ReadOnlyCache([cache.layers[i] for i in range(3)])
        rest = stack.run(stack.embed(IDS[:, 4:]), range(3), positions[:, 4:], torch.ones(2, 6, dtype=torch.bool), kept)
        loss = stack.head(stack.norm(rest)).logsumexp(-1).sum() + read.square().mean()
        loss.backward()
        found.append((loss.detach(), [p.grad for p in stack.parameters()]))
    (loss, gradients), (again, recomputed) = found
    assert torch.equal(loss, again)
    for a, b in zip(gradients, recomputed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_checkpointing_keeps_no_activations():
    def kept_bytes(checkpointing):
        stack, sizes = Stack(tiny().load()).train(), []
        stack.checkpointing = checkpointing
        states = stack.embed(IDS)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            stack.run(states, range(3), torch.arange(6).expand(2, 6))
        return sum(sizes)

    assert kept_bytes(True) < kept_bytes(False) / 5


# ------------------------------------------------------------------ loading


@EACH
def test_the_first_layers_are_the_full_model_s(family):
    full, part = tiny(family).load(), tiny(family).load(layers=2, head=False)
    assert len(part.layers) == part.config.num_hidden_layers == 2 and not hasattr(part, "lm_head")
    for a, b in zip(part.layers.parameters(), full.model.layers[:2].parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(part.norm.weight, full.model.norm.weight)


@EACH
def test_a_folder_loads_as_it_was_saved(family, tmp_path):
    plain = tiny(family).load()
    plain.save_pretrained(tmp_path)
    backbone = Backbone(str(tmp_path), dtype="float32")
    assert backbone.problems() == []
    loaded, part = backbone.load(), backbone.load(layers=1, head=False)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, plain(IDS).logits)
        short = tiny(family).load(layers=1, head=False)
        assert torch.equal(part(IDS).last_hidden_state, short(IDS).last_hidden_state)
    assert backbone.config.num_hidden_layers == 3  # the truncated copy is a copy
    half = Backbone(str(tmp_path)).load()
    assert half.dtype == half.config.dtype == torch.bfloat16
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_fingerprint_is_that_of_the_weights(tmp_path):
    folders = []
    for seed in (0, 0, 1):
        folders.append(tmp_path / f"{len(folders)}" / "backbone")
        tiny(seed=seed).load().save_pretrained(folders[-1])
    prints = [Backbone(str(folder)).fingerprint for folder in folders]
    assert prints[0] == prints[1] and prints[0]["name"] == "backbone"
    assert prints[0]["sha256"] != prints[2]["sha256"]
    assert tiny(seed=0).fingerprint != tiny(seed=1).fingerprint != tiny("qwen2", seed=1).fingerprint


def test_configurations_are_not_shared():
    backbone = tiny()
    first, second = backbone.load(layers=1), backbone.load()
    assert first.config.num_hidden_layers == 1 and second.config.num_hidden_layers == 3
    assert backbone.config.num_hidden_layers == 3


def test_truncated_config_cuts_layer_types():
    config = Qwen2Config(num_hidden_layers=5)
    cut = truncated_config(config, 2)
    assert cut.num_hidden_layers == len(cut.layer_types) == 2
    assert config.num_hidden_layers == len(config.layer_types) == 5
    assert truncated_config(config, None).num_hidden_layers == 5


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(("config", "sentence"), [
    (MistralConfig(), "backbone of type 'mistral': supported are llama, qwen2, qwen3"),
    (Qwen2Config(use_sliding_window=True, max_window_layers=1, num_hidden_layers=3),
     "backbone with layers of type sliding_attention: only full_attention is supported"),
    (LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
     "backbone with dynamic rope scaling"),
], ids=["family", "window", "dynamic"])
def test_architecture_problems(config, sentence):
    [found] = architecture_problems(config)
    assert found.startswith(sentence) and "backbone.path" in found


@EACH
def test_tiny_backbones_have_no_problems(family):
    assert tiny(family).problems() == []


def test_every_problem_of_a_tiny_backbone_is_told():
    found = TinyBackbone("gpt2", dtype="int8", attn_implementation="flash").problems()
    assert [re.match(r"backbone\.\w+", sentence)[0] for sentence in found] == \
        ["backbone.dtype", "backbone.attn_implementation", "backbone.family"]


def test_problems_of_folders(tmp_path):
    missing = tmp_path / "nothing"
    [found] = Backbone(str(missing)).problems()
    assert str(missing) in found and "no such folder" in found
    [found] = Backbone(str(tmp_path)).problems()
    assert "no config.json" in found
    tiny().config.save_pretrained(tmp_path)
    [found] = Backbone(str(tmp_path)).problems()
    assert "folder without weights" in found and "model.safetensors" in found


# ------------------------------------------------------------------ what is trained


@pytest.mark.parametrize(("mode", "pattern"), [
    ("lora", r"layers\..*lora_[AB]\."), ("attention", r"layers\.\d+\.self_attn\.[qkvo]_proj\."), ("frozen", r"(?!)"),
    ("full", r""),
])
@EACH
def test_trainable_sets(family, mode, pattern):
    stack = Stack(tiny(family, dtype="bfloat16").load())
    set_trainable(stack, mode)
    trained = {name for name, p in stack.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in stack.named_parameters() if re.match(pattern, name)}
    types = {p.dtype for name, p in stack.named_parameters() if name in trained}
    assert types == (set() if mode == "frozen" else {torch.float32})
    assert all(p.dtype == torch.bfloat16 for name, p in stack.named_parameters() if name not in trained)


def test_lora_targets_rank_and_scale():
    stack = Stack(tiny().load())
    set_trainable(stack, "lora", lora_rank=3, lora_alpha=12, lora_targets=["q_proj", "v_proj"])
    adapted = {name.split(".")[2] for name, p in stack.layers.named_parameters() if p.requires_grad}
    assert adapted == {"q_proj", "v_proj"}
    projection = stack.layers[0].self_attn.q_proj
    assert projection.lora_A["default"].weight.shape == (3, 64) and projection.scaling["default"] == 4


def test_fresh_adapters_change_nothing():
    plain, adapted = Stack(tiny().load()), Stack(tiny().load())
    set_trainable(adapted, "lora")
    with torch.no_grad():
        assert torch.equal(logits_of(adapted, IDS), logits_of(plain, IDS))


def test_unknown_mode_is_our_own_mistake():
    with pytest.raises(AssertionError, match="'some'"):
        set_trainable(Stack(tiny().load()), "some")


def test_a_stack_can_be_copied():
    stack = Stack(tiny().load())
    with torch.no_grad():
        assert torch.equal(logits_of(copy.deepcopy(stack), IDS), logits_of(stack, IDS))


@pytest.mark.parametrize("said, ends", [(None, ()), (7, (7,)), ([7, 9], (7, 9))])
def test_a_stack_knows_every_token_that_ends_an_answer(said, ends):
    model = TinyBackbone().load()
    model.generation_config.eos_token_id = said
    assert Stack(model).end_ids == ends
