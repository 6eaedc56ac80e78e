"""engine.ranks and engine.schedule: what is refused, and which batches the ranks of a pipeline get."""

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
    "words, sentence",
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
def test_one_sentence_for_each_mistake(refused, words, sentence):
    assert refused(training, *SMALL, *words) == [sentence]


def test_zero_3_is_refused_with_both_reasons(refused):
    found = refused(training, *SMALL, "engine=zero3", "engine.ranks=2")
    assert len(found) == 2 and "equal calls" in found[0]
    assert found[1] == (
        "engine.ranks=2: the ranks of a pipeline stand at different layers, and ZeRO's stage 3 has all processes "
        "meet at every layer to gather its weights: they would wait for each other; use engine=zero1, zero2 or "
        "pipeline"
    )


def test_gradients_that_come_at_once():
    """Values and gradients stay; no weight has one before the backward pass is through; what is not used gets zeros."""
    weights = [torch.tensor(float(number), requires_grad=True) for number in range(4)]
    other, had = torch.zeros((), requires_grad=True), []
    inner = Watched.apply(weights[3] * weights[2] + 0 * other, lambda: had.append([weight.grad for weight in weights]))
    value = deferred_gradients(
        inner * weights[2], weights, [other], lambda: had.append([weight.grad for weight in weights])
    )
    (2 * value).backward()
    assert value.item() == 12 and had == [[None] * 4] * 2
    assert [weight.grad.item() for weight in weights] == [0, 0, 24, 8] and other.grad is None


class Watched(torch.autograd.Function):
    """The same value; calls `when` on the way back."""

    @staticmethod
    def forward(ctx, value, when):
        ctx.when = when
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        ctx.when()
        return gradient, None


def test_a_compressor_that_reads_on_one_process(refused):
    assert refused(training, "compressor=mean_pool", "engine=pipeline") == [
        "engine.ranks=2: this compressor reads a batch on one process; use engine.ranks=1"
    ]


def test_a_timeout_of_no_time(refused):
    assert refused(training, *SMALL, "engine=pipeline", "engine.timeout=0") == [
        "engine.timeout=0: seconds, must be above 0, e.g. 900"
    ]


def test_neighbours_get_the_same_batches():
    """Batches go to the processes in turn: with 2 pipelines of 2 ranks, ranks 0 and 1 read what one of two processes would."""
    alone = list(StepSampler(list(range(50)), 8, 80, 0, True))
    together = RepeatBatches(StepSampler(list(range(50)), 8, 80, 0, True), 4, 2)
    indices = list(together)
    assert len(indices) == len(together) == 160
    by_four = [indices[at : at + 4] for at in range(0, 160, 4)]
    wanted = [alone[at : at + 4] for at in range(0, 80, 4)]
    for rank in range(4):
        assert by_four[rank::4] == wanted[rank // 2 :: 2]


def test_on_one_process_each_nothing_is_repeated():
    sampler = StepSampler(list(range(9)), 4, 12, 0, False)
    assert list(RepeatBatches(sampler, 4, 1)) == list(sampler)
