"""Slots per context: asked ratios, drawn ratios, a number of slots, and what is told of wrong ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from breviary.memory.budget import Budget, check_budget, max_context_for_slots


def settings_of(ratio=4, slots=None, ratio_choices=None, ratio_draw="step"):
    return {"ratio": ratio, "slots": slots, "ratio_choices": ratio_choices, "ratio_draw": ratio_draw}


def rows_of(lengths):
    """ids and mask (B, T) of rows of so many tokens, no two alike."""
    mask = torch.arange(max([*lengths, 1])) < torch.tensor(lengths)[:, None]
    return torch.arange(mask.numel()).view(mask.shape) * mask, mask


def test_a_ratio_holds_for_every_row():
    budget = Budget(4)
    assert budget.asked(True) == budget.asked(False) == 4
    assert budget.row_ratios(*rows_of([1, 100]), False) == 4
    assert budget.segment_ratios(torch.ones(2, 3, 5), torch.ones(2, 3, 5, dtype=torch.bool), False) == 4
    assert [budget.width(tokens, False) for tokens in (0, 1, 4, 5)] == [1, 1, 1, 2]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5), st.integers(1, 200))
def test_a_number_of_slots_is_never_exceeded_and_used_as_far_as_whole_ratios_allow(lengths, slots):
    budget = Budget(None, slots)
    ratios, lengths = budget.row_ratios(*rows_of(lengths), True), torch.tensor(lengths)
    used = -(-lengths // ratios)
    assert (ratios >= 1).all() and (used <= slots).all()
    smaller = (ratios - 1).clamp(min=1)
    assert ((-(-lengths // smaller) > slots) | (ratios == 1)).all()
    assert int(used.max()) <= budget.width(int(lengths.max()), True)
    assert budget.asked(True) is None


def test_segments_share_their_context_s_ratio():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0] = True
    mask[1, 0, :2] = True
    assert Budget(None, 2).segment_ratios(mask.long(), mask, False).tolist() == [6, 6, 6, 1, 1, 1]


def test_draws_are_a_function_of_seed_and_step():
    def draws(seed, steps):
        budget, found = Budget(2, None, [4, 8, 16]), []
        for step in steps:
            budget.begin_step(step, seed)
            found.append(budget.asked(True))
        return found

    whole = draws(1, range(40))
    assert set(whole) == {4, 8, 16}
    assert whole[20:] == draws(1, range(20, 40))  # whatever was drawn before
    assert whole != draws(2, range(40))


def test_drawn_ratios_are_not_for_evaluation():
    budget = Budget(2, None, [8])
    assert budget.asked(True) == 2  # before the first step
    budget.begin_step(0, 0)
    assert budget.asked(True) == 8 and budget.asked(False) == 2
    assert budget.row_ratios(*rows_of([9]), True) == 8 and budget.row_ratios(*rows_of([9]), False) == 2
    assert (budget.width(16, True), budget.width(16, False)) == (2, 8)


def test_a_ratio_can_be_drawn_for_every_context():
    """From seed, step and the context's own tokens: neither batch-mates nor padding play a part."""
    budget = Budget(2, None, [4, 8], ratio_draw="sample")
    ids, mask = rows_of([5, 9, 7] * 20)
    assert budget.row_ratios(ids, mask, True) == 2  # before the first step
    drawn = []
    for step, seed in ((0, 1), (1, 1), (0, 2), (0, 1)):
        budget.begin_step(step, seed)
        drawn.append(budget.row_ratios(ids, mask, True))
        wider = torch.nn.functional.pad(ids, (0, 3), value=99), torch.nn.functional.pad(mask, (0, 3))
        assert torch.equal(budget.row_ratios(*(x[7:8] for x in wider), True), drawn[-1][7:8])
    assert (
        torch.equal(drawn[0], drawn[3]) and not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    )
    assert set(drawn[0].tolist()) == {4, 8} and 15 < (drawn[0] == 4).sum() < 45
    assert budget.asked(True) is None and budget.asked(False) == 2 == budget.row_ratios(ids, mask, False)
    assert (budget.least(True), budget.width(16, True), budget.width(16, False)) == (4, 4, 8)
    assert torch.equal(budget.segment_ratios(ids[:, None], mask[:, None], True), drawn[3])


@pytest.mark.parametrize(
    "settings", [settings_of(), settings_of(None, 64), settings_of(4, None, [2, 4]), settings_of(8.0)]
)
def test_right_settings(settings):
    assert check_budget(settings) == []


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (settings_of(None, None), ["ratio"]),
        (settings_of(4, 64), ["ratio"]),
        (settings_of(0), ["ratio"]),
        (settings_of(2.5), ["ratio"]),
        (settings_of(True), ["ratio"]),
        (settings_of("4"), ["ratio"]),
        (settings_of(None, 0), ["slots"]),
        (settings_of(4, None, [2, 0]), ["ratio_choices"]),
        (settings_of(4, None, [2, 4], "row"), ["ratio_draw"]),
        (settings_of(4, None, None, "sample"), ["ratio_draw"]),
        (settings_of(None, 8, [2, 4]), ["ratio_choices"]),
        (settings_of(-1, None, [0.5]), ["ratio", "ratio_choices"]),
    ],
)
def test_wrong_settings_are_told_with_their_keys(settings, keys):
    found = check_budget(settings)
    assert [sentence.split("compressor.")[1].split("=")[0].split(" ")[0] for sentence in found] == keys


@pytest.mark.parametrize(
    ("settings", "slots", "tokens"),
    [
        (settings_of(4), 10, 40),
        (settings_of(4, None, [8, 2]), 10, 20),
        (settings_of(None, 8), 10, None),
        (settings_of(None, 11), 10, 0),
    ],
)
def test_the_longest_context_that_fits(settings, slots, tokens):
    assert max_context_for_slots(settings, slots) == tokens
