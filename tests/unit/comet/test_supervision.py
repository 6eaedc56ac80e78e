"""CoMeT on batches: supervised tokens, random plans, counts (spec 6: 10), and the training of its weights."""

import random

import pytest
import torch
from comet_helpers import B, C, G, S, expected_states, logits_of, summed_nll, tiny_comet

from breviary.contract import Example
from breviary.objectives.answer import AnswerAndCopy
from breviary.training.engines import training_arguments
from breviary.training.log import RunLog
from breviary.training.trainer import ReaderTrainer
from comet.chunked_text import align_steps, join_parts, supervise_all
from comet.chunking import MIXED, fixed
from data.collate import Collator
from tests.tiny import row_ids, tiny_reader

PARTS = ("prefix", "context", "prompt", "answer")


def batch_of(*sizes, prefix=2, prompt=3, answer=2):
    """A batch of random tokens; `sizes` of the contexts."""
    rng, items = random.Random(0), []
    for number, size in enumerate(sizes):
        lengths = dict(prefix=prefix, context=size, query=1, prompt=prompt, answer=answer)
        pieces = {name: [rng.randrange(2, 500) for _ in range(length)] for name, length in lengths.items()}
        items.append(
            {**pieces, "evidence": None, "starts": None, "ends": None, "example": Example(f"{number}", "", "", ("",))}
        )
    return Collator(0)(items)


def plans_of(text):
    """Chunk sizes of each text; several texts may share a row."""
    plans = [[] for _ in range(text.num_nlls)]
    for step in text.steps:
        for number, size in zip(step.nll_index, step.sizes):
            plans[number] += [size] if size else []
    return plans


def supervised(text):
    """For each text the supervised pairs of its chunks: [(index of the predicting token, target)]."""
    pairs, text_starts = [[] for _ in range(text.num_nlls)], {}
    for step in text.steps:
        columns, mask = text.columns_of(step)
        is_supervised = text.supervised.gather(1, columns) & mask
        text_starts |= {
            number: start
            for number, start, first, size in zip(step.nll_index, step.starts, step.is_first, step.sizes)
            if first and size
        }
        for row, column in is_supervised.nonzero().tolist():
            index, number = int(columns[row, column]), step.nll_index[row]
            pairs[number].append((index - text_starts[number], int(text.ids[row, index + 1])))
    return pairs


def expected_nll(reader, ids, sizes, stride, first):
    """Nats of the reference on the tokens of one text from index `first` on."""
    logits = logits_of(reader, expected_states(reader, ids, sizes, stride))
    return summed_nll(logits[first - 1 : -1], ids[first:])


# ---- labels (10) ----


@pytest.mark.parametrize("strategy", [*MIXED, "mixture"])
def test_supervised_pairs_are_the_shifted_labels(strategy, ragged, tokenizer):
    """The loss is the reference's for the same random chunks."""
    reader = tiny_comet(f"compressor.strategy={strategy}").train()
    for step in range(3):
        reader.begin_step(step, 0)
        text, tokens, _ = reader.chunk_batch(ragged)
        output = reader.loss(ragged)
        assert output.tokens.tolist() == tokens.tolist() == ragged.answer.lengths.tolist()
        assert int(reader.counts(ragged)["answer"]) == int(tokens.sum())
        for row, (pairs, sizes) in enumerate(zip(supervised(text), plans_of(text))):
            ids = row_ids(ragged, row, *PARTS)
            first = len(ids) - int(ragged.answer.lengths[row])
            assert pairs == [(index - 1, int(ids[index])) for index in range(first, len(ids))]
            assert pairs[-1][1] == tokenizer.eos_token_id
            expected = expected_nll(reader, ids, sizes, S, first)
            torch.testing.assert_close(output.nll[row], expected, atol=1e-8, rtol=1e-10)


@pytest.mark.parametrize("quirks", [False, True])
def test_logits_of_new_tokens_count_with_quirks_only(quirks, ragged):
    reader = tiny_comet("compressor.new_token_logits=5", f"compressor.quirks={str(quirks).lower()}").train()
    nll = reader.loss(ragged).nll
    nll.sum().backward()
    gradient = reader.memory.new_token_head.weight.grad  # zeros without quirks: every weight has a gradient
    assert gradient.any() == quirks
    with torch.no_grad():
        reader.memory.new_token_head.weight.zero_()
        logits = reader.loss(ragged).nll
    assert torch.equal(logits, nll) != quirks


def test_the_last_token_of_a_chunk_predicts_the_first_of_the_next():
    reader, batch = tiny_comet(), batch_of(11, prompt=3, answer=20)  # the answer starts a chunk
    text, tokens, _ = reader.chunk_batch(batch)
    assert plans_of(text) == [[16, 16, 4]] and tokens.tolist() == [20]
    assert [index for index, _ in supervised(text)[0]] == list(range(15, 35))
    expected = expected_nll(reader, row_ids(batch, 0, *PARTS), [16, 16, 4], S, 16)
    torch.testing.assert_close(reader.loss(batch).nll[0], expected, atol=1e-8, rtol=1e-10)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_all_tokens_but_the_first_can_be_supervised(mode, ragged):
    reader = tiny_comet("compressor.supervise=text", "compressor.strategy=random").train(mode)
    output, text = reader.loss(ragged), reader.chunk_batch(ragged).text
    lengths = [len(row_ids(ragged, row, *PARTS)) for row in range(len(ragged))]
    assert output.tokens.tolist() == [length - 1 for length in lengths]
    assert int(reader.counts(ragged)["answer"]) == sum(lengths) - len(ragged)
    for row, sizes in enumerate(plans_of(text)):
        expected = expected_nll(reader, row_ids(ragged, row, *PARTS), sizes, S, 1)
        torch.testing.assert_close(output.nll[row], expected, atol=1e-8, rtol=1e-10)


def test_a_text_s_first_token_is_never_supervised():
    """No token predicts it. Without prefix, context and prompt it is the first token of the answer."""
    reader, batch = tiny_comet(), batch_of(0, 3, prefix=0, prompt=0, answer=4)
    output = reader.loss(batch)
    assert output.tokens.tolist() == [3, 4] and int(reader.counts(batch)["answer"]) == 7
    expected = expected_nll(reader, row_ids(batch, 0, *PARTS), [4], S, 1)
    torch.testing.assert_close(output.nll[0], expected, atol=1e-8, rtol=1e-10)


def test_supervise_all_covers_every_token_after_the_first(ragged):
    layout, _ = join_parts([ragged.context, ragged.answer])
    assert supervise_all(layout).sum(1).tolist() == [n - 1 for n in layout.mask.sum(1).tolist()]


def test_rows_are_aligned_at_their_ends_and_a_text_s_last_chunk_updates_no_memory():
    steps = align_steps([[[16, 3], [5]], [[7]], [[4, 4]]])
    assert [step.sizes for step in steps] == [[16, 0, 0], [3, 0, 4], [5, 7, 4]]
    assert [step.starts for step in steps] == [[0, 0, 0], [16, 0, 0], [19, 0, 4]]
    assert [step.updates for step in steps] == [[True, False, False], [False, False, True], [False, False, False]]
    assert [step.is_first for step in steps] == [[True, False, False], [False, False, True], [True, True, False]]
    assert [step.chunk_index for step in steps] == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]


# ---- batches ----


@pytest.mark.parametrize("strategy", ["mixture", "random", "semantic"])
def test_a_batch_of_n_equals_n_of_one_in_training(strategy, ragged_examples, collate):
    """With any padding side and token: random chunks and strides depend on seed, step and example."""
    reader = tiny_comet(f"compressor.strategy={strategy}", "compressor.widest_stride=16").train()
    for step in range(3):
        reader.begin_step(step, 1)
        with torch.no_grad():
            alone = torch.cat([reader.loss(collate([example])).nll for example in ragged_examples])
            for batch in (
                collate(ragged_examples),
                collate(ragged_examples, side="left"),
                collate(ragged_examples, pad_id=7),
            ):
                torch.testing.assert_close(reader.loss(batch).nll, alone, rtol=1e-10, atol=0)


def test_a_batch_s_gradients_are_the_sum_of_its_rows(ragged_examples, collate):
    reader = tiny_comet("compressor.strategy=random").train()
    gradients = []
    for batches in ([ragged_examples], [[example] for example in ragged_examples]):
        reader.zero_grad()
        for batch in batches:
            reader.loss(collate(batch)).nll.sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in reader.named_parameters()})
    for name, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][name], rtol=1e-8, atol=1e-9 * float(grad.abs().max()))


# ---- random plans ----


def test_random_chunks_depend_on_seed_step_and_example_in_training_only():
    reader, batch = tiny_comet("compressor.strategy=random").train(), batch_of(90, 90)

    def plans(step, seed):
        reader.begin_step(step, seed)
        return plans_of(reader.chunk_batch(batch).text)

    first = plans(0, 0)
    assert first == plans(0, 0) and first[0] != first[1]
    assert len({str(p) for p in (first, plans(1, 0), plans(0, 1))}) == 3
    reader.eval()
    assert plans(1, 0) == [fixed(97, C)] * 2


def test_random_strides_are_used_in_training_only():
    reader, batch = tiny_comet("compressor.widest_stride=16").train(), batch_of(*[60] * 4)
    drawn = []
    for step in range(30):
        reader.begin_step(step, 0)
        drawn.append(tuple(reader.chunk_batch(batch).text.strides))
    assert {stride for strides in drawn for stride in strides} == {4, 8, 16} and len(set(drawn)) > 10
    text = reader.chunk_batch(batch).text
    for row, (sizes, stride) in enumerate(zip(plans_of(text), text.strides)):
        ids = row_ids(batch, row, *PARTS)
        torch.testing.assert_close(
            reader.loss(batch).nll[row], expected_nll(reader, ids, sizes, stride, 65), atol=1e-8, rtol=1e-10
        )
    assert reader.eval().chunk_batch(batch).text.strides == [4] * 4


# ---- slots ----

# {context tokens: (memory slots of the chunk in which the prompt ends, context tokens in that chunk)}. 2 tokens precede
# the context, 3 follow it. A full chunk of 16 leaves 3 global slots and 4 queue slots; the queue holds 8.
SLOTS = {0: (0, 0), 11: (0, 11), 12: (7, 0), 27: (7, 13), 43: (11, 13), 100: (11, 6)}


def test_slots_are_memory_slots_and_context_tokens_of_the_open_chunk():
    reader, batch = tiny_comet(dtype="float32"), batch_of(*SLOTS)
    footprint, expected = reader.footprint(batch), [sum(counts) for counts in SLOTS.values()]
    assert footprint.context_tokens.tolist() == list(SLOTS)
    assert footprint.memory_slots.tolist() == expected == reader.loss(batch).slots.tolist()
    assert footprint.memory_bytes.tolist() == [
        n * 2 * 2 * 2 * 16 * 4 for n in expected
    ]  # layers, k and v, heads, width
    assert footprint.requested_ratio is reader.requested_ratio is None


@pytest.mark.parametrize(
    "overrides, slots",
    [
        (["compressor.global_slots=0"], [0, 11, 4, 17, 21, 14]),
        (["compressor.queue_budget=0"], [0, 11, 3, 16, 16, 9]),
        (["compressor.stride=16"], [0, 11, 4, 17, 18, 15]),
    ],
    ids=["queue", "global", "stride"],
)
def test_slots_of_other_memories(overrides, slots):
    assert tiny_comet(*overrides).footprint(batch_of(*SLOTS)).memory_slots.tolist() == slots


def test_an_empty_context_has_no_slots():
    """The memory then holds prefix and prompt only."""
    assert tiny_comet().footprint(batch_of(0, 1, prompt=60)).memory_slots.tolist() == [0, G + B]


def test_a_short_last_group_has_a_slot():
    reader, batch = tiny_comet("compressor.strategy=right_aligned").train(), batch_of(12)  # 19 tokens: 3 and 16
    assert plans_of(reader.chunk_batch(batch).text) == [[3, 16]]
    assert reader.loss(batch).slots.tolist() == [11 + 1 + G]


# ---- objectives ----


def test_an_auxiliary_copy_loss():
    reader, batch = tiny_comet(), batch_of(50, 4, 30)
    reader.objective = AnswerAndCopy(copy_weight=0.5, copy_tokens=9, hint_tokens=5)
    assert reader.loss(batch).parts == {}
    reader.train()
    output, counts = reader.loss(batch), reader.counts(batch)
    [(weight, other)] = reader.objective.auxiliary(batch).values()
    assert weight == 0.5 and other.answer.lengths.tolist() == [9, 0, 9]
    text, expected = reader.chunk_batch(other).text, 0
    for row, sizes in enumerate(plans_of(text)):
        if row != 1:
            ids = row_ids(other, row, *PARTS)
            expected = expected + 0.5 * expected_nll(reader, ids, sizes, S, len(ids) - 9)
    value, count = output.parts["copy"]
    torch.testing.assert_close(value, expected, atol=1e-8, rtol=1e-10)
    assert int(count) == int(counts["copy"]) == 18
    (value + output.nll.sum()).backward()
    assert all(weight.grad is not None for weight in reader.parameters())


@pytest.mark.parametrize("objective", ["answer_and_copy", "reconstruct"])
def test_a_second_objective_is_divided_by_the_tokens_it_supervises(objective):
    """With supervise=text every token of the second text counts, not its answer alone: nats per token stay below 7."""
    overrides = {"reconstruct": ["objective.continuation_weight=1.0"], "answer_and_copy": ["objective.copy_tokens=5"]}
    reader = tiny_comet("compressor.supervise=text", f"objective={objective}", *overrides[objective])
    reader.train()
    reader.begin_step(0, 0)
    batch = batch_of(2 * C + 3, C + 1, 30)
    output, counts = reader.loss(batch), reader.counts(batch)
    [(name, (value, count))] = output.parts.items()
    [(_, other)] = reader.objective.auxiliary(batch).values()
    tokens = sum(len(row_ids(other, row, *PARTS)) - 1 for row in range(3))
    assert int(count) == int(counts[name]) == tokens > int(other.answer.mask.sum())
    assert 4 < float(value / count) < 8  # a uniform prediction: log 512 = 6.2


# ---- the optimizer ----


def trainer_of(compose, tmp_path, *overrides):
    cfg = compose(["compressor=comet", "backbone.layers=1", *overrides])
    reader = tiny_reader(cfg)
    arguments = training_arguments(cfg, tmp_path, False, torch.device("cpu"), validate=False)
    return reader, ReaderTrainer(reader, arguments, [], Collator(0), None, {}, False, RunLog(tmp_path))


@pytest.mark.parametrize("mode", ["lora", "frozen", "full"])
def test_the_memory_has_its_own_learning_rate(compose, tmp_path, mode):
    """The networks of the layers' memory; the rows of new tokens are rows of the backbone's tables, as published."""
    reader, trainer = trainer_of(
        compose,
        tmp_path,
        f"decoder.train={mode}",
        "train.learning_rate=0.01",
        "compressor.memory_rate=3.0",
        "compressor.new_token_logits=4",
        "train.weight_decay=0.1",
    )
    groups = trainer.create_optimizer().param_groups
    rates = {id(weight): (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    trained = {name: weight for name, weight in reader.named_parameters() if weight.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(trained)
    for name, weight in trained.items():
        rate, decay = rates[id(weight)]
        assert rate == pytest.approx(0.03 if name.startswith("memory.layers.") else 0.01), name
        assert decay == (0.0 if "norm" in name else 0.1), name
    assert {"memory.tokens.weight", "memory.new_token_head.weight", "memory.layers.0.gate.weight"} <= trained.keys()


def test_a_schedule_preserves_the_ratio_of_the_rates(compose, tmp_path):
    _, trainer = trainer_of(
        compose, tmp_path, "train.learning_rate=0.01", "train.warmup=0", "train.steps=10", "train.schedule=linear"
    )
    trainer.create_optimizer_and_scheduler(10)
    for _ in range(5):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert sorted({group["lr"] for group in trainer.optimizer.param_groups}) == pytest.approx([0.005, 0.025])


def test_a_factor_of_1_results_in_one_learning_rate(compose, tmp_path):
    reader, trainer = trainer_of(compose, tmp_path, "train.learning_rate=0.01", "compressor.memory_rate=1.0")
    assert reader.learning_rate_factors == {"memory.layers.": 1.0}
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {0.01}
