"""RAM as a reader: batches, questions, losses, gradients, random ratios, variants (spec 5: 4, 6, 7, 12).

Segments of 6 tokens split the ragged contexts of 50, 0, 14, 2 and 32 tokens into 9, 0, 3, 1 and 6 of them.
"""

from dataclasses import replace

import pytest
import torch
from ram_forms import ALL, DEPTH, SEVERAL, SIX, SKIMMED, SLOTS, WHOLE, close, memory_of, rows_of

from breviary.contract import Context, Example, Tokens
from breviary.evaluation.identity import compared_settings
from breviary.runs.folders import config_hash
from breviary.selection.cosine import split_segments
from ram import reference
from tests.tiny import disturb, greedy_ids, row_ids


def with_question(examples, question):
    return [replace(example, question=question) for example in examples]


# ------------------------------------------------------------------ batches, order of segments, questions (4, 6, 7)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [DEPTH],
        ["compressor.budget=strict", WHOLE],
        SLOTS,
        ["compressor.keep=random"],
        ["compressor.alignment=transformer_linear"],
        ["compressor.skim=drop"],
        SEVERAL,
    ],
    ids=["input", "depth", "strict-whole", "slots", "random", "transformer", "drop", "several"],
)
def test_a_batch_of_n_equals_n_batches_of_one(build, overrides, ragged_examples, collate):
    """In training, with the contrastive loss: ragged numbers of segments, padding on either side and of any token."""
    reader = build([*SIX, *overrides])
    disturb(reader)
    with torch.no_grad():
        alone = [memory_of(reader, collate([example])) for example in ragged_examples]
        ids = [greedy_ids(reader, collate([example]), 4)[0] for example in ragged_examples]
        contrastive = sum(output.parts["contrastive"][0] for _, output in alone)
        for batch in (collate(ragged_examples), collate(ragged_examples, side="left", pad_id=7)):
            memory, together = memory_of(reader, batch)
            for b, (own, output) in enumerate(alone):
                torch.testing.assert_close(together.nll[b], output.nll[0], rtol=1e-5, atol=0)
                close(rows_of(memory)[b], rows_of(own)[0])
                segments = own.trace["kept"].shape[1]
                for name in ("kept", "relevance"):
                    row = memory.trace[name][b]
                    close(row[:segments], own.trace[name][0][: len(row)])
                    assert not row[segments:].any()
            close(together.parts["contrastive"][0], contrastive)
            assert greedy_ids(reader, batch, 4) == ids
    assert contrastive > 0


def test_segments_are_encoded_independently(build, ragged):
    """Changing tokens of one segment changes no bit of the others' states, scores and vectors."""
    reader = build([*SIX, SKIMMED]).eval()
    context = Context(ragged.context.ids, ragged.context.mask, ragged.prefix)
    with torch.no_grad():
        states, (memory, _) = reader.compressor.encode(context).states, memory_of(reader, ragged)
        ragged.context.ids[0, 14:16] += 1
        again, (changed, _) = reader.compressor.encode(context).states, memory_of(reader, ragged)
    same = torch.ones(5, 9, dtype=torch.bool)
    same[0, 2] = False
    for before, after in (
        (states, again),
        (memory.trace["relevance"], changed.trace["relevance"]),
        (memory.embeds, changed.embeds),
    ):
        assert torch.equal(before[same], after[same]) and not torch.equal(before[0, 2], after[0, 2])


def test_the_memory_is_equivariant_to_the_order_of_segments(build, ragged):
    """Reordering segments only reorders the memory."""
    order = torch.tensor([3, 0, 7, 1, 6, 5, 2, 4])
    batch = ragged.rows([0])
    plain = batch.context.ids[:, :48]
    batch.context = Tokens(plain, torch.ones_like(plain, dtype=torch.bool))
    moved = replace(batch, context=replace(batch.context, ids=plain.view(1, 8, 6)[:, order].reshape(1, 48)))
    for overrides, slots in (([], 28), ([SKIMMED], 8)):
        reader = build([*SIX, *overrides]).eval()
        with torch.no_grad():
            (memory, output), (other, _) = memory_of(reader, batch), memory_of(reader, moved)
        close(other.trace["relevance"], memory.trace["relevance"][:, order])
        assert torch.equal(other.trace["kept"], memory.trace["kept"][:, order]) and output.slots == slots
        if slots == 8:
            close(other.embeds, memory.embeds[:, order])


@pytest.mark.parametrize("overrides", [[], [DEPTH]], ids=["input", "depth"])
def test_selection_and_skimming_depend_on_the_question(build, overrides, ragged_examples, collate):
    batches = [
        collate(with_question(ragged_examples[:1], words)) for words in ("Which bell of the ship?", "What is yellow?")
    ]
    for keep in ("topk", "none"):
        reader = build([*SIX, *overrides, f"compressor.keep={keep}", "compressor.skim_temperature=0.1"]).eval()
        with torch.no_grad():
            first, second = (memory_of(reader, batch)[0] for batch in batches)
        assert not torch.allclose(first.trace["relevance"], second.trace["relevance"], atol=1e-3)
        if keep == "none":
            assert not torch.allclose(first.trace["weights"], second.trace["weights"], atol=1e-3)
            assert not torch.allclose(first.embeds, second.embeds, atol=1e-3)


def test_read_whole_differs_from_the_second_segment_on(build, ragged):
    """The first segment has no predecessor; contexts of one segment are encoded equally."""
    with torch.no_grad():
        apart, whole = (
            memory_of(build([*SIX, SKIMMED, f"compressor.read={read}"]).eval(), ragged)
            for read in ("segments", "whole")
        )
    for one, other in zip(rows_of(apart[0]), rows_of(whole[0])):
        assert one.shape == other.shape
        close(one[:1], other[:1])
        assert all(not torch.allclose(x, y, atol=1e-3) for x, y in zip(one[1:], other[1:]))
    torch.testing.assert_close(apart[1].nll[[1, 3]], whole[1].nll[[1, 3]], rtol=1e-5, atol=0)
    assert not torch.allclose(apart[1].nll[0], whole[1].nll[0], rtol=1e-4)


# ------------------------------------------------------------------ losses and gradients (12)


@pytest.mark.parametrize(
    "overrides, temperature",
    [([], 0.1), (["compressor.contrastive_temperature=0.5"], 0.5), (["compressor.quirks=true"], 0.05), ([DEPTH], 0.1)],
    ids=["default", "own", "quirks", "depth"],
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_positives_of_the_contrastive_loss_are_gold_segments(
    build, overrides, temperature, side, ragged_examples, collate
):
    batch = collate(ragged_examples, side=side)
    reader = build([*SIX, *overrides, "compressor.contrastive_weight=0.5"])
    memory, output = memory_of(reader, batch)
    relevance = memory.trace["relevance"]
    positives, valid = torch.zeros(relevance.shape).bool(), torch.zeros(relevance.shape).bool()
    for b in range(5):
        for i, marks in enumerate(batch.evidence[b][batch.context.mask[b]].split(6)):
            if len(marks):
                positives[b, i], valid[b, i] = marks.any(), True
    assert positives.any(1).tolist() == [True, False, True, False, True] and (valid & ~positives).any(1)[0]
    expected = 0.5 * reference.contrastive_loss(relevance, positives, valid, temperature, "sum")
    value, count = output.parts["contrastive"]
    torch.testing.assert_close(value, expected)
    assert int(count) == int(reader.counts(batch)["contrastive"]) == 3
    assert reader.eval().loss(batch).parts == {}


def test_with_a_continuation_counts_and_labels_are_of_the_same_batch(build, collate):
    """Positives in the second half of the context, which is predicted and not compressed, do not count."""
    filler = " ".join(["red copper iron"] * 12)
    late, early = f"{filler} tin", f"tin {filler}"
    examples = [Example(str(i), text, "Which?", ("tin",)) for i, text in enumerate((late, early, late, filler))]
    reader = build([*SIX, "objective=continue"])
    reader.begin_step(0, 0)
    batch = collate(examples)
    output, counts = reader.loss(batch), reader.counts(batch)
    assert {name: int(count) for name, count in counts.items()} == {
        name: int(count) for name, (_, count) in output.terms().items()
    }
    assert int(counts["contrastive"]) == 1
    labels = reader.compressor.labels(reader.objective.primary(batch))
    assert labels.any(1).tolist() == [False, True, False, False]


def test_a_contrastive_weight_of_0_requires_no_labels(build, ragged):
    reader = build([*SIX, "compressor.contrastive_weight=0"])
    ragged.offsets = ragged.evidence = None
    assert reader.loss(ragged).parts == {} and reader.counts(ragged).keys() == {"answer"}


def gradients(reader, loss):
    """{part of the compressor: largest gradient}; every trained weight must have a gradient."""
    reader.zero_grad()
    loss.backward()
    largest = {}
    for name, parameter in reader.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            part = name.split(".")[2]
            largest[part] = max(largest.get(part, 0), float(parameter.grad.abs().max()))
    return largest


def test_the_answer_loss_reaches_the_encoder_through_skimmed_segments_only(build, ragged):
    for ratio, reached in ((1, False), (2, True)):
        reader = build([*SIX, f"compressor.ratio={ratio}", "compressor.alignment=transformer_linear"])
        largest = gradients(reader, reader.loss(ragged).nll.sum())
        assert largest.keys() == {"encoder", "lsa", "linear"}
        assert all((size > 0) == reached for size in largest.values()), largest


def test_with_everything_kept_only_the_contrastive_loss_reaches_the_encoder(build, ragged):
    reader = build(ALL)
    largest = gradients(reader, sum(value for value, _ in reader.loss(ragged).terms().values()))
    assert largest["encoder"] > 0 and largest["linear"] == 0


@pytest.mark.parametrize(
    "overrides",
    [[], [DEPTH, "decoder.train=lora"], ["compressor.alignment=transformer_linear"], ["compressor.quirks=true"]],
    ids=["input", "depth", "transformer", "quirks"],
)
def test_every_weight_has_a_gradient_even_where_all_are_0(build, overrides, collate):
    """Everything kept and no positive: DDP and ZeRO still wait for a gradient of each trained weight."""
    batch = collate([Example("a", "red copper iron horse", "Which?", ("green",)), Example("b", "", "Which?", ("tin",))])
    reader = build([*ALL, *overrides])
    terms = reader.loss(batch).terms()
    assert terms["contrastive"][0] == 0 and terms["contrastive"][1] == 0
    largest = gradients(reader, sum(value for value, _ in terms.values()))
    # Here the answer loss reaches compressor or decoder weights even with everything kept.
    has_gradient = DEPTH in overrides or "compressor.quirks=true" in overrides
    assert any(largest.values()) == has_gradient


# ------------------------------------------------------------------ random ratios (12)


def test_random_ratios_follow_from_seed_and_step_in_training_only(build, ragged):
    reader, other = build(SIX), build([*SIX, "compressor.keep=random"])
    assert reader.requested_ratio == 2  # before the first step
    shares = []
    for step in range(300):
        for each in (reader, other):
            each.begin_step(step, 42)
        assert reader.requested_ratio == other.requested_ratio
        shares.append(1 / reader.requested_ratio)
    assert all(0 < share <= 1 for share in shares) and len(set(shares)) == 300
    assert abs(sum(shares) / 300 - 0.5) < 0.05 and min(shares) < 0.02 and max(shares) > 0.98
    other.begin_step(299, 43)
    assert reader.requested_ratio != other.requested_ratio
    slots = reader.loss(ragged).slots
    assert torch.equal(reader.loss(ragged).slots, slots)  # micro-batches of a step agree
    reader.eval()
    assert reader.requested_ratio == 2 and torch.equal(reader.loss(ragged).slots, build(SIX).loss(ragged).slots)


def test_training_works_at_any_drawn_ratio(build, ragged):
    reader = build(SIX)
    lengths, slots = ragged.context.lengths, []
    for step in range(8):
        reader.begin_step(step, 0)
        memory, output = memory_of(reader, ragged)
        segments = torch.tensor([9, 0, 3, 1, 6])
        assert memory.trace["kept"].sum(1).tolist() == [
            int(n / reader.requested_ratio + 1e-9) for n in segments.tolist()
        ]
        assert (output.slots <= lengths).all() and torch.isfinite(output.nll).all()
        slots.append(int(output.slots.sum()))
    assert len(set(slots)) > 4


@pytest.mark.parametrize("overrides", [SLOTS, ["compressor.uniform_keep=false"]], ids=["slots", "fixed"])
def test_a_fixed_budget_draws_no_ratio(build, overrides):
    reader = build([*SIX, *overrides])
    before = reader.requested_ratio
    reader.begin_step(3, 42)
    assert reader.requested_ratio == before


# ------------------------------------------------------------------ variants


def test_quirks_embed_kept_tokens_with_the_encoder(build, ragged):
    reader = build([*ALL, "compressor.quirks=true"]).eval()
    disturb(reader)
    with torch.no_grad():
        for b, slots in enumerate(rows_of(memory_of(reader, ragged)[0])):
            ids = row_ids(ragged, b, "context")
            assert torch.equal(slots, reader.compressor.context_encoder.encoder.embed(ids))
            assert not len(ids) or not torch.allclose(slots, reader.decoder.embed(ids), atol=1e-3)
    assert reader.compressor.contrastive_temperature == 0.05


def test_random_selection_depends_on_the_tokens_of_a_segment_alone(build, ragged_examples, collate):
    """Not on the question, nor on the batch (see above). It keeps as many segments as topk, but different ones."""
    with torch.no_grad():
        best, chosen, again = (
            memory_of(build([*SIX, f"compressor.keep={keep}"]).eval(), collate(examples))[0].trace["kept"]
            for keep, examples in (
                ("topk", ragged_examples),
                ("random", ragged_examples),
                ("random", with_question(ragged_examples, "What is yellow?")),
            )
        )
    assert torch.equal(chosen, again) and torch.equal(chosen.sum(1), best.sum(1)) and not torch.equal(chosen, best)


def test_random_selection_is_uniform_over_places(build):
    """Each of 8 segments is kept half the time, and the selection follows the tokens when segments are reordered."""
    compressor = build([*SIX, "compressor.keep=random"]).eval().compressor
    ids = torch.randint(0, 500, (1000, 8, 6), generator=torch.Generator().manual_seed(0))
    relevance, mask = torch.zeros(1000, 8), torch.ones(1000, 8, 6).bool()
    keep, moved = (compressor.select(relevance, x, mask) for x in (ids, ids.flip(1)))
    assert (keep.sum(1) == 4).all() and ((keep.float().mean(0) - 0.5).abs() < 0.05).all()
    assert torch.equal(moved, keep.flip(1))


def test_other_rankers_choose_the_segments(build, ragged_examples, collate):
    """Each keeps as many segments as the cosine, but others; gold ones come first."""
    batch = collate([ragged_examples[0], ragged_examples[2], ragged_examples[4]])  # those that mark gold passages
    words = [*SIX, "compressor.contrastive_weight=0"]
    gold = split_segments(batch.evidence, 6).float().sum(-1)
    traces = {}
    for name in ("cosine", "gold", "bm25", "random"):
        reader = build([*words, f"compressor.relevance={name}"]).eval()
        with torch.no_grad():
            traces[name] = memory_of(reader, batch)[0].trace
    for b in range(3):
        kept, marked = traces["gold"]["kept"][b][: gold.shape[1]], gold[b] == 6
        assert (marked <= kept).all() or (kept <= (gold[b] > 0)).all()
    assert len({tuple(trace["kept"].flatten().tolist()) for trace in traces.values()}) == 4
    numbers = [trace["kept"].sum(1).tolist() for trace in traces.values()]
    assert all(number == numbers[0] for number in numbers)


def test_a_cosine_is_no_change_of_a_run(compose):
    cfg = compose(["compressor=ram"])
    old = cfg.copy()
    del old.compressor.relevance
    assert config_hash(cfg) == config_hash(old) and compared_settings(cfg) == compared_settings(old)
    cfg.compressor.relevance = "bm25"
    assert config_hash(cfg) != config_hash(old)


def test_skim_drop_leaves_kept_tokens_only(build, ragged):
    reader = build([*SIX, "compressor.skim=drop"]).eval()
    with torch.no_grad():
        memory, output = memory_of(reader, ragged)
        for b, slots in enumerate(rows_of(memory)):
            pieces = row_ids(ragged, b, "context").split(6)
            kept = [piece for piece, keep in zip(pieces, memory.trace["kept"][b].tolist()) if keep]
            assert output.slots[b] == sum(map(len, kept)) > 0 or not kept
            assert torch.equal(slots, reader.decoder.embed(torch.cat([*kept, pieces[0][:0]])))


def test_half_precision_streams_train(build, ragged):
    for overrides in ([], [DEPTH]):
        reader, exact = (
            build(["compressor=ram", "compressor.segment_size=6", SKIMMED, *overrides, *precision])
            for precision in (["backbone.dtype=bfloat16"], [])
        )
        output = reader.loss(ragged)
        sum(value for value, _ in output.terms().values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in reader.parameters() if p.requires_grad)
        torch.testing.assert_close(output.nll, exact.loss(ragged).nll, rtol=0.05, atol=0)
