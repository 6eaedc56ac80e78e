"""CoMeT as a reader of batches: what is supervised, drawn and counted (spec 6: 10), and how its weights are trained."""

import random

import pytest
import torch
from comet_helpers import B, C, G, S, comet, logits_of, nats, twin

from breviary.contract import Example
from breviary.objectives.answer import AnswerAndCopy
from breviary.training.engines import training_arguments
from breviary.training.log import RunLog
from breviary.training.trainer import ReaderTrainer
from comet.chunking import MIXED, fixed
from comet.text import every_asked, joined, steps_of
from data.collate import Collator
from tests.tiny import row_ids, tiny_reader

PARTS = ("prefix", "context", "prompt", "answer")


def batch_of(*sizes, prefix=2, prompt=3, answer=2):
    """Random tokens; sizes of the contexts."""
    rng, items = random.Random(0), []
    for number, size in enumerate(sizes):
        lengths = dict(prefix=prefix, context=size, query=1, prompt=prompt, answer=answer)
        pieces = {name: [rng.randrange(2, 500) for _ in range(length)] for name, length in lengths.items()}
        items.append(
            {**pieces, "evidence": None, "starts": None, "ends": None, "example": Example(f"{number}", "", "", ("",))}
        )
    return Collator(0)(items)


def plans_of(text):
    """Sizes of each text's chunks; several texts may share a row."""
    plans = [[] for _ in range(text.sums)]
    for step in text.steps:
        for number, size in zip(step.counts_for, step.sizes):
            plans[number] += [size] if size else []
    return plans


def supervised(text):
    """For each text what is supervised in its chunks: [(place of the token that predicts, target)]."""
    pairs, begins = [[] for _ in range(text.sums)], {}
    for step in text.steps:
        columns, real = text.column(step)
        asked = text.asked.gather(1, columns) & real
        begins |= {
            number: start
            for number, start, first, size in zip(step.counts_for, step.starts, step.begins, step.sizes)
            if first and size
        }
        for row, column in asked.nonzero().tolist():
            place, number = int(columns[row, column]), step.counts_for[row]
            pairs[number].append((place - begins[number], int(text.ids[row, place + 1])))
    return pairs


def twin_nll(reader, ids, sizes, stride, first):
    """Nats of the slow twin on the tokens of one text from place `first` on."""
    logits = logits_of(reader, twin(reader, ids, sizes, stride))
    return nats(logits[first - 1 : -1], ids[first:])


# ---- labels (10) ----


@pytest.mark.parametrize("strategy", [*MIXED, "mixture"])
def test_supervised_pairs_are_the_plain_shifted_labels(strategy, ragged, tokenizer):
    """And the loss is the slow twin's over the very chunks that were drawn."""
    reader = comet(f"compressor.strategy={strategy}").train()
    for step in range(3):
        reader.begin_step(step, 0)
        text, tokens, _ = reader._text(ragged)
        output = reader.loss(ragged)
        assert output.tokens.tolist() == tokens.tolist() == ragged.answer.lengths.tolist()
        assert int(reader.counts(ragged)["answer"]) == int(tokens.sum())
        for row, (pairs, sizes) in enumerate(zip(supervised(text), plans_of(text))):
            ids = row_ids(ragged, row, *PARTS)
            first = len(ids) - int(ragged.answer.lengths[row])
            assert pairs == [(place - 1, int(ids[place])) for place in range(first, len(ids))]
            assert pairs[-1][1] == tokenizer.eos_token_id
            expected = twin_nll(reader, ids, sizes, S, first)
            torch.testing.assert_close(output.nll[row], expected, atol=1e-8, rtol=1e-10)


@pytest.mark.parametrize("quirks", [False, True])
def test_logits_of_new_tokens_count_with_quirks_alone(quirks, ragged):
    reader = comet("compressor.new_token_logits=5", f"compressor.quirks={str(quirks).lower()}").train()
    nll = reader.loss(ragged).nll
    nll.sum().backward()
    gradient = reader.memory.new_token_head.weight.grad  # zeros where they do not: every weight has one
    assert gradient.any() == quirks
    with torch.no_grad():
        reader.memory.new_token_head.weight.zero_()
        logits = reader.loss(ragged).nll
    assert torch.equal(logits, nll) != quirks


def test_the_last_token_of_a_chunk_predicts_the_first_of_the_next():
    reader, batch = comet(), batch_of(11, prompt=3, answer=20)  # the answer begins a chunk
    text, tokens, _ = reader._text(batch)
    assert plans_of(text) == [[16, 16, 4]] and tokens.tolist() == [20]
    assert [place for place, _ in supervised(text)[0]] == list(range(15, 35))
    expected = twin_nll(reader, row_ids(batch, 0, *PARTS), [16, 16, 4], S, 16)
    torch.testing.assert_close(reader.loss(batch).nll[0], expected, atol=1e-8, rtol=1e-10)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_every_token_but_the_first_may_be_supervised(mode, ragged):
    reader = comet("compressor.supervise=text", "compressor.strategy=random").train(mode)
    output, (text, _, _) = reader.loss(ragged), reader._text(ragged)
    lengths = [len(row_ids(ragged, row, *PARTS)) for row in range(len(ragged))]
    assert output.tokens.tolist() == [length - 1 for length in lengths]
    assert int(reader.counts(ragged)["answer"]) == sum(lengths) - len(ragged)
    for row, sizes in enumerate(plans_of(text)):
        expected = twin_nll(reader, row_ids(ragged, row, *PARTS), sizes, S, 1)
        torch.testing.assert_close(output.nll[row], expected, atol=1e-8, rtol=1e-10)


def test_a_text_s_first_token_is_never_supervised():
    """Nothing predicts it: without prefix, context and prompt that is the answer's own."""
    reader, batch = comet(), batch_of(0, 3, prefix=0, prompt=0, answer=4)
    output = reader.loss(batch)
    assert output.tokens.tolist() == [3, 4] and int(reader.counts(batch)["answer"]) == 7
    expected = twin_nll(reader, row_ids(batch, 0, *PARTS), [4], S, 1)
    torch.testing.assert_close(output.nll[0], expected, atol=1e-8, rtol=1e-10)


def test_every_real_token_that_follows_another_is_asked(ragged):
    layout, _ = joined([ragged.context, ragged.answer])
    assert every_asked(layout).sum(1).tolist() == [n - 1 for n in layout.mask.sum(1).tolist()]


def test_rows_are_aligned_at_their_ends_and_no_text_s_last_chunk_closes():
    steps = steps_of([[[16, 3], [5]], [[7]], [[4, 4]]])
    assert [step.sizes for step in steps] == [[16, 0, 0], [3, 0, 4], [5, 7, 4]]
    assert [step.starts for step in steps] == [[0, 0, 0], [16, 0, 0], [19, 0, 4]]
    assert [step.closes for step in steps] == [[True, False, False], [False, False, True], [False, False, False]]
    assert [step.begins for step in steps] == [[True, False, False], [False, False, True], [True, True, False]]
    assert [step.chunk for step in steps] == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]


# ---- batches ----


@pytest.mark.parametrize("strategy", ["mixture", "random", "semantic"])
def test_a_batch_of_n_equals_n_of_one_in_training(strategy, ragged_examples, collate):
    """Whatever side is padded, and with what: chunks and strides are drawn by seed, step and example."""
    reader = comet(f"compressor.strategy={strategy}", "compressor.widest_stride=16").train()
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
    reader = comet("compressor.strategy=random").train()
    found = []
    for batches in ([ragged_examples], [[example] for example in ragged_examples]):
        reader.zero_grad()
        for batch in batches:
            reader.loss(collate(batch)).nll.sum().backward()
        found.append({name: weight.grad.clone() for name, weight in reader.named_parameters()})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], rtol=1e-8, atol=1e-9 * float(grad.abs().max()))


# ---- draws ----


def test_chunks_are_drawn_by_seed_step_and_example_in_training_alone():
    reader, batch = comet("compressor.strategy=random").train(), batch_of(90, 90)

    def plans(step, seed):
        reader.begin_step(step, seed)
        return plans_of(reader._text(batch)[0])

    first = plans(0, 0)
    assert first == plans(0, 0) and first[0] != first[1]
    assert len({str(p) for p in (first, plans(1, 0), plans(0, 1))}) == 3
    reader.eval()
    assert plans(1, 0) == [fixed(97, C)] * 2


def test_strides_are_drawn_in_training_alone():
    reader, batch = comet("compressor.widest_stride=16").train(), batch_of(*[60] * 4)
    drawn = []
    for step in range(30):
        reader.begin_step(step, 0)
        drawn.append(tuple(reader._text(batch)[0].strides))
    assert {stride for strides in drawn for stride in strides} == {4, 8, 16} and len(set(drawn)) > 10
    text, _, _ = reader._text(batch)
    for row, (sizes, stride) in enumerate(zip(plans_of(text), text.strides)):
        ids = row_ids(batch, row, *PARTS)
        torch.testing.assert_close(
            reader.loss(batch).nll[row], twin_nll(reader, ids, sizes, stride, 65), atol=1e-8, rtol=1e-10
        )
    assert reader.eval()._text(batch)[0].strides == [4] * 4


# ---- what is counted ----

# Context tokens: seats of the chunk in which the prompt ends, and context tokens in that chunk. 2 tokens stand before the
# context, 3 behind it; full chunks of 16 leave 3 global slots and 4 in the queue, which holds 8.
COUNTED = {0: (0, 0), 11: (0, 11), 12: (7, 0), 27: (7, 13), 43: (11, 13), 100: (11, 6)}


def test_slots_are_seats_and_tokens_of_the_open_chunk():
    reader, batch = comet(dtype="float32"), batch_of(*COUNTED)
    footprint, expected = reader.footprint(batch), [sum(counted) for counted in COUNTED.values()]
    assert footprint.context_tokens.tolist() == list(COUNTED)
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
    assert comet(*overrides).footprint(batch_of(*COUNTED)).memory_slots.tolist() == slots


def test_no_slot_stands_for_a_context_that_is_empty():
    """Whatever is in the memory is of prefix and prompt."""
    assert comet().footprint(batch_of(0, 1, prompt=60)).memory_slots.tolist() == [0, G + B]


def test_a_short_last_group_takes_a_slot():
    reader, batch = comet("compressor.strategy=right_aligned").train(), batch_of(12)  # 19 tokens: 3 and 16
    assert plans_of(reader._text(batch)[0]) == [[3, 16]]
    assert reader.loss(batch).slots.tolist() == [11 + 1 + G]


# ---- objectives ----


def test_a_passage_is_copied_as_well():
    reader, batch = comet(), batch_of(50, 4, 30)
    reader.objective = AnswerAndCopy(copy_weight=0.5, copy_tokens=9, hint_tokens=5)
    assert reader.loss(batch).parts == {}
    reader.train()
    output, counts = reader.loss(batch), reader.counts(batch)
    [(weight, other)] = reader.objective.auxiliary(batch).values()
    assert weight == 0.5 and other.answer.lengths.tolist() == [9, 0, 9]
    text, expected = reader._text(other)[0], 0
    for row, sizes in enumerate(plans_of(text)):
        if row != 1:
            ids = row_ids(other, row, *PARTS)
            expected = expected + 0.5 * twin_nll(reader, ids, sizes, S, len(ids) - 9)
    value, count = output.parts["copy"]
    torch.testing.assert_close(value, expected, atol=1e-8, rtol=1e-10)
    assert int(count) == int(counts["copy"]) == 18
    (value + output.nll.sum()).backward()
    assert all(weight.grad is not None for weight in reader.parameters())


# ---- the optimizer ----


def trainer_of(compose, tmp_path, *overrides):
    cfg = compose(["compressor=comet", "backbone.layers=1", *overrides])
    reader = tiny_reader(cfg)
    arguments = training_arguments(cfg, tmp_path, False, torch.device("cpu"), validate=False)
    return reader, ReaderTrainer(reader, arguments, [], Collator(0), None, {}, False, RunLog(tmp_path))


@pytest.mark.parametrize("mode", ["lora", "frozen", "full"])
def test_the_memory_learns_at_a_rate_of_its_own(compose, tmp_path, mode):
    reader, trainer = trainer_of(
        compose,
        tmp_path,
        f"decoder.train={mode}",
        "train.learning_rate=0.01",
        "compressor.memory_rate=3.0",
        "train.weight_decay=0.1",
    )
    groups = trainer.create_optimizer().param_groups
    rates = {id(weight): (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    trained = {name: weight for name, weight in reader.named_parameters() if weight.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(trained)
    for name, weight in trained.items():
        rate, decay = rates[id(weight)]
        assert rate == pytest.approx(0.03 if name.startswith("memory.") else 0.01), name
        assert decay == (0.0 if "norm" in name else 0.1), name
    assert any(name.startswith("memory.") for name in trained)


def test_a_schedule_keeps_the_rates_apart(compose, tmp_path):
    _, trainer = trainer_of(
        compose, tmp_path, "train.learning_rate=0.01", "train.warmup=0", "train.steps=10", "train.schedule=linear"
    )
    trainer.create_optimizer_and_scheduler(10)
    for _ in range(5):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert sorted({group["lr"] for group in trainer.optimizer.param_groups}) == pytest.approx([0.005, 0.025])


def test_a_reader_without_factors_has_one_rate(compose, tmp_path):
    reader, trainer = trainer_of(compose, tmp_path, "train.learning_rate=0.01", "compressor.memory_rate=1.0")
    assert reader.learning_rate_factors == {"memory.": 1.0}
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {0.01}
