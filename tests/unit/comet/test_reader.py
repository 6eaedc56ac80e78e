"""CoMeT's dependencies: short texts, causality, gradients, positions, packed texts (spec 6: 3, 7, 8, 9)."""

import pytest
import torch
from comet_helpers import (
    B,
    C,
    G,
    K,
    S,
    chunked_text,
    expected_states,
    gradients,
    largest_difference,
    logits_of,
    random_ids,
    summed_nll,
    text_states,
    tiny_comet,
)

from breviary.config.build import build_backbone
from comet import layers
from comet.chunked_text import ChunkedText, align_steps
from comet.layers import BACKENDS
from tests.tiny import compose_tiny, tiny_reader

NO_MEMORY = ["compressor.global_slots=0", "compressor.queue_budget=0"]
MEMORIES = {"both": [], "global": ["compressor.queue_budget=0"], "queue": ["compressor.global_slots=0"]}
each_memory = pytest.mark.parametrize("overrides", MEMORIES.values(), ids=MEMORIES)


def with_unique_token(text_ids, index):
    """The ids with token 1, which occurs nowhere else, at `index`."""
    ids = text_ids.clone()
    ids[:, index] = 1
    return ids


# ---- short texts (3) ----


@pytest.mark.parametrize(
    "overrides, length",
    [(["compressor.stride=16"], 15), (["compressor.queue_budget=0"], 16), ([], 3)],
    ids=["below one stride", "one chunk without a queue", "three tokens"],
)
def test_a_short_text_equals_the_plain_backbone(overrides, length):
    """Logits, loss and gradients; the memory's gradients exist and are 0."""
    cfg = compose_tiny(
        ["compressor=comet", "backbone.layers=2", "backbone.dtype=float64", "decoder.train=full", *overrides]
    )
    reader, model, ids = tiny_reader(cfg).double(), build_backbone(cfg).load().double(), random_ids(2, length)
    text = chunked_text(ids, [[length], [length]], reader.stride)
    nll = reader.nll(text).sum()
    logits = model(ids).logits
    loss = summed_nll(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected = torch.autograd.grad(loss, [weight for _, weight in model.named_parameters()])
    for states, row in zip(text_states(reader, text), logits):
        torch.testing.assert_close(logits_of(reader, states), row, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(nll, loss, atol=1e-12, rtol=1e-12)
    expected = {
        name.replace("model.", "decoder.").replace("decoder.norm", "decoder.final_norm"): grad
        for (name, _), grad in zip(model.named_parameters(), expected)
    }
    actual = gradients(reader, nll)
    assert largest_difference({name: actual[name] for name in expected}, expected) < 1e-10
    assert actual.keys() - expected.keys() == {f"memory.{name}" for name, _ in reader.memory.named_parameters()}
    assert not any(grad.any() for name, grad in actual.items() if name not in expected)


def test_unused_weights_have_a_zero_gradient():
    reader = tiny_comet().train()
    reader.nll(chunked_text(random_ids(1, 3), [[3]])).sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in reader.memory.parameters())


# ---- causality (7) ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [0, 20, 31, 32])
def test_no_token_depends_on_a_later_one(backend, index):
    reader, ids, plan = tiny_comet(f"compressor.backend={backend}"), random_ids(1, 60), [16, 9, 7, 16, 12]
    [before], [after] = (text_states(reader, chunked_text(row, [plan])) for row in (ids, with_unique_token(ids, index)))
    assert torch.equal(before[:index], after[:index])
    assert (before[index:] - after[index:]).abs().amax(1).min() > 1e-6  # every later one does


def test_chunks_are_connected_by_the_memory_only():
    reader, ids = tiny_comet(*NO_MEMORY), random_ids(1, 48)
    [before], [after] = (
        text_states(reader, chunked_text(row, [[16, 16, 16]])) for row in (ids, with_unique_token(ids, 20))
    )
    assert torch.equal(before[:20], after[:20]) and torch.equal(before[32:], after[32:])
    assert not torch.equal(before[20:32], after[20:32])


# ---- gradients (8) ----


@each_memory
def test_gradients_reach_the_first_of_twelve_chunks(overrides):
    reader = tiny_comet(*overrides)
    [states] = text_states(reader, chunked_text(with_unique_token(random_ids(1, 12 * C), 2), [[C] * 12]))
    for chunk in (0, 1, 5, 11):
        assert gradient_of_unique_token(reader, states[chunk * C : (chunk + 1) * C]) > 0


def gradient_of_unique_token(reader, states):
    """Largest gradient of the embedding of token 1."""
    (grad,) = torch.autograd.grad(states.pow(2).sum(), [reader.decoder.embed_tokens.weight], retain_graph=True)
    return float(grad[1].abs().max())


def test_without_memory_no_gradient_leaves_its_chunk():
    reader = tiny_comet(*NO_MEMORY)
    [states] = text_states(reader, chunked_text(with_unique_token(random_ids(1, 3 * C), 2), [[C] * 3]))
    assert gradient_of_unique_token(reader, states[:C]) > 0 and gradient_of_unique_token(reader, states[C:]) == 0


@pytest.mark.parametrize("every", [1, 2, 3])
def test_gradients_end_at_every_kth_chunk_exactly(every):
    """Two rows, of 5 and of 3 chunks: each counts its own chunks."""
    reader, plans = tiny_comet(), [[C] * 5, [C] * 3]
    text = chunked_text(random_ids(2, 5 * C), plans)
    values = text_states(reader, text)
    reader.truncate_every = every
    for row, plan in enumerate(plans):
        for source in range(len(plan)):
            own = text.ids.clone()
            own[row, source * C] = 1
            actual = text_states(reader, chunked_text(own, plans))[row]
            for chunk in range(source, len(plan)):
                together = source // every == chunk // every
                assert (gradient_of_unique_token(reader, actual[chunk * C : (chunk + 1) * C]) > 0) == together, (
                    row,
                    source,
                    chunk,
                )
    assert all(torch.equal(one, other) for one, other in zip(values, text_states(reader, text)))


# ---- positions (9) ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_start_from_0_in_every_chunk_and_are_below_the_layout_s_length(backend, monkeypatch):
    made, piece = [], layers.Piece

    def watched(*args, **keywords):
        made.append(piece(*args, **keywords))
        return made[-1]

    monkeypatch.setattr(layers, "Piece", watched)
    reader, plans = tiny_comet(f"compressor.backend={backend}"), [[C] * 6, [3, 16, 9, 16]]
    text_states(reader, chunked_text(random_ids(2, 6 * C), plans))
    largest = []
    for step in made:
        for row in range(2):
            slots = int(step.slot_mask[row].sum())
            real = step.layout.mask[row]
            own = step.positions[row, -len(real) :][real].tolist()
            assert own == list(range(slots, slots + int(real.sum())))
            if step.scatter:
                assert step.positions[row, : -len(real)][step.slot_mask[row]].tolist() == list(range(slots))
            largest += own
    assert max(largest) == 2 * G + B + C + K - 1 and len(made) == 6


@pytest.mark.parametrize(
    "plan, unused", [([3], range(1 + G)), ([16], range(1, 1 + G)), ([9], range(1, 1 + G))], ids=str
)
def test_learned_tokens_outside_the_text_have_no_effect(plan, unused):
    reader, ids = tiny_comet(), random_ids(1, sum(plan))
    [before] = text_states(reader, chunked_text(ids, [plan]))
    with torch.no_grad():
        reader.memory.tokens.weight[list(unused)] += 1
    assert torch.equal(before, text_states(reader, chunked_text(ids, [plan]))[0])
    with torch.no_grad():
        reader.memory.tokens.weight += 1
    assert torch.equal(before, text_states(reader, chunked_text(ids, [plan]))[0]) == (len(unused) == 1 + G)


def test_padding_has_no_effect():
    reader, ids, plans = tiny_comet(), random_ids(2, 50), [[16, 16, 2], [9]]
    before = text_states(reader, chunked_text(ids, plans))
    ids[0, 34:], ids[1, 9:] = 1, 7
    assert all(torch.equal(one, other) for one, other in zip(before, text_states(reader, chunked_text(ids, plans))))


# ---- packed texts ----

LENGTHS = [[20, 7, 33], [40, 3]]


def packed_states(reader, ids, shared):
    return text_states(reader, reader.pack_texts(ids, LENGTHS, shared))


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_texts_equal_the_texts_alone(backend):
    reader, ids = tiny_comet(f"compressor.backend={backend}"), random_ids(2, 60)
    actual = packed_states(reader, ids, False)
    nll = reader.nll(reader.pack_texts(ids, LENGTHS))
    for row, lengths in enumerate(LENGTHS):
        parts, total = ids[row].split([*lengths, 60 - sum(lengths)]), 0
        for states, part in zip(actual[row].split(lengths), parts):
            plan = [min(C, len(part) - start) for start in range(0, len(part), C)]
            expected = expected_states(reader, part, plan)
            torch.testing.assert_close(states, expected, atol=1e-10, rtol=1e-10)
            total = total + summed_nll(logits_of(reader, expected)[:-1], part[1:])
        torch.testing.assert_close(nll[row], total, atol=1e-8, rtol=1e-10)


def test_no_gradient_crosses_the_border_between_packed_texts():
    reader, ids = tiny_comet(), with_unique_token(random_ids(2, 60), 2)
    states = packed_states(reader, ids, False)
    assert gradient_of_unique_token(reader, states[0][:20]) > 0
    assert (
        gradient_of_unique_token(reader, states[0][20:]) == 0 and gradient_of_unique_token(reader, states[1][40:]) == 0
    )
    assert gradient_of_unique_token(reader, packed_states(reader, ids, True)[0][20:]) > 0


def test_a_shared_row_is_one_text_whose_texts_first_tokens_are_not_supervised():
    reader, ids = tiny_comet(), random_ids(2, 60)
    text = reader.pack_texts(ids, LENGTHS, shared=True)
    for row, lengths in enumerate(LENGTHS):
        plan = [min(C, sum(lengths) - start) for start in range(0, sum(lengths), C)]
        own = ids[row, : sum(lengths)]
        logits = logits_of(reader, expected_states(reader, own, plan))
        firsts = {0, *torch.tensor(lengths).cumsum(0).tolist()}
        targets = [at for at in range(1, len(own)) if at not in firsts]
        expected = summed_nll(logits[[at - 1 for at in targets]], own[targets])
        torch.testing.assert_close(reader.nll(text)[row], expected, atol=1e-8, rtol=1e-10)
    alone = reader.nll(reader.pack_texts(ids, LENGTHS))
    assert (alone - reader.nll(text)).abs().min() > 1e-3


def test_packed_rows_with_different_numbers_of_texts():
    """Steps in which one row starts a text, another continues one and a third has not started."""
    reader, ids = tiny_comet(), random_ids(3, 40)
    plans = [[[3], [2], [4], [16, 5]], [[16, 16, 8]], [[7]]]
    supervised = torch.zeros_like(ids, dtype=torch.bool)
    actual = text_states(reader, ChunkedText(ids, supervised, align_steps(plans), [S] * 3))
    for row, texts in enumerate(plans):
        at = 0
        for sizes in texts:
            expected = expected_states(reader, ids[row, at : at + sum(sizes)], sizes)
            torch.testing.assert_close(actual[row][at : at + sum(sizes)], expected, atol=1e-10, rtol=1e-10)
            at += sum(sizes)
