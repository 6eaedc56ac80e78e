"""What reaches what in CoMeT: short texts, causality, gradients, positions, packed texts (spec 6: 3, 7, 8, 9)."""

import pytest
import torch
from comet_helpers import (
    B,
    C,
    G,
    K,
    S,
    comet,
    drawn_ids,
    gradients,
    largest_difference,
    logits_of,
    nats,
    states_of,
    text_of,
    twin,
)

from breviary.config.build import build_backbone
from comet import layers
from comet.layers import BACKENDS
from comet.text import Text, steps_of
from tests.tiny import compose_tiny, tiny_reader

NO_MEMORY = ["compressor.global_slots=0", "compressor.queue_budget=0"]
MEMORIES = {"both": [], "global": ["compressor.queue_budget=0"], "queue": ["compressor.global_slots=0"]}
each_memory = pytest.mark.parametrize("overrides", MEMORIES.values(), ids=MEMORIES)


def marked(text_ids, place):
    """The ids with a token at `place` that stands nowhere else."""
    ids = text_ids.clone()
    ids[:, place] = 1
    return ids


# ---- short texts (3) ----


@pytest.mark.parametrize(
    "overrides, length",
    [(["compressor.stride=16"], 15), (["compressor.queue_budget=0"], 16), ([], 3)],
    ids=["below one stride", "one chunk without a queue", "three tokens"],
)
def test_a_short_text_is_read_as_by_the_plain_backbone(overrides, length):
    """Logits, loss and gradients; the memory's gradients are there, and 0."""
    cfg = compose_tiny(
        ["compressor=comet", "backbone.layers=2", "backbone.dtype=float64", "decoder.train=full", *overrides]
    )
    reader, model, ids = tiny_reader(cfg).double(), build_backbone(cfg).load().double(), drawn_ids(2, length)
    text = text_of(ids, [[length], [length]], reader.stride)
    nll = reader.nll(text).sum()
    logits = model(ids).logits
    loss = nats(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected = torch.autograd.grad(loss, [weight for _, weight in model.named_parameters()])
    for states, row in zip(states_of(reader, text), logits):
        torch.testing.assert_close(logits_of(reader, states), row, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(nll, loss, atol=1e-12, rtol=1e-12)
    expected = {
        name.replace("model.", "decoder.").replace("decoder.norm", "decoder.final_norm"): grad
        for (name, _), grad in zip(model.named_parameters(), expected)
    }
    found = gradients(reader, nll)
    assert largest_difference({name: found[name] for name in expected}, expected) < 1e-10
    assert found.keys() - expected.keys() == {f"memory.{name}" for name, _ in reader.memory.named_parameters()}
    assert not any(grad.any() for name, grad in found.items() if name not in expected)


def test_weights_that_a_short_text_does_not_use_have_a_gradient_of_zero():
    reader = comet().train()
    reader.nll(text_of(drawn_ids(1, 3), [[3]])).sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in reader.memory.parameters())


# ---- causality (7) ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [0, 20, 31, 32])
def test_no_token_sees_a_later_one(backend, place):
    reader, ids, plan = comet(f"compressor.backend={backend}"), drawn_ids(1, 60), [16, 9, 7, 16, 12]
    [before], [after] = (states_of(reader, text_of(row, [plan])) for row in (ids, marked(ids, place)))
    assert torch.equal(before[:place], after[:place])
    assert (before[place:] - after[place:]).abs().amax(1).min() > 1e-6  # and every later one does


def test_chunks_meet_in_the_memory_alone():
    reader, ids = comet(*NO_MEMORY), drawn_ids(1, 48)
    [before], [after] = (states_of(reader, text_of(row, [[16, 16, 16]])) for row in (ids, marked(ids, 20)))
    assert torch.equal(before[:20], after[:20]) and torch.equal(before[32:], after[32:])
    assert not torch.equal(before[20:32], after[20:32])


# ---- gradients (8) ----


@each_memory
def test_gradients_reach_the_first_chunk_from_the_twelfth(overrides):
    reader = comet(*overrides)
    [states] = states_of(reader, text_of(marked(drawn_ids(1, 12 * C), 2), [[C] * 12]))
    for chunk in (0, 1, 5, 11):
        assert reach_kept(reader, states[chunk * C : (chunk + 1) * C]) > 0


def reach_kept(reader, states):
    (grad,) = torch.autograd.grad(states.pow(2).sum(), [reader.decoder.embed_tokens.weight], retain_graph=True)
    return float(grad[1].abs().max())


def test_without_memory_no_gradient_leaves_its_chunk():
    reader = comet(*NO_MEMORY)
    [states] = states_of(reader, text_of(marked(drawn_ids(1, 3 * C), 2), [[C] * 3]))
    assert reach_kept(reader, states[:C]) > 0 and reach_kept(reader, states[C:]) == 0


@pytest.mark.parametrize("every", [1, 2, 3])
def test_gradients_end_at_every_kth_chunk_exactly(every):
    """Two rows, of 5 and of 3 chunks: each counts its own."""
    reader, plans = comet(), [[C] * 5, [C] * 3]
    text = text_of(drawn_ids(2, 5 * C), plans)
    values = states_of(reader, text)
    reader.truncate_every = every
    for row, plan in enumerate(plans):
        for source in range(len(plan)):
            own = text.ids.clone()
            own[row, source * C] = 1
            found = states_of(reader, text_of(own, plans))[row]
            for chunk in range(source, len(plan)):
                together = source // every == chunk // every
                assert (reach_kept(reader, found[chunk * C : (chunk + 1) * C]) > 0) == together, (row, source, chunk)
    assert all(torch.equal(one, other) for one, other in zip(values, states_of(reader, text)))


# ---- placement (9) ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_begin_at_0_in_every_chunk_and_stay_below_the_layout_s_length(backend, monkeypatch):
    made, piece = [], layers.Piece

    def watched(*args, **keywords):
        made.append(piece(*args, **keywords))
        return made[-1]

    monkeypatch.setattr(layers, "Piece", watched)
    reader, plans = comet(f"compressor.backend={backend}"), [[C] * 6, [3, 16, 9, 16]]
    states_of(reader, text_of(drawn_ids(2, 6 * C), plans))
    largest = []
    for step in made:
        for row in range(2):
            seats = int(step.seat_mask[row].sum())
            real = step.layout.mask[row]
            own = step.positions[row, -len(real) :][real].tolist()
            assert own == list(range(seats, seats + int(real.sum())))
            if step.scatters:
                assert step.positions[row, : -len(real)][step.seat_mask[row]].tolist() == list(range(seats))
            largest += own
    assert max(largest) == 2 * G + B + C + K - 1 and len(made) == 6


@pytest.mark.parametrize(
    "plan, unused", [([3], range(1 + G)), ([16], range(1, 1 + G)), ([9], range(1, 1 + G))], ids=str
)
def test_learned_tokens_that_do_not_stand_in_a_text_never_matter(plan, unused):
    reader, ids = comet(), drawn_ids(1, sum(plan))
    [before] = states_of(reader, text_of(ids, [plan]))
    with torch.no_grad():
        reader.memory.tokens.weight[list(unused)] += 1
    assert torch.equal(before, states_of(reader, text_of(ids, [plan]))[0])
    with torch.no_grad():
        reader.memory.tokens.weight += 1
    assert torch.equal(before, states_of(reader, text_of(ids, [plan]))[0]) == (len(unused) == 1 + G)


def test_padding_never_matters():
    reader, ids, plans = comet(), drawn_ids(2, 50), [[16, 16, 2], [9]]
    before = states_of(reader, text_of(ids, plans))
    ids[0, 34:], ids[1, 9:] = 1, 7
    assert all(torch.equal(one, other) for one, other in zip(before, states_of(reader, text_of(ids, plans))))


# ---- packed texts ----

LENGTHS = [[20, 7, 33], [40, 3]]


def packed_states(reader, ids, shared):
    return states_of(reader, reader.packed(ids, LENGTHS, shared))


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_texts_are_read_as_if_alone(backend):
    reader, ids = comet(f"compressor.backend={backend}"), drawn_ids(2, 60)
    found = packed_states(reader, ids, False)
    nll = reader.nll(reader.packed(ids, LENGTHS))
    for row, lengths in enumerate(LENGTHS):
        parts, total = ids[row].split([*lengths, 60 - sum(lengths)]), 0
        for states, part in zip(found[row].split(lengths), parts):
            plan = [min(C, len(part) - start) for start in range(0, len(part), C)]
            expected = twin(reader, part, plan)
            torch.testing.assert_close(states, expected, atol=1e-10, rtol=1e-10)
            total = total + nats(logits_of(reader, expected)[:-1], part[1:])
        torch.testing.assert_close(nll[row], total, atol=1e-8, rtol=1e-10)


def test_no_gradient_crosses_the_border_of_packed_texts():
    reader, ids = comet(), marked(drawn_ids(2, 60), 2)
    states = packed_states(reader, ids, False)
    assert reach_kept(reader, states[0][:20]) > 0
    assert reach_kept(reader, states[0][20:]) == 0 and reach_kept(reader, states[1][40:]) == 0
    assert reach_kept(reader, packed_states(reader, ids, True)[0][20:]) > 0


def test_shared_texts_are_one_text_that_supervises_no_text_s_first_token():
    reader, ids = comet(), drawn_ids(2, 60)
    text = reader.packed(ids, LENGTHS, shared=True)
    for row, lengths in enumerate(LENGTHS):
        plan = [min(C, sum(lengths) - start) for start in range(0, sum(lengths), C)]
        own = ids[row, : sum(lengths)]
        logits = logits_of(reader, twin(reader, own, plan))
        firsts = {0, *torch.tensor(lengths).cumsum(0).tolist()}
        targets = [at for at in range(1, len(own)) if at not in firsts]
        expected = nats(logits[[at - 1 for at in targets]], own[targets])
        torch.testing.assert_close(reader.nll(text)[row], expected, atol=1e-8, rtol=1e-10)
    alone = reader.nll(reader.packed(ids, LENGTHS))
    assert (alone - reader.nll(text)).abs().min() > 1e-3


def test_rows_of_packed_texts_of_which_one_holds_fewer_chunks_than_texts():
    """A step in which one row's text begins, another goes on and a third has not begun."""
    reader, ids = comet(), drawn_ids(3, 40)
    plans = [[[3], [2], [4], [16, 5]], [[16, 16, 8]], [[7]]]
    asked = torch.zeros_like(ids, dtype=torch.bool)
    found = states_of(reader, Text(ids, asked, steps_of(plans), [S] * 3))
    for row, texts in enumerate(plans):
        at = 0
        for sizes in texts:
            expected = twin(reader, ids[row, at : at + sum(sizes)], sizes)
            torch.testing.assert_close(found[row][at : at + sum(sizes)], expected, atol=1e-10, rtol=1e-10)
            at += sum(sizes)
