"""Slots per context: fixed ratios, random ratios, a number of slots, and error messages for invalid settings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from breviary.config.build import ReaderSpec
from breviary.contract import Example, Tokens
from breviary.memory.budget import Budget, check_budget, max_context_for_slots
from breviary.memory.merging import slot_count


def settings_of(ratio=4, slots=None, ratio_choices=None, ratio_draw="step"):
    return {"ratio": ratio, "slots": slots, "ratio_choices": ratio_choices, "ratio_draw": ratio_draw}


def rows_of(lengths):
    """ids and mask (B, T) of rows with the given numbers of tokens; all ids differ."""
    mask = torch.arange(max([*lengths, 1])) < torch.tensor(lengths)[:, None]
    return torch.arange(mask.numel()).view(mask.shape) * mask, mask


def test_a_ratio_applies_to_every_row():
    budget = Budget(4)
    assert budget.requested_ratio(True) == budget.requested_ratio(False) == 4
    assert budget.ratio_per_row(*rows_of([1, 100]), False) == 4
    assert budget.ratio_per_segment(torch.ones(2, 3, 5), torch.ones(2, 3, 5, dtype=torch.bool), False) == 4
    assert [budget.max_slots(tokens, False) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5), st.integers(1, 200))
def test_slots_are_never_exceeded_and_the_ratio_is_the_smallest_that_fits(lengths, slots):
    budget = Budget(None, slots)
    ratios, lengths = budget.ratio_per_row(*rows_of(lengths), True), torch.tensor(lengths)
    used = -(-lengths // ratios)
    assert (ratios >= 1).all() and (used <= slots).all()
    smaller = (ratios - 1).clamp(min=1)
    assert ((-(-lengths // smaller) > slots) | (ratios == 1)).all()
    assert int(used.max()) <= budget.max_slots(int(lengths.max()), True)
    assert budget.requested_ratio(True) is None


def test_segments_have_the_ratio_of_their_context():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0] = True
    mask[1, 0, :2] = True
    assert Budget(None, 2).ratio_per_segment(mask.long(), mask, False).tolist() == [6, 6, 6, 1, 1, 1]


def test_random_ratios_are_a_function_of_seed_and_step():
    def ratios(seed, steps):
        budget, drawn = Budget(2, None, [4, 8, 16]), []
        for step in steps:
            budget.begin_step(step, seed)
            drawn.append(budget.requested_ratio(True))
        return drawn

    whole = ratios(1, range(40))
    assert set(whole) == {4, 8, 16}
    assert whole[20:] == ratios(1, range(20, 40))  # independent of earlier draws
    assert whole != ratios(2, range(40))


def test_evaluation_uses_the_fixed_ratio():
    budget = Budget(2, None, [8])
    assert budget.requested_ratio(True) == 2  # before the first step
    budget.begin_step(0, 0)
    assert budget.requested_ratio(True) == 8 and budget.requested_ratio(False) == 2
    assert budget.ratio_per_row(*rows_of([9]), True) == 8 and budget.ratio_per_row(*rows_of([9]), False) == 2
    assert (budget.max_slots(16, True), budget.max_slots(16, False)) == (2, 8)


def test_a_ratio_can_be_drawn_for_every_context():
    """From seed, step and the context's own tokens, independent of batch-mates and padding."""
    budget = Budget(2, None, [4, 8], ratio_draw="sample")
    ids, mask = rows_of([5, 9, 7] * 20)
    assert budget.ratio_per_row(ids, mask, True) == 2  # before the first step
    drawn = []
    for step, seed in ((0, 1), (1, 1), (0, 2), (0, 1)):
        budget.begin_step(step, seed)
        drawn.append(budget.ratio_per_row(ids, mask, True))
        wider = torch.nn.functional.pad(ids, (0, 3), value=99), torch.nn.functional.pad(mask, (0, 3))
        assert torch.equal(budget.ratio_per_row(*(x[7:8] for x in wider), True), drawn[-1][7:8])
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert set(drawn[0].tolist()) == {4, 8} and 15 < (drawn[0] == 4).sum() < 45
    assert budget.requested_ratio(True) is None
    assert budget.requested_ratio(False) == 2 == budget.ratio_per_row(ids, mask, False)
    assert (budget.min_ratio(True), budget.max_slots(16, True), budget.max_slots(16, False)) == (4, 4, 8)
    assert torch.equal(budget.ratio_per_segment(ids[:, None], mask[:, None], True), drawn[3])


@pytest.mark.parametrize(
    "settings", [settings_of(), settings_of(None, 64), settings_of(4, None, [2, 4]), settings_of(8.0)]
)
def test_valid_settings_have_no_problems(settings):
    assert check_budget(settings) == []


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (settings_of(None, None), ["ratio"]),
        (settings_of(4, 64), ["ratio"]),
        (settings_of(0), ["ratio"]),
        (settings_of(2.5), ["ratio"]),
        (settings_of(float("inf")), ["ratio"]),
        (settings_of(float("nan")), ["ratio"]),
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
def test_problems_name_the_invalid_keys(settings, keys):
    problems = check_budget(settings)
    assert [problem.split("compressor.")[1].split("=")[0].split(" ")[0] for problem in problems] == keys


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


def slots_of(tokens, segment, ratio, slots):
    """The number of slots that the budget yields for a context in segments, computed with its tensors."""
    lengths = [min(segment, tokens - start) for start in range(0, tokens, segment)] or [0]
    mask = (torch.arange(segment) < torch.tensor(lengths)[:, None])[None]
    ratios = Budget(ratio, slots).ratio_per_segment(mask.long(), mask, training=False)
    return int(slot_count(mask.sum(-1).flatten(), ratios).sum())


@pytest.mark.parametrize("segment", [1, 3, 7, 10])
@pytest.mark.parametrize("ratio, slots", [(1, None), (2, None), (4, None), (9, None), (None, 1), (None, 4), (None, 6)])
def test_the_longest_context_in_segments_is_exact(segment, ratio, slots):
    """Every segment rounds up by itself. The longest context and all shorter ones fit, one more token does not."""
    settings = {**settings_of(ratio, slots), "segment_size": segment}
    for room in (0, 1, 2, 5, 8, 13):
        longest = max_context_for_slots(settings, room, segment)
        if slots is not None and slots > room:
            assert longest == 0  # as for one segment
            continue
        assert all(slots_of(tokens, segment, ratio, slots) <= room for tokens in range(longest + 1)), (room, longest)
        assert slots_of(longest + 1, segment, ratio, slots) > room, (room, longest)


@pytest.mark.parametrize("name", ["comi", "mean_pool"])
@pytest.mark.parametrize("budget", [["compressor.ratio=4"], ["compressor.ratio=null", "compressor.slots=5"]])
def test_the_longest_context_of_a_reader_fits(build, compose, collate, name, budget):
    """At the input join, with 7 positions left for slots; groups of 1 to 4 tokens in segments of 6."""
    overrides = [f"compressor={name}", "compressor.join=input", "compressor.segment_size=6", *budget]
    overrides += ["compressor.coarse=false"] if name == "comi" else []
    spec = ReaderSpec.of(compose(overrides))
    longest = spec.compressor.longest_context(spec.settings, 207, 200)
    reader = build([*overrides, "decoder.train=frozen"]).eval()
    context = " ".join(["red"] * 60)
    examples = [Example("a", context, "Which?", ("tin",))]
    ids = collate(examples).context.ids
    used = []
    for tokens in (longest, longest + 1):
        assert ids.shape[1] >= tokens
        batch = collate(examples)
        batch.context = Tokens(ids[:, :tokens], torch.ones(1, tokens, dtype=torch.bool))
        used.append(int(reader.footprint(batch).memory_slots))
    assert used[0] <= 7 < used[1], (longest, used)
