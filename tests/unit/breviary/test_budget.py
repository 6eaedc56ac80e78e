"""Slots per context: asked ratios, drawn ratios, a number of slots, and what is told of wrong ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from breviary.budget import Budget, budget_problems, fitting_context


def settings_of(ratio=4, slots=None, ratio_choices=None):
    return {"ratio": ratio, "slots": slots, "ratio_choices": ratio_choices}


def test_a_ratio_holds_for_every_row():
    budget = Budget(4)
    assert budget.asked(True) == budget.asked(False) == 4
    assert budget.row_ratios(torch.tensor([1, 100]), False) == 4
    assert budget.segment_ratios(torch.ones(2, 3, 5, dtype=torch.bool), False) == 4
    assert [budget.width(tokens, False) for tokens in (0, 1, 4, 5)] == [1, 1, 1, 2]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5), st.integers(1, 200))
def test_a_number_of_slots_is_never_exceeded_and_used_as_far_as_whole_ratios_allow(lengths, slots):
    lengths = torch.tensor(lengths)
    budget = Budget(None, slots)
    ratios = budget.row_ratios(lengths, True)
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
    assert Budget(None, 2).segment_ratios(mask, False).tolist() == [6, 6, 6, 1, 1, 1]


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
    assert budget.row_ratios(torch.tensor([9]), True) == 8 and budget.row_ratios(torch.tensor([9]), False) == 2
    assert (budget.width(16, True), budget.width(16, False)) == (2, 8)


@pytest.mark.parametrize("settings", [settings_of(), settings_of(None, 64), settings_of(4, None, [2, 4]),
                                      settings_of(8.0)])
def test_right_settings(settings):
    assert budget_problems(settings) == []


@pytest.mark.parametrize(("settings", "keys"), [
    (settings_of(None, None), ["ratio"]), (settings_of(4, 64), ["ratio"]), (settings_of(0), ["ratio"]),
    (settings_of(2.5), ["ratio"]), (settings_of(True), ["ratio"]), (settings_of("4"), ["ratio"]),
    (settings_of(None, 0), ["slots"]), (settings_of(4, None, [2, 0]), ["ratio_choices"]),
    (settings_of(None, 8, [2, 4]), ["ratio_choices"]), (settings_of(-1, None, [0.5]), ["ratio", "ratio_choices"]),
])
def test_wrong_settings_are_told_with_their_keys(settings, keys):
    found = budget_problems(settings)
    assert [sentence.split("compressor.")[1].split("=")[0].split(" ")[0] for sentence in found] == keys


@pytest.mark.parametrize(("settings", "slots", "tokens"), [
    (settings_of(4), 10, 40), (settings_of(4, None, [8, 2]), 10, 20), (settings_of(None, 8), 10, None),
    (settings_of(None, 11), 10, 0),
])
def test_the_longest_context_that_fits(settings, slots, tokens):
    assert fitting_context(settings, slots) == tokens
