"""Both joins of memory and decoder: off is the identity, and cached decoding equals a full forward pass."""

import pytest
import torch
from transformers import GenerationConfig

from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Context, Generation, Question, Tokens
from tests.tiny import disturb, greedy_ids, plain_nll, recorded_ids, row_ids

FAMILIES = ("llama", "qwen2", "qwen3")
DEPTH = ["compressor.join=depth", "compressor.encoder_layers=2"]


def tiny(family="llama", attention="sdpa", **arguments):
    return TinyBackbone(family, layers=4, attn_implementation=attention, **arguments)


def context_of(batch):
    return Context(batch.context.ids, batch.context.mask, batch.prefix)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ off is the identity


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_context_is_the_plain_model(build, family, attention, ragged):
    reader = build(
        [
            "compressor=full_context",
            "decoder.train=frozen",
            f"backbone.family={family}",
            f"backbone.attn_implementation={attention}",
        ]
    ).eval()
    model = tiny(family, attention).load().eval()
    with torch.no_grad():
        nll = reader.loss(ragged).nll
        for b in range(len(ragged)):
            plain = plain_nll(model, row_ids(ragged, b, "prefix", "context", "prompt"), row_ids(ragged, b, "answer"))
            torch.testing.assert_close(nll[b], plain, rtol=2e-6, atol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_context_decodes_as_generate_does(build, family, attention, ragged, tokenizer):
    reader = build(
        [
            "compressor=full_context",
            "decoder.train=frozen",
            f"backbone.family={family}",
            f"backbone.attn_implementation={attention}",
        ]
    ).eval()
    model = tiny(family, attention).load().eval()
    config = GenerationConfig(
        max_new_tokens=8, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id
    )
    decoded = greedy_ids(reader, ragged, 8)
    for b, ids in enumerate(decoded):
        prompt = row_ids(ragged, b, "prefix", "context", "prompt")
        generated = model.generate(prompt[None], attention_mask=torch.ones_like(prompt)[None], generation_config=config)
        assert ids == generated[0, len(prompt) :].tolist()
    assert len({tuple(ids) for ids in decoded}) > 1


def test_no_context_is_the_plain_model_without_the_context(build, ragged):
    reader = build(["compressor=no_context", "decoder.train=frozen"]).eval()
    model = tiny().load().eval()
    with torch.no_grad():
        nll = reader.loss(ragged).nll
    for b in range(len(ragged)):
        plain = plain_nll(model, row_ids(ragged, b, "prefix", "prompt"), row_ids(ragged, b, "answer"))
        torch.testing.assert_close(nll[b], plain, rtol=2e-6, atol=0)


def unmerged_nll(decoder, batch, row, n):
    """NLL of one example by hand: lower layers separately on the context and the rest, upper layers on all states."""
    prefix, context = row_ids(batch, row, "prefix"), row_ids(batch, row, "context")
    tail, answer = row_ids(batch, row, "prompt", "answer"), row_ids(batch, row, "answer")
    P, T = len(prefix), len(context)
    context_positions = torch.arange(P + T)[None]
    tail_positions = torch.cat([torch.arange(P), P + T + torch.arange(len(tail))])[None]
    context_states = decoder.run(decoder.embed(torch.cat([prefix, context])[None]), range(n), context_positions)
    tail_states = decoder.run(decoder.embed(torch.cat([prefix, tail])[None]), range(n), tail_positions)
    stream = torch.cat([tail_states[:, :P], context_states[:, P:], tail_states[:, P:]], 1)
    states = decoder.run(stream, range(n, len(decoder)), torch.arange(stream.shape[1])[None])
    logits = decoder.head(decoder.norm(states))[0, -len(answer) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, answer, reduction="sum")


@pytest.mark.parametrize("positions", ["last", "consecutive"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["comi", "mean_pool"])
def test_at_depth_ratio_1_uses_unmerged_states(build, name, family, positions, ragged):
    sharp = ["compressor.alpha=20"] if name == "comi" else []  # gains large enough to move tokens between groups of 1
    reader = build(
        [
            f"compressor={name}",
            *DEPTH,
            *sharp,
            "compressor.ratio=1",
            f"backbone.family={family}",
            f"compressor.slot_positions={positions}",
        ]
    ).eval()
    disturb(reader)
    with torch.no_grad():
        nll = reader.loss(ragged).nll
        for b in range(len(ragged)):
            torch.testing.assert_close(nll[b], unmerged_nll(reader.decoder, ragged, b, 2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("join", ["input", "depth"])
@pytest.mark.parametrize("draw", ["step", "sample"])
def test_learned_weights_have_gradients_at_a_drawn_ratio_of_1(build, join, draw, ragged):
    """DDP waits for the gradient of each trained weight. Drawn per step, every token is a slot of weight 1."""
    overrides = ["compressor=comi", f"compressor.join={join}", "compressor.ratio_choices=[1]"]
    reader = build([*overrides, "compressor.learned_weights=merge", f"compressor.ratio_draw={draw}"])
    plain = build([*overrides, f"compressor.ratio_draw={draw}"])
    for one in (reader, plain):
        one.begin_step(0, 0)
    output = reader.loss(ragged)
    assert torch.equal(output.nll, plain.loss(ragged).nll)
    assert draw == "sample" or torch.equal(output.slots, ragged.context.lengths)
    output.nll.sum().backward()
    assert [n for n, weight in reader.named_parameters() if weight.requires_grad and weight.grad is None] == []


@pytest.mark.parametrize("join", ["input", "depth"])
def test_comi_switched_off_is_mean_pooling(build, join, ragged):
    shared = [f"compressor.join={join}"]
    off = build(["compressor=comi", "compressor.coarse=false", "compressor.fine=false", *shared]).eval()
    pooled = build(["compressor=mean_pool", *shared]).eval()
    on = build(["compressor=comi", *shared]).eval()
    with torch.no_grad():
        assert torch.equal(off.loss(ragged).nll, pooled.loss(ragged).nll)
        assert not torch.allclose(on.loss(ragged).nll[0], pooled.loss(ragged).nll[0], rtol=1e-5)
    assert greedy_ids(off, ragged) == greedy_ids(pooled, ragged)


# ------------------------------------------------------------------ decoding


@pytest.mark.parametrize(
    "prompt", [{}, {"bos": False}, {"instruction": "Read this."}], ids=["bos", "bare", "instruction"]
)
@pytest.mark.parametrize(
    "overrides",
    [["compressor=comi", *DEPTH], ["compressor=mean_pool", *DEPTH], ["compressor=comi"], ["compressor=full_context"]],
    ids=["comi-depth", "mean-depth", "comi-input", "full"],
)
def test_cached_decoding_equals_a_full_forward_pass(build, overrides, prompt, ragged_examples, collate):
    reader = build(overrides).eval()
    disturb(reader)
    batch = collate(ragged_examples, **prompt)
    assert batch.prefix.ids.shape[1] == 0 or prompt != {"bos": False}
    outputs = []
    keep = lambda module, inputs: outputs.append(inputs[0] @ module.weight.T)  # (B * A, V) in `loss`
    handle = reader.decoder.lm_head.register_forward_pre_hook(keep)
    steps, rows = 5, len(batch)
    decoded = torch.zeros(rows, 0, dtype=torch.long)
    with torch.no_grad():
        stream, logits = reader.start_decoding(batch)
        for _ in range(steps):
            chosen = logits.argmax(-1, keepdim=True)
            decoded = torch.cat([decoded, chosen], 1)
            batch.answer = Tokens(decoded, torch.ones_like(decoded, dtype=torch.bool))
            outputs.clear()
            reader.loss(batch)
            torch.testing.assert_close(outputs[0].view(rows, -1, 512)[:, -1], logits, rtol=1e-5, atol=1e-4)
            logits = stream.step(chosen[:, 0])
    handle.remove()


def test_layers_below_the_join_hold_no_memory(build, ragged):
    reader = build(["compressor=mean_pool", *DEPTH]).eval()
    with torch.no_grad():
        stream, logits = reader.start_decoding(ragged)
        stream.step(logits.argmax(-1))
    lower = ragged.prefix.lengths + ragged.prompt.lengths + 1
    slots = (ragged.context.lengths + 3) // 4
    assert stream.lower_mask.sum(1).tolist() == lower.tolist()
    assert stream.upper_mask.sum(1).tolist() == (lower + slots).tolist()
    widths = [stream.cache.get_seq_length(layer) for layer in range(4)]
    assert widths == [stream.lower_mask.shape[1]] * 2 + [stream.upper_mask.shape[1]] * 2


@pytest.mark.parametrize("overrides", [["compressor=comi", *DEPTH], ["compressor=comi"]], ids=["depth", "input"])
def test_all_steps_do_not_change_the_texts(build, overrides, ragged):
    reader = build(overrides).eval()
    with recorded_ids(reader) as recorder:
        texts = reader.answer(ragged, Generation(max_new_tokens=12, stop=("e",)))
        ids = recorder.ids
        reader.all_steps = True
        assert reader.answer(ragged, Generation(max_new_tokens=12, stop=("e",))) == texts
        assert recorder.ids == ids


# ------------------------------------------------------------------ join: input


def truncated(family, layers):
    """A plain Hugging Face model of the first layers, without a head."""
    return tiny(family).load(layers=layers, head=False).eval()


def mean_question(batch, states_of):
    """(B, D): mean of each row's question states, where `states_of(ids)` returns those of [context ; question]."""
    means = []
    for b in range(len(batch)):
        ids = row_ids(batch, b, "context", "query")
        means.append(states_of(ids)[-int(batch.query.lengths[b]) :].mean(0))
    return torch.stack(means)


@pytest.mark.parametrize("norm", ["pretrained", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_question_continues_from_the_cached_context(build, family, norm, ragged):
    reader = build([f"backbone.family={family}", "compressor=comi", f"compressor.final_norm={norm}"]).eval()
    encoder = reader.compressor.context_encoder
    plain = truncated(family, 2)
    if norm == "none":
        plain.norm = torch.nn.Identity()
    with torch.no_grad():

        def states_of(ids):
            return plain(ids[None]).last_hidden_state[0]

        encoded = encoder.encode(context_of(ragged))
        question = Question(ragged.query.ids, ragged.query.mask, None, None)
        close(encoder.query(encoded, question)[:, 0], mean_question(ragged, states_of))
        for b, length in enumerate(ragged.context.lengths.tolist()):
            if length:
                own = states_of(row_ids(ragged, b, "context"))
                close(encoded.states[b, 0, :length], own)


def test_each_segment_is_encoded_with_the_question_independently(build, ragged):
    encoder = build(["compressor=comi", "compressor.segment_size=12"]).eval().compressor.context_encoder
    plain = truncated("llama", 2)
    with torch.no_grad():
        encoded = encoder.encode(context_of(ragged))
        queries = encoder.query(encoded, Question(ragged.query.ids, ragged.query.mask, None, None))
        context, query = row_ids(ragged, 0, "context"), row_ids(ragged, 0, "query")
        assert len(context) > 24
        for s, start in enumerate(range(0, len(context), 12)):
            segment = context[start : start + 12]
            states = plain(torch.cat([segment, query])[None]).last_hidden_state[0]
            close(encoded.states[0, s, : len(segment)], states[: len(segment)])
            close(queries[0, s], states[len(segment) :].mean(0))


@pytest.mark.parametrize("layers", [1, 2])
def test_alignment_positions_start_at_0_in_every_segment(build, layers, ragged):
    overrides = ["compressor=mean_pool", "compressor.segment_size=12"]
    reader = build([*overrides, f"compressor.lsa_layers={layers}"]).eval()
    bare = build([*overrides, "compressor.alignment=none"]).eval()
    question = Question(ragged.query.ids, ragged.query.mask, None, None)
    with torch.no_grad():
        memory, slots = (
            compressor.compress(compressor.encode(context_of(ragged)), question)
            for compressor in (reader.compressor, bare.compressor)
        )
        plain = truncated("llama", layers)
        for b in slots.mask.any(1).nonzero()[:, 0].tolist():
            row = slots.embeds[b]
            parts = row[slots.mask[b]].split(3)  # 12 tokens at ratio 4
            for part, aligned in zip(parts, memory.embeds[b][memory.mask[b]].split(3)):
                close(aligned, plain(inputs_embeds=part[None]).last_hidden_state[0])
    assert memory.layer == 0 and memory.positions is None


@pytest.mark.parametrize("positions", ["last", "consecutive"])
def test_positions_of_slots_at_depth(build, positions, ragged):
    reader = build(
        ["compressor=mean_pool", *DEPTH, "compressor.segment_size=10", f"compressor.slot_positions={positions}"]
    ).eval()
    states = reader.decoder.embed(ragged.prompt.ids)
    question = Question(ragged.query.ids, ragged.query.mask, states, ragged.prompt.mask)
    memory = reader.compressor.compress(reader.compressor.encode(context_of(ragged)), question)
    assert memory.layer == 2
    for b, tokens in enumerate(ragged.context.lengths.tolist()):
        ends = [
            min(first + 4, start + 10, tokens) - 1
            for start in range(0, tokens, 10)
            for first in range(start, min(start + 10, tokens), 4)
        ]
        expected = ends if positions == "last" else list(range(tokens - len(ends), tokens))
        assert memory.positions[b][memory.mask[b]].tolist() == expected


def test_positions_of_segments_at_depth(build, ragged):
    """Positions continue from segment to segment; attention does not."""
    encoder = build(["compressor=mean_pool", *DEPTH, "compressor.segment_size=12"]).eval().compressor.context_encoder
    decoder: Stack = encoder.decoder
    prefix, context = row_ids(ragged, 0, "prefix"), row_ids(ragged, 0, "context")
    with torch.no_grad():
        encoded = encoder.encode(context_of(ragged))
        for s, start in enumerate(range(0, len(context), 12)):
            segment = context[start : start + 12]
            places = torch.cat([torch.arange(len(prefix)), len(prefix) + start + torch.arange(len(segment))])
            states = decoder.run(decoder.embed(torch.cat([prefix, segment])[None]), range(2), places[None])
            close(encoded.states[0, s, : len(segment)], states[0, len(prefix) :])


@pytest.mark.parametrize("join", ["input", "depth"])
def test_quirks_yield_finite_losses_and_gradients(build, join, ragged):
    reader = build(["compressor=comi", f"compressor.join={join}", "compressor.quirks=true"])
    loss = reader.loss(ragged).nll.sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in reader.parameters() if p.requires_grad)


# ------------------------------------------------------------------ precision, checkpointing


@pytest.mark.parametrize(
    "overrides",
    [
        ["compressor=comi", *DEPTH],
        ["compressor=comi"],
        ["compressor=full_context"],
        ["compressor=attention_matching", "compressor.ratio=1"],
        ["compressor=expected_attention", "compressor.ratio=1"],
    ],
    ids=["depth", "input", "full", "queries of the context", "its expected queries"],
)
def test_bfloat16_streams_with_float32_trained_weights(build, overrides, ragged):
    reader = build([*overrides, "backbone.dtype=bfloat16", "decoder.train=lora"])
    exact = build(overrides)
    assert {p.dtype for p in reader.parameters() if p.requires_grad} == {torch.float32}
    nll = reader.loss(ragged).nll
    nll.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in reader.parameters() if p.requires_grad)
    torch.testing.assert_close(nll, exact.loss(ragged).nll, rtol=0.05, atol=0)
    assert len(reader.eval().answer(ragged, Generation(max_new_tokens=4))) == len(ragged)


@pytest.mark.parametrize(
    "overrides",
    [
        ["compressor=comi", *DEPTH],
        ["compressor=comi"],
        ["compressor=comi", "compressor.segment_size=12", "decoder.train=full"],
    ],
    ids=["depth", "input", "segments"],
)
def test_checkpointing_changes_neither_loss_nor_gradients(build, overrides, ragged):
    """Includes gradients through the cached keys and values of the context, with join: input."""
    runs = []
    for checkpointing in ("false", "true"):
        reader = build([*overrides, f"train.gradient_checkpointing={checkpointing}"])
        disturb(reader)
        loss = reader.loss(ragged).nll.sum()
        loss.backward()
        runs.append((loss.detach(), {name: p.grad for name, p in reader.named_parameters() if p.requires_grad}))
        stacks = [module for module in reader.modules() if isinstance(module, Stack)]
        assert {stack.checkpointing for stack in stacks} == {checkpointing == "true"}
    (plain, gradients), (recomputed, again) = runs
    assert torch.equal(plain, recomputed)
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6)
