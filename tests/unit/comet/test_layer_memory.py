"""comet.memory: gate, queue and adapters (spec 6: 4, 5, 6, 13). G slots of width D."""

import hypothesis.strategies as st
import pytest
import torch
from comet_helpers import B, C, G, S, chunked_text, random_ids, text_states, tiny_comet
from hypothesis import given, settings

from comet.memory import STD, Adapter, LayerMemory, LayerState, MemoryState, Norm, newest_columns

D = 12
few = settings(derandomize=True, deadline=None, max_examples=100)


def states(*shape, seed=0):
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def memory(**keywords):
    torch.manual_seed(0)
    return LayerMemory(D, **keywords).double()


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


# ---- gate ----


def after_chunks(net, count):
    """S after each of `count` chunks of one text."""
    state, history = torch.zeros(1, G, D, dtype=torch.float64), []
    for number in range(count):
        state = net.update_global(state, states(1, G, seed=number), flags(number > 0), flags(True))
        history.append(state)
    return history


def test_a_large_gate_bias_preserves_the_first_state():
    history = after_chunks(memory(gate_bias=60.0), 10)
    close(history[9], history[0])


@pytest.mark.parametrize("net", [memory(gate_bias=-60.0), memory(gated=False)], ids=["bias", "no gate"])
def test_without_retention_the_state_is_the_norm_of_the_readouts(net):
    for number, state in enumerate(after_chunks(net, 4)):
        close(state, net.global_norm(states(1, G, seed=number)))


def test_the_first_chunk_ignores_the_gate():
    for bias in (-60.0, 0.0, 60.0):
        net = memory(gate_bias=bias)
        state = net.update_global(states(1, G, seed=5), states(1, G), flags(False), flags(True))
        close(state, net.global_norm(states(1, G)))


def test_the_state_is_a_convex_combination_with_one_gate_per_slot():
    net, old, new = memory(), states(2, G, seed=1), states(2, G, seed=2)
    candidate, mixed = net.global_norm(new), net.update_global(old, new, flags(True, True), flags(True, True))
    logits = torch.cat([candidate, old], -1) @ net.gate.weight[0]  # the candidate first, as published
    close(mixed, torch.lerp(candidate, old, logits.sigmoid()[..., None]))
    gate = (mixed - candidate) / (old - candidate)
    close(gate, gate[..., :1].expand_as(gate), 1e-6)
    assert gate.min() > 0 and gate.max() < 1 and gate.std() > 0.005


def test_only_rows_with_an_update_change():
    net, old = memory(), states(3, G, seed=1)
    actual = net.update_global(old, states(3, G), flags(True, True, False), flags(True, False, False))
    assert torch.equal(actual[1:], old[1:]) and not torch.allclose(actual[0], old[0])


# ---- queue ----


def test_the_newest_slots_remain_in_order_of_age():
    mask, entries = flags(False, True, True)[None], flags(True, False, True)[None]
    columns, valid = newest_columns(mask, entries, 3)
    assert columns.tolist() == [[2, 3, 5]] and valid.all()
    columns, valid = newest_columns(mask, entries, 9)
    assert columns[valid].tolist() == [1, 2, 3, 5] and valid.tolist() == [[False] * 2 + [True] * 4]
    assert newest_columns(mask, entries, 0)[0].shape == (1, 0)


@few
@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=5, max_size=5), min_size=1, max_size=4), budget=st.integers(0, 9)
)
def test_a_queue_holds_the_last_valid_slots_of_each_row(rows, budget):
    """Rows add different numbers of slots each time; a slot is tagged with its age."""
    queue, mask = torch.zeros(len(rows), 0).long(), torch.zeros(len(rows), 0, dtype=torch.bool)
    added = [[] for _ in rows]
    for time in range(5):
        real = torch.arange(5) < torch.tensor([row[time] for row in rows])[:, None]
        tags = 10 * time + torch.arange(5) + 1
        columns, mask = newest_columns(mask, real, budget)
        queue = torch.cat([queue, tags.where(real, -1)], 1).gather(1, columns)
        assert queue.shape == mask.shape and queue.shape[1] <= budget
        for own, row, slots, valid in zip(added, rows, queue, mask):
            own += tags[: row[time]].tolist()
            assert slots[valid].tolist() == own[max(len(own) - budget, 0) :]
            assert (slots[valid] > 0).all()


def test_padding_never_becomes_a_memory_slot():
    """Chunks of any size, the first one short: every slot is valid (the published code fails here)."""
    reader, slot_counts = tiny_comet(), []
    plans = [[3, 16, 1, 16, 9, 2], [16, 16], [1, 2, 1]]
    run = reader.memory.run

    def watched(stack, embeds, layout, memory, *rest):
        slot_counts.append(memory.slot_mask.sum(1).tolist())
        return run(stack, embeds, layout, memory, *rest)

    reader.memory.run = watched
    list(reader.forward_chunks(chunked_text(random_ids(3, 47), plans)))
    expected = [[0] * 3 for _ in range(6)]
    for row, plan in enumerate(plans):
        for number in range(1, len(plan)):
            slots = sum(-(-size // S) for size in plan[:number])
            expected[6 - len(plan) + number][row] = G + min(B, slots)
    assert slot_counts == expected


# ---- norms, adapters, weights ----


def test_zero_adapters_are_the_identity():
    net, state, outputs = memory(adapter_init="zero"), states(2, G), states(2, 4, seed=3)
    assert torch.equal(net.slots(LayerState(state, outputs)), torch.cat([state, outputs], 1))
    assert torch.equal(net.queue_entries(outputs), net.temporary_norm(outputs))
    assert not torch.allclose(memory().queue_entries(outputs), memory().temporary_norm(outputs))


def test_an_adapter_is_a_residual_low_rank_product():
    net, x = Adapter(D, 3, "normal").double(), states(2, 5)
    close(net(x), x + x @ net.down.weight.T @ net.up.weight.T)


def test_the_norm_is_a_root_mean_square_norm():
    norm, x = Norm(D, 0.5).double(), states(2, 5)
    close(norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 0.5).sqrt())


@pytest.mark.parametrize("quirks, eps", [("false", (1e-6, 1e-6)), ("true", (torch.finfo(torch.float32).eps, 1e-12))])
def test_the_published_epsilons_are_a_quirk(quirks, eps):
    for layer in tiny_comet(f"compressor.quirks={quirks}").memory.layers:
        assert (layer.global_norm.eps, layer.temporary_norm.eps) == eps


def test_number_of_weights():
    """36 D per layer at rank 8, and 1 + G token embeddings."""
    assert sum(weight.numel() for weight in LayerMemory(D).parameters()) == 36 * D
    reader = tiny_comet(layers=3)
    width = reader.decoder.width
    assert sum(weight.numel() for weight in reader.memory.parameters()) == 3 * 36 * width + (1 + G) * width
    assert sum(weight.numel() for weight in LayerMemory(D, gated=False).parameters()) == 34 * D


def test_new_weights_are_initialised_as_published():
    net = LayerMemory(400)
    for linear in (net.gate, net.global_adapter.down, net.global_adapter.up, net.temporary_adapter.up):
        assert linear.weight.std().item() == pytest.approx(STD, rel=0.1)
    assert (net.global_norm.weight == 1).all() and (net.temporary_norm.weight == 1).all()


def test_half_precision_and_autocast_do_not_lower_precision():
    """float32 states: equal bits under autocast. bf16 states: only the queue entries are rounded."""
    net, state, rows = memory().float(), states(2, G).float(), states(2, G, seed=1).float()
    plain = (
        net.update_global(state, rows, flags(True, True), flags(True, True)),
        net.queue_entries(rows),
        net.global_adapter(state),
    )
    with torch.autocast("cpu", torch.bfloat16):
        under = (
            net.update_global(state, rows, flags(True, True), flags(True, True)),
            net.queue_entries(rows),
            net.global_adapter(state),
        )
    for one, other in zip(plain, under):
        assert torch.equal(one, other)
    half = rows.bfloat16()
    actual = net.update_global(state, half, flags(True, True), flags(True, True))
    assert actual.dtype == torch.float32
    assert torch.equal(actual, net.update_global(state, half.float(), flags(True, True), flags(True, True)))
    assert torch.equal(net.queue_entries(half), net.queue_entries(half.float()).bfloat16())


# ---- state ----


@pytest.mark.parametrize("slots, budget", [(G, B), (0, B), (G, 0), (0, 0)])
def test_the_state_has_the_same_size_after_any_number_of_chunks(slots, budget):
    reader, sizes = tiny_comet(f"compressor.global_slots={slots}", f"compressor.queue_budget={budget}"), []
    run = reader.memory.run

    def watched(*args):
        result = run(*args)
        sizes.append({(layer.global_state.shape[1], layer.queue.shape[1]) for layer in result[1].layers})
        return result

    reader.memory.run = watched
    text_states(reader, chunked_text(random_ids(1, 12 * C), [[C] * 12]))
    assert sizes[0] == {(slots, min(4, budget))} and sizes[1:-1] == [{(slots, budget)}] * 10


def test_a_reset_row_has_no_valid_slots():
    layer = LayerState(states(2, G), states(2, 4))
    full = MemoryState((layer,), flags(True, True), torch.ones(2, 4, dtype=torch.bool))
    actual = full.reset_where(flags(True, False))
    assert actual.slot_mask.sum(1).tolist() == [0, G + 4] and full.slot_mask.all()
    assert full.bytes == 8 * D * 2 * (G + 4)


def test_gradients_are_detached_in_the_selected_rows_only():
    state, queue = states(2, G).requires_grad_(), states(2, 4).requires_grad_()
    full = MemoryState((LayerState(state, queue),), flags(True, True), torch.ones(2, 4, dtype=torch.bool))
    [layer] = full.detach_where(flags(True, False)).layers
    assert torch.equal(layer.global_state, state) and torch.equal(layer.queue, queue)
    for leaf, grad in zip(
        (state, queue), torch.autograd.grad(layer.global_state.sum() + layer.queue.sum(), (state, queue))
    ):
        assert not grad[0].any() and (grad[1] == 1).all() and leaf.shape == grad.shape
