"""engine.ranks and engine.schedule: rejected values, deferred gradients, and the batches of a pipeline's ranks."""

import pytest
import torch

import train as training
from breviary.training.pipeline import deferred_gradients
from breviary.training.sampling import RepeatBatches, StepSampler

SMALL = [
    "compressor=comet",
    "compressor.chunk_size=16",
    "compressor.stride=4",
    "compressor.global_slots=3",
    "compressor.queue_budget=8",
]


@pytest.fixture(autouse=True)
def four_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["engine=pipeline", "engine.ranks=3"],
            "engine.ranks=3: 4 process(es) do not divide into pipelines of so many; e.g. "
            "engine.ranks=4, or torchrun --nproc_per_node 3",
        ),
        (
            ["engine=pipeline", "engine.ranks=0"],
            "engine.ranks=0: 4 process(es) do not divide into pipelines of so many; e.g. "
            "engine.ranks=4, or torchrun --nproc_per_node 1",
        ),
        (["engine=pipeline", "engine.schedule=random"], "engine.schedule=random: allowed are contiguous, cyclic"),
    ],
)
def test_each_error_has_one_message(refused, words, message):
    assert refused(training, *SMALL, *words) == [message]


def test_zero_3_is_rejected_for_two_reasons(refused):
    messages = refused(training, *SMALL, "engine=zero3", "engine.ranks=2")
    assert len(messages) == 2 and "equal module calls" in messages[0]
    assert messages[1] == (
        "engine.ranks=2: the ranks of a pipeline are at different layers, but ZeRO-3 gathers every layer's weights on "
        "all processes at once: they would deadlock; use engine=zero1, zero2 or pipeline"
    )


def test_deferred_gradients():
    """Value and gradients are unchanged; they are set after the backward pass; unused weights get zeros."""
    weights = [torch.tensor(float(number), requires_grad=True) for number in range(4)]
    other, gradients_seen = torch.zeros((), requires_grad=True), []
    inner = Watched.apply(
        weights[3] * weights[2] + 0 * other, lambda: gradients_seen.append([weight.grad for weight in weights])
    )
    value = deferred_gradients(
        inner * weights[2], weights, [other], lambda: gradients_seen.append([weight.grad for weight in weights])
    )
    (2 * value).backward()
    assert value.item() == 12 and gradients_seen == [[None] * 4] * 2
    assert [weight.grad.item() for weight in weights] == [0, 0, 24, 8] and other.grad is None


class Watched(torch.autograd.Function):
    """The identity; calls `when` in the backward pass."""

    @staticmethod
    def forward(ctx, value, when):
        ctx.when = when
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        ctx.when()
        return gradient, None


def test_pipelines_are_rejected_for_compressors_without_chunks(refused):
    assert refused(training, "compressor=mean_pool", "engine=pipeline") == [
        "engine.ranks=2: this compressor needs a batch on one process; use engine.ranks=1"
    ]


def test_a_timeout_of_zero_is_rejected(refused):
    assert refused(training, *SMALL, "engine=pipeline", "engine.timeout=0") == [
        "engine.timeout=0: seconds, must be above 0, e.g. 900"
    ]


def test_the_ranks_of_a_pipeline_get_the_same_batches():
    """Processes take batches in turn. Each of 2 pipelines of 2 ranks gets the batches of one of 2 processes."""
    alone = list(StepSampler(list(range(50)), 8, 80, 0, True))
    together = RepeatBatches(StepSampler(list(range(50)), 8, 80, 0, True), 4, 2)
    indices = list(together)
    assert len(indices) == len(together) == 160
    by_four = [indices[at : at + 4] for at in range(0, 160, 4)]
    expected = [alone[at : at + 4] for at in range(0, 80, 4)]
    for rank in range(4):
        assert by_four[rank::4] == expected[rank // 2 :: 2]


def test_repeat_batches_with_one_copy_is_the_identity():
    sampler = StepSampler(list(range(9)), 4, 12, 0, False)
    assert list(RepeatBatches(sampler, 4, 1)) == list(sampler)
