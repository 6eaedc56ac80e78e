"""comet.pipeline.transfer without a second process: messages, the order of receiving, and what stays in one process."""

import pytest
import torch

from breviary.training.pipeline import init_pipeline_group, describe_pipelines
from comet.pipeline.transfer import AHEAD, Crossing, Handoff, Inbox
from comet.memory import LayerState

B, G, T, D = 2, 3, 5, 4
TYPES = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def crossing(dtype, slots=G, queue=T):
    return Crossing(B, slots, queue, D, dtype, torch.device("cpu"))


@pytest.mark.parametrize("slots, queue", [(G, T), (0, T), (G, 0)])
@pytest.mark.parametrize("dtype, carried_dtype", TYPES.items())
def test_a_message_loses_nothing(dtype, carried_dtype, slots, queue):
    carried, entries = torch.randn(B, slots, D).to(carried_dtype), torch.randn(B, queue, D).to(dtype)
    header = [2**40, 7, 3, 1]
    sizes = crossing(dtype, slots, queue)
    message = sizes.packed(header, carried, entries.mT.contiguous().mT)  # as it lies in memory does not matter
    assert message.numel() == 40 + B * D * (slots * carried_dtype.itemsize + queue * dtype.itemsize)
    found = sizes.views(message.clone())
    assert found[0].tolist() == [*header, 1] and torch.equal(found[1], carried) and torch.equal(found[2], entries)


def test_another_size_or_type_is_our_own_mistake():
    with pytest.raises(AssertionError, match="float64"):
        crossing(torch.float32).packed([0] * 4, torch.zeros(B, G, D, dtype=torch.float64), torch.zeros(B, T, D))
    with pytest.raises(AssertionError, match=r"\[2, 4, 4\]"):
        crossing(torch.float32).packed([0] * 4, torch.zeros(B, G, D), torch.zeros(B, T - 1, D))


class Waited:
    """Something to wait for, that notes it."""

    def __init__(self, log, cell):
        self.log, self.cell = log, cell

    def wait(self):
        self.log.append(("waited", self.cell))


def inbox_of(cells):
    log = []

    def expect(cell):
        log.append(("room", cell))
        return Waited(log, cell), torch.tensor(cell)

    return Inbox(cells), expect, log


def test_room_for_the_next_message_is_made_before_one_is_waited_for():
    cells = [(1, 0), (1, 1), (1, 2)]
    inbox, expect, log = inbox_of(cells)
    inbox.make_room(expect)
    for cell in cells:
        assert tuple(inbox.wait(cell, expect).tolist()) == cell
        assert sum(what == "room" for what, _ in log) == min(cells.index(cell) + AHEAD, 3)
        assert log[-1] == ("waited", cell)
    assert [cell for what, cell in log if what == "room"] == cells
    inbox.make_room(expect)  # nothing more is due
    assert len(log) == 6


def test_messages_may_be_asked_for_in_any_order():
    cells = [(1, layer) for layer in range(4)]
    inbox, expect, log = inbox_of(cells)
    for cell in [cells[2], cells[0], cells[3], cells[1]]:
        assert tuple(inbox.wait(cell, expect).tolist()) == cell
    assert [cell for what, cell in log if what == "room"] == cells
    with pytest.raises(AssertionError, match=r"no message is due for \(1, 0\)"):
        inbox.wait(cells[0], expect)


def test_within_one_process_memory_is_passed_as_it_is():
    passage, state, states = (
        Handoff().open([0, 0], [], 1, {}),
        LayerState(torch.zeros(B, G, D), torch.zeros(B, T, D)),
        torch.ones(1),
    )
    assert passage.take(0, 0) is None
    assert passage.give(1, 0, states, state) is states
    assert passage.take(1, 0) is state and passage.take(1, 0) is None
    assert passage.closed(states, []) is states


def test_processes_must_divide_into_pipelines():
    with pytest.raises(
        ValueError,
        match=r"engine.ranks=2: the 1 processes do not divide into pipelines of so many; e.g. "
        r"engine.ranks=1",
    ):
        init_pipeline_group(2)
    alone = init_pipeline_group(1)
    assert alone.reports_counts and list(alone.members) == [0]


def test_neighbours_are_a_pipeline():
    assert describe_pipelines(4, 2) == "pipeline 0: ranks 0, 1\npipeline 1: ranks 2, 3"
