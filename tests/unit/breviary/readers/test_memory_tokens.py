"""Memory tokens: shared weights and separate adapters, segments, number of slots, error messages."""

from dataclasses import replace

import pytest
import torch

from breviary.config.build import ReaderSpec, build_backbone
from breviary.contract import TASKS, Context, Example
from breviary.objectives.text import Reconstruct
from breviary.readers.memory_tokens import MEMORY_ID
from tests.tiny import disturb

ICAE = ["compressor=icae", "compressor.memory_tokens=4", "decoder.train=frozen"]
TCP = ["compressor=tcp_ae", "compressor.memory_tokens=4", "decoder.train=frozen"]


def encoded(reader, batch):
    with torch.no_grad():
        return reader.compressor.encode(Context(batch.context.ids, batch.context.mask, batch.prefix))


def slots(reader, batch):
    return reader.eval().footprint(batch).memory_slots.tolist()


def ceil(a, b):
    return -(-a // b)


# ------------------------------------------------------------------ weights


def test_an_untrained_encoder_equals_the_backbone(build, ragged):
    reader = build(ICAE).eval()
    states, model = encoded(reader, ragged), reader.decoder
    ids = states.ids[0, 0][states.mask[0, 0]]
    embeds = torch.where(
        ids[:, None] == MEMORY_ID,
        reader.compressor.memory_embeds.repeat(len(ids), 1)[: len(ids)],
        model.embed(ids.clamp(min=0)),
    )
    embeds[ids == MEMORY_ID] = reader.compressor.memory_embeds
    expected = model.run(embeds[None], range(2), torch.arange(len(ids))[None])
    torch.testing.assert_close(states.states[0, 0][states.mask[0, 0]], model.norm(expected)[0])
    assert (ids == MEMORY_ID).sum() == 4 and (ids[-4:] == MEMORY_ID).all()


def test_encoder_and_decoder_have_separate_adapters(build, ragged):
    reader = build(["compressor=icae", "decoder.train=lora"]).eval()
    fresh = build(["compressor=icae", "decoder.train=lora"]).eval()
    ids, positions = ragged.context.ids[:1], torch.arange(ragged.context.ids.shape[1])[None]
    run = lambda one: one.decoder.run(one.decoder.embed(ids), range(4), positions)
    disturb(reader.compressor.adapters)
    assert torch.equal(run(reader), run(fresh))
    assert not torch.allclose(encoded(reader, ragged).states, encoded(fresh, ragged).states)
    disturb(fresh.decoder)
    assert not torch.allclose(run(reader), run(fresh))
    disturb(fresh.compressor.adapters)
    assert torch.equal(encoded(reader, ragged).states, encoded(fresh, ragged).states)


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_encoder_and_decoder_share_weights(build, mode):
    reader, plain = (
        build([*ICAE[:2], f"decoder.train={mode}"]),
        build(["compressor=no_context", f"decoder.train={mode}"]),
    )
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())
    assert count(reader) - count(reader.compressor) == count(plain)
    encoder = reader.compressor._encoder[0]
    own = {id(parameter) for parameter in reader.parameters()}
    assert all(id(parameter) in own for parameter in encoder.parameters())
    before = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    assert {n: p.requires_grad for n, p in reader.named_parameters() if n.startswith("decoder.")} == before


def test_converting_the_reader_converts_the_encoder(build, ragged):
    reader = build(ICAE).eval().double()
    reader.decoder.config.dtype = torch.float64
    assert encoded(reader, ragged).states.dtype == torch.float64


def test_checkpointing_does_not_change_gradients(build, ragged):
    gradients = []
    for checkpointing in (False, True):
        reader = build([*ICAE, f"train.gradient_checkpointing={checkpointing}", "compressor.lora_dropout=0"])
        disturb(reader)
        reader.loss(ragged).nll.sum().backward()
        gradients.append({name: p.grad for name, p in reader.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 4
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


# ------------------------------------------------------------------ segments and slots


def test_icae_segments_have_equal_length_and_all_memory_tokens(build, ragged):
    reader = build([*ICAE, "compressor.ratio=3"]).eval()
    states, lengths = encoded(reader, ragged), ragged.context.lengths.tolist()
    for b, length in enumerate(lengths):
        segments = ceil(length, 12)
        own = [(states.ids[b, s][states.mask[b, s]]) for s in range(states.ids.shape[1]) if states.mask[b, s].any()]
        assert len(own) == segments
        each = ceil(length, segments) if segments else 0
        assert [len(row) - 4 for row in own[:-1]] == [each] * (segments - 1)
        read = torch.cat([row[row != MEMORY_ID] for row in own]).tolist() if own else []
        assert read == ragged.context.ids[b][ragged.context.mask[b]].tolist()
    assert slots(reader, ragged) == [4 * ceil(length, 12) + (length > 0) for length in lengths]
    footprint = reader.footprint(ragged)
    assert footprint.requested_ratio == 3 > footprint.effective_ratio
    assert footprint.effective_ratio == sum(lengths) / sum(4 * ceil(length, 12) + (length > 0) for length in lengths)


def test_the_control_has_as_many_slots_as_mean_pooling(build, ragged):
    for words in ([], ["compressor.memory_tokens=512"], ["compressor.ratio=null", "compressor.slots=3"]):
        budget = [word for word in words if "memory" not in word]
        pooled = build(["compressor=mean_pool", "decoder.train=frozen", *budget])
        assert sum(
            slots(build([*TCP[:2], "decoder.train=frozen", "compressor.memory_tokens=512", *words]), ragged)
        ) == sum(slots(pooled, ragged))
    cut = slots(build(TCP), ragged)  # segments of at most 16 tokens
    for length, own in zip(ragged.context.lengths.tolist(), cut):
        segments = max(ceil(length, 16), 1)
        each = ceil(length, segments)
        assert own == sum(ceil(min(each, length - start), 4) for start in range(0, length, each or 1))


def test_a_budget_in_slots_is_never_exceeded(build, ragged):
    for count in (3, 6, 7):
        reader = build([*ICAE, "compressor.ratio=null", f"compressor.slots={count}", "compressor.task_tokens=false"])
        assert max(slots(reader, ragged)) <= count and reader.requested_ratio is None


def test_random_ratios_apply_in_training_only(build, ragged):
    reader = build([*TCP, "compressor.ratio=2", "compressor.ratio_choices=[8]"])
    reader.begin_step(0, 1)
    few = reader.loss(ragged).slots.sum()
    assert few < reader.eval().loss(ragged).slots.sum()


@pytest.mark.parametrize("words", [[], ["compressor.count=by_ratio"], ["compressor.ratio=null", "compressor.slots=9"]])
def test_the_longest_context_fits_the_positions(compose, words):
    cfg = compose([*ICAE, *words])
    settings = {key: value for key, value in cfg.compressor.items() if key != "_target_"}
    for room in (0, 3, 5, 29, 64):
        limit = ReaderSpec.of(cfg).compressor.longest_context(settings, room + 10, 10)
        segments = ceil(limit, 16) if settings["ratio"] else 9 // 3
        taken = (
            4 * segments + 1
            if settings["ratio"] and settings["count"] == "fixed"
            else (9 if settings["slots"] else ceil(limit, 4)) + 1
        )
        assert limit == 0 or taken <= room


# ------------------------------------------------------------------ task vectors


def test_each_task_has_its_own_vector(build, ragged):
    reader = build(ICAE)
    trained = {}
    for task in TASKS:
        reader.zero_grad()
        reader.loss(replace(ragged, task=task)).nll.sum().backward()
        trained[task] = reader.compressor.task_embeds.grad.any(1).tolist()
    assert trained == {task: [task == other for other in TASKS] for task in TASKS}
    assert Reconstruct().primary(ragged).task == "reconstruct" and ragged.rows([0]).task == "answer"


def test_without_task_tokens_the_vector_is_missing(build, ragged):
    with_it, without = build(ICAE), build([*ICAE, "compressor.task_tokens=false"])
    assert [max(n - 1, 0) for n in slots(with_it, ragged)] == slots(without, ragged)
    assert slots(without, ragged)[1] == 0 and ragged.context.lengths[1] == 0


# ------------------------------------------------------------------ error messages


def test_all_problems_are_reported_at_once(compose):
    cfg = compose(
        [
            *ICAE,
            "compressor.count=some",
            "compressor.head=linear",
            "compressor.memory_tokens=0",
            "compressor.lora_rank=0",
            "compressor.encoder_layers=5",
            "compressor.lora_dropout=1.0",
            "compressor.lora_targets=[q]",
            "compressor.ratio=null",
        ]
    )
    settings = {key: value for key, value in cfg.compressor.items() if key != "_target_"}
    problems = ReaderSpec.of(cfg).compressor.problems(settings, build_backbone(cfg))
    keys = ("ratio", "count", "head", "memory_tokens", "lora_rank", "encoder_layers", "lora_dropout", "lora_targets")
    assert [problem.startswith(f"compressor.{key}=") for key, problem in zip(keys, problems, strict=True)] == [True] * 8


# ------------------------------------------------------------------ cost

# [settings, columns of the encoder and of the head for contexts of 100, 12, 0 and 45 tokens]. Before, the encoder
# computed every context's rows and columns as for the longest possible one, the head all slots of that:
# 28 rows of 32 columns, 16 of 48, 12 of 112, and 28 slots, 32, 12 for each context.
COSTS = {
    "icae": ([*ICAE, "compressor.ratio=4"], (7 + 1 + 3, 32), (4, 28)),
    "tcp_ae": ([*TCP[:1], "compressor.memory_tokens=8"], (4 + 1 + 2, 32), (4, 28)),
    "slots": ([*ICAE, "compressor.ratio=null", "compressor.slots=12"], (3 + 3 + 3, 48), (4, 12)),
}


@pytest.fixture
def lengths_of_contexts(tokenizer, collate):
    text = "The moon is white and the sun is yellow. "
    batch = collate([Example(str(n), text * n, "What?", ("white",)) for n in (9, 1, 0, 4)])
    assert batch.context.lengths.tolist() == [100, 12, 0, 45]
    return batch


@pytest.mark.parametrize("name", COSTS)
def test_only_columns_that_a_context_needs_are_computed(build, lengths_of_contexts, name, monkeypatch):
    words, encoder_columns, head_columns = COSTS[name]
    reader = build([*words, "compressor.lora_dropout=0"])
    disturb(reader)
    columns, encoder, run = [], reader.compressor._encoder[0], reader.compressor._encoder[0].run
    monkeypatch.setattr(encoder, "run", lambda states, *a: (columns.append(states.shape[:2]), run(states, *a))[1])
    reader.compressor.head.register_forward_hook(lambda module, inputs, out: columns.append(inputs[0].shape[:2]))
    batch = lengths_of_contexts
    whole = reader.loss(batch)
    assert [tuple(shape) for shape in columns] == [encoder_columns, head_columns]
    alone = [reader.loss(batch.rows([row])) for row in range(len(batch))]
    torch.testing.assert_close(whole.nll, torch.cat([one.nll for one in alone]), rtol=1e-5, atol=0)
    assert whole.slots.tolist() == [int(one.slots) for one in alone]
    reader.zero_grad()
    alone[2].nll.sum().backward()  # of nothing: every weight still receives a gradient, as DDP and ZeRO require
    assert all(p.grad is not None for p in reader.parameters() if p.requires_grad)


def test_ratios_drawn_per_context_cut_each_row_at_its_own_memory_tokens(build, lengths_of_contexts):
    """The longest row has few memory tokens, a short one many: a row is as wide as their sum."""
    reader = build([*TCP[:1], "compressor.memory_tokens=8", "compressor.ratio_choices=[2,8]"])
    reader.compressor.budget.ratio_draw = "sample"
    for step in range(4):
        reader.begin_step(step, 1)
        mask = encoded(reader, lengths_of_contexts).mask
        longest = int(mask.sum(-1).max())
        assert mask.shape[2] == ceil(longest, 16) * 16 and mask.shape[1] == int(mask.any(-1).sum(-1).max())
