"""RAM's memory, slot by slot: with everything kept the plain model, otherwise by hand (spec 5: 1 to 3, 5, 13).

Segments of 6 tokens split the ragged contexts of 50, 0, 14, 2 and 32 tokens into 9, 0, 3, 1 and 6 of them.
"""

import pytest
import torch
from ram_forms import ALL, DEPTH, SIX, SKIMMED, SLOTS, WHOLE, close, memory_of, rows_of
from transformers import GenerationConfig

from breviary.backbones.tiny import TinyBackbone
from ram import reference
from tests.tiny import disturb, greedy_ids, plain_nll, row_ids

FORMS = {
    "input": [],
    "whole": [WHOLE],
    "transformer": ["compressor.alignment=transformer_linear", "compressor.lsa_layers=2"],
    "strict": ["compressor.budget=strict", "compressor.skim_temperature=0.1"],
    "slots": SLOTS,
    "all-skimmed": [SKIMMED],
    "mean": ["compressor.skim=mean"],
    "drop": ["compressor.skim=drop", "compressor.budget=strict"],
    "several": ["compressor=ram_comi", "compressor.join=input", "compressor.skim_ratio=3"],
    "several-depth": ["compressor=ram_comi", "compressor.skim_ratio=2", "compressor.budget=nominal"],
    "depth": [DEPTH],
    "depth-whole": [DEPTH, WHOLE, "compressor.ratio=4"],
    "depth-consecutive": [DEPTH, "compressor.slot_positions=consecutive", "compressor.budget=strict"],
}
EACH = pytest.mark.parametrize("overrides", FORMS.values(), ids=FORMS.keys())


# ------------------------------------------------------------------ keep-all is the identity (1, 13)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [WHOLE],
        ["compressor.budget=strict"],
        ["compressor.ratio=null", "compressor.slots=50"],
        ["compressor.alignment=transformer_linear"],
    ],
    ids=["nominal", "whole", "strict", "slots", "transformer"],
)
def test_with_everything_kept_it_is_the_plain_model(build, overrides, ragged):
    reader = build([*ALL, *overrides]).eval()
    disturb(reader)  # encoder and alignment, which must have no effect
    model = TinyBackbone(layers=4).load().eval()
    with torch.no_grad():
        memory, output = memory_of(reader, ragged)
        assert output.slots.tolist() == ragged.context.lengths.tolist()
        for b, slots in enumerate(rows_of(memory)):
            assert torch.equal(slots, model.get_input_embeddings()(row_ids(ragged, b, "context")))
            plain = plain_nll(model, row_ids(ragged, b, "prefix", "context", "prompt"), row_ids(ragged, b, "answer"))
            torch.testing.assert_close(output.nll[b], plain, rtol=2e-6, atol=0)


def test_with_everything_kept_it_decodes_as_generate_does(build, ragged, tokenizer):
    reader, model = build(ALL).eval(), TinyBackbone(layers=4).load().eval()
    settings = GenerationConfig(
        max_new_tokens=8, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id
    )
    decoded = greedy_ids(reader, ragged, 8)
    assert greedy_ids(reader, ragged, 8) == decoded
    for b, ids in enumerate(decoded):
        prompt = row_ids(ragged, b, "prefix", "context", "prompt")
        generated = model.generate(
            prompt[None], attention_mask=torch.ones_like(prompt)[None], generation_config=settings
        )
        assert ids == generated[0, len(prompt) :].tolist()


@pytest.mark.parametrize("read", ["segments", "whole"])
def test_at_depth_with_everything_kept_it_is_mean_pooling_at_ratio_1(build, read, ragged):
    size = 6 if read == "segments" else 10_000
    pooled = build(["compressor=mean_pool", DEPTH, "compressor.ratio=1", f"compressor.segment_size={size}"]).eval()
    reader = build([*ALL, DEPTH, f"compressor.read={read}"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(reader.loss(ragged).nll, pooled.loss(ragged).nll, rtol=1e-6, atol=0)


# ------------------------------------------------------------------ by hand (2, 3, 5)


def states_by_hand(reader, batch, row):
    """For one context: merged states and states for similarities, both (T, D), and the question's mean (D,)."""
    compressor = reader.compressor
    context, prefix, prompt = (row_ids(batch, row, part) for part in ("context", "prefix", "prompt"))
    T, P = len(context), len(prefix)
    pieces = context.split(compressor.segment_size) if compressor.context_encoder.segment_size == 6 else [context]
    if compressor.layer == 0:
        encoder = compressor.context_encoder.encoder

        def encode(ids):
            return encoder.norm(encoder.run(encoder.embed(ids[None]), range(2), torch.arange(len(ids))[None]))[0]

        states = torch.cat([encode(piece) for piece in pieces])
        return states, states, encode(row_ids(batch, row, "query")).mean(0)
    decoder, parts, start = reader.decoder, [], P

    def encode_after_prefix(ids, first):
        places = torch.cat([torch.arange(P), first + torch.arange(len(ids))])
        return decoder.run(decoder.embed(torch.cat([prefix, ids])[None]), range(2), places[None])[0, P:]

    for piece in pieces:
        parts.append(encode_after_prefix(piece, start))
        start += len(piece)
    states = torch.cat(parts)
    return states, decoder.norm(states), decoder.norm(encode_after_prefix(prompt, P + T)).mean(0)


def skimmed_by_hand(compressor, states, mask, values, query):
    """Vectors (K, D) of one skimmed segment, and the last token of each; states, values (L, D), mask (L,)."""
    if compressor.skim == "drop":
        return values[:0], []
    if compressor.skimmer is None:
        states, mask, values = (part[None, None] for part in (states, mask, values))
        pooled = reference.skim(states, mask, query, compressor.skim_temperature, values, compressor.skim)
        return pooled[0], [int(mask.sum()) - 1]
    n, ratio = int(mask.sum()), compressor.skim_ratio
    groups, weights = compressor.skimmer(states[None, :n], mask[None, :n], query, ratio, -(-n // ratio))
    members = [(groups[0] == group).nonzero()[:, 0] for group in groups.unique()]
    return torch.stack([weights[0, m] @ values[m] for m in members]), [int(m[-1]) for m in members]


def kept_by_hand(compressor, relevance, lengths):
    """Segments that are read closely; relevance and lengths (1, N)."""
    if compressor.keep == "none":
        return [False] * lengths.shape[1]
    slots = None if compressor.budget.slots is None else torch.tensor([compressor.budget.slots])
    each = torch.ones_like(lengths)
    if compressor.skim == "drop" or compressor.skimmer is not None:
        each = 0 * lengths if compressor.skim == "drop" else -(-lengths // compressor.skim_ratio)
    return reference.select_segments(relevance, lengths, compressor.budget.ratio, compressor.budget_rule, slots, each)[
        0
    ].tolist()


def memory_by_hand(reader, batch, row):
    """Slots (M, D) of one context, the last token of each, and the kept segments, by the reference."""
    c, T = reader.compressor, int(batch.context.lengths[row])
    values, compared, query = states_by_hand(reader, batch, row)
    parts = [range(start, min(start + 6, T)) for start in range(0, T, 6)]
    states, merged = torch.zeros(2, 1, len(parts), 6, 64)
    for i, part in enumerate(parts):
        states[0, i, : len(part)], merged[0, i, : len(part)] = compared[list(part)], values[list(part)]
    mask = torch.tensor([[[j < len(part) for j in range(6)] for part in parts]])
    keep = kept_by_hand(c, reference.relevance(states, mask, query[None]), mask.sum(-1))
    skimmed = {
        i: skimmed_by_hand(c, states[0, i], mask[0, i], merged[0, i], query[None])
        for i in range(len(parts))
        if not keep[i]
    }
    vectors = torch.cat([values[:0], *(own for own, _ in skimmed.values())])
    if c.context_encoder.lsa is not None:  # skimmed vectors attend to one another, not to kept tokens
        vectors = c.context_encoder.lsa.norm(
            c.context_encoder.lsa.run(vectors[None], range(2), torch.arange(len(vectors))[None])
        )[0]
    vectors = vectors if c.layer else c.context_encoder.linear(vectors)
    vectors = dict(zip(skimmed, vectors.split([len(own) for own, _ in skimmed.values()])))
    own = values if c.layer else reader.decoder.embed(row_ids(batch, row, "context"))
    slots, ends = [], []
    for i, part in enumerate(parts):
        slots.append(own[list(part)] if keep[i] else vectors[i])
        ends += part if keep[i] else [part[0] + place for place in skimmed[i][1]]
    return torch.cat(slots), ends, keep


@EACH
def test_the_memory_equals_the_paper_s_steps(build, overrides, ragged):
    """Kept tokens and skimmed vectors in document order, their number and positions, for contexts of any length."""
    reader = build([*SIX, *overrides]).eval()
    disturb(reader)
    seen = []
    with torch.no_grad():
        memory, output = memory_of(reader, ragged)
        for b, slots in enumerate(rows_of(memory)):
            T = int(ragged.context.lengths[b])
            if T == 0:
                assert len(slots) == 0
                continue
            expected, ends, keep = memory_by_hand(reader, ragged, b)
            assert output.slots[b] == len(expected) and memory.trace["kept"][b, : len(keep)].tolist() == keep
            assert not memory.trace["kept"][b, len(keep) :].any()
            close(slots, expected)
            if reader.compressor.layer:
                if reader.compressor.context_encoder.slot_positions == "consecutive":
                    ends = list(range(T - len(ends), T))
                assert memory.positions[b][memory.mask[b]].tolist() == ends
            seen += keep
    assert any(seen) == (overrides != [SKIMMED]) and not all(seen)


@EACH
def test_slots_are_in_document_order(build, overrides, ragged):
    """Groups never decrease; each holds one kept token, a skimmed segment or a part of one, and makes one slot."""
    reader = build([*SIX, *overrides]).eval()
    with torch.no_grad():
        memory, output = memory_of(reader, ragged)
    for b, T in enumerate(ragged.context.lengths.tolist()):
        groups = memory.trace["groups"][b]
        assert (groups[T:] == -1).all()
        named = groups[:T][groups[:T] >= 0]
        assert (named.diff() >= 0).all() and len(named.unique()) == output.slots[b]
        for i, segment in enumerate(groups[:T].split(6) if T else ()):
            kept, dropped = bool(memory.trace["kept"][b, i]), reader.compressor.skim == "drop"
            several = reader.compressor.skimmer is not None
            assert len(segment.unique()) == len(segment) if kept else len(segment.unique()) <= (3 if several else 1)
            assert (segment == -1).all() == (dropped and not kept)


def test_a_strict_budget_holds_wherever_skimming_alone_fits(build, ragged):
    lengths, segments = [50, 0, 14, 2, 32], [9, 0, 3, 1, 6]
    assert ragged.context.lengths.tolist() == lengths
    for ratio in (2, 4, 50):
        reader = build([*SIX, f"compressor.ratio={ratio}", "compressor.budget=strict"]).eval()
        slots = reader.footprint(ragged).memory_slots.tolist()
        assert all(n <= max(tokens // ratio, fewest) for n, tokens, fewest in zip(slots, lengths, segments))
        assert all(n >= fewest for n, fewest in zip(slots, segments))
    footprint = build([*SIX, *SLOTS]).eval().footprint(ragged)
    assert (footprint.memory_slots <= 17).all() and footprint.requested_ratio is None
    assert footprint.memory_slots[2:4].tolist() == lengths[2:4]  # short contexts are kept whole
