"""comet.pipeline.transfer and .messages without a second process: layout, order of receives, the local transfer."""

import pytest
import torch

from breviary.training.pipeline import describe_pipelines, init_pipeline_group
from comet.memory import LayerState
from comet.pipeline.messages import POSTED, Inbox, MessageLayout
from comet.pipeline.transfer import LocalTransport

B, G, T, D = 2, 3, 5, 4
DTYPES = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def message_layout(dtype, slots=G, queue=T):
    return MessageLayout(B, slots, queue, D, dtype, torch.device("cpu"))


@pytest.mark.parametrize("slots, queue", [(G, T), (0, T), (G, 0)])
@pytest.mark.parametrize("dtype, state_dtype", DTYPES.items())
def test_a_message_is_exact(dtype, state_dtype, slots, queue):
    state, entries = torch.randn(B, slots, D).to(state_dtype), torch.randn(B, queue, D).to(dtype)
    header = [2**40, 7, 3, 1]
    layout = message_layout(dtype, slots, queue)
    message = layout.pack(header, state, entries.mT.contiguous().mT)  # with any memory layout
    assert message.numel() == 40 + B * D * (slots * state_dtype.itemsize + queue * dtype.itemsize)
    actual = layout.views(message.clone())
    assert actual[0].tolist() == [*header, 1] and torch.equal(actual[1], state) and torch.equal(actual[2], entries)


def test_another_shape_or_dtype_fails():
    with pytest.raises(AssertionError, match="float64"):
        message_layout(torch.float32).pack([0] * 4, torch.zeros(B, G, D, dtype=torch.float64), torch.zeros(B, T, D))
    with pytest.raises(AssertionError, match=r"\[2, 4, 4\]"):
        message_layout(torch.float32).pack([0] * 4, torch.zeros(B, G, D), torch.zeros(B, T - 1, D))


class Handle:
    """A handle of a receive that logs the wait."""

    def __init__(self, log, task):
        self.log, self.task = log, task

    def wait(self):
        self.log.append(("waited", self.task))


def inbox_of(tasks):
    log = []

    def post(task):
        log.append(("posted", task))
        return Handle(log, task), torch.tensor(task)

    return Inbox(tasks), post, log


def test_the_next_receive_is_posted_before_the_due_one_is_waited_for():
    tasks = [(1, 0), (1, 1), (1, 2)]
    inbox, post, log = inbox_of(tasks)
    inbox.post_next(post)
    for task in tasks:
        assert tuple(inbox.wait(task, post).tolist()) == task
        assert sum(event == "posted" for event, _ in log) == min(tasks.index(task) + POSTED, 3)
        assert log[-1] == ("waited", task)
    assert [task for event, task in log if event == "posted"] == tasks
    inbox.post_next(post)  # no message is due
    assert len(log) == 6


def test_messages_can_be_waited_for_in_any_order():
    tasks = [(1, layer) for layer in range(4)]
    inbox, post, log = inbox_of(tasks)
    for task in [tasks[2], tasks[0], tasks[3], tasks[1]]:
        assert tuple(inbox.wait(task, post).tolist()) == task
    assert [task for event, task in log if event == "posted"] == tasks
    with pytest.raises(AssertionError, match=r"no message is due for \(1, 0\)"):
        inbox.wait(tasks[0], post)


def test_a_local_transfer_hands_over_the_same_object():
    transfer = LocalTransport().start_text([0, 0], [], 1, {})
    state, states = LayerState(torch.zeros(B, G, D), torch.zeros(B, T, D)), torch.ones(1)
    assert transfer.receive(0, 0) is None
    assert transfer.send(1, 0, states, state) is states
    assert transfer.receive(1, 0) is state and transfer.receive(1, 0) is None
    assert transfer.attach_backward(states, []) is states


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
