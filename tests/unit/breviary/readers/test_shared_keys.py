"""Keys and values of a memory that was read once are shared by its questions: bytes held while answers are decoded."""

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from breviary.backbones.stack import Stack
from breviary.contract import Example, Generation
from breviary.evaluation.loop import evaluate
from breviary.readers.cache import ContextCache
from data.metrics import scores
from tests.tiny import disturb

FORMS = {
    "full_context": ["compressor=full_context"],
    "mean_pool-input": ["compressor=mean_pool", "compressor.join=input"],
    "mean_pool-depth": ["compressor=mean_pool", "compressor.join=depth"],
    "comi-input": ["compressor=comi", "compressor.join=input"],
    "comi-depth": ["compressor=comi", "compressor.join=depth"],
}
CONTEXT = "The moon is white. The ship Quiloth has violin as lucky instrument. " * 30
GENERATION = Generation(max_new_tokens=3, min_new_tokens=3)


@pytest.fixture(params=FORMS)
def reader(request, build):
    reader = build(FORMS[request.param]).eval()
    disturb(reader)
    return reader


def questions(count, context=CONTEXT):
    return [Example(f"{context[4:9]} {i}", context, f"What is {i}?", ("white",)) for i in range(count)]


def storages():
    """{address: bytes} of every storage of a tensor that is no parameter."""
    other = (torch.nn.Parameter, FakeTensor)  # fake ones: of torch.compile in other tests
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and not issubclass(type(x), other)]
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}


@pytest.fixture
def held(reader, monkeypatch):
    """held(call) -> most bytes that `call` holds at the beginning of a decode step, beside what exists before it."""

    def measure(call):
        before, most, embed = storages(), [], Stack.embed

        def recorded(stack, ids):
            if stack is reader.decoder and ids.shape[1] == 1:
                most.append(sum(size for address, size in storages().items() if address not in before))
            return embed(stack, ids)

        with monkeypatch.context() as patch:
            patch.setattr(Stack, "embed", recorded)
            call()
        return max(most)

    return measure


def own_bytes(reader, batch):
    """Upper bound of what one question holds: keys and values of its columns, of a memory that depends on it, and
    its logits and masks."""
    compressor = reader.compressor
    columns = batch.prefix.ids.shape[1] + batch.prompt.ids.shape[1] + 16 + GENERATION.max_new_tokens
    if compressor.needs_question:
        columns += int(reader.memory(batch.rows([0])).mask.sum()) + 16
    width = batch.context.ids.shape[1]
    return columns * reader.decoder.key_value_bytes(len(reader.decoder)) + 4 * 512 * 3 + 40 * (width + columns)


@pytest.mark.parametrize("count", [4, 16])
def test_a_document_s_questions_hold_its_keys_once(reader, collate, held, count):
    """Before: 16 questions on a full context held 34 times the plain decoder's cache, now 1.9 times."""
    batch = collate(questions(count))
    document = reader.encode_contexts(batch.rows([0]))[0]
    document.answer(batch.rows([0]), GENERATION)  # computes what all questions share
    shared = held(lambda: document.answer(batch.rows([0]), GENERATION))
    assert held(lambda: document.answer(batch, GENERATION)) <= shared + (count - 1) * own_bytes(reader, batch)
    assert document.answer(batch, GENERATION) == [
        document.answer(batch.rows([row]), GENERATION)[0] for row in range(count)
    ]


class Items(list):
    """Batches of one example, as the items of an evaluation."""

    examples = property(lambda self: [item.examples[0] for item in self])
    lengths = property(lambda self: [int(item.context.mask.sum()) for item in self])
    is_truncated = property(lambda self: [False] * len(self))


@pytest.mark.parametrize("count", [4, 16])
def test_evaluation_holds_the_keys_of_a_context_once(reader, collate, held, count):
    batch = collate(questions(count))
    items = Items(batch.rows([row]) for row in range(count))
    index = {example.id: row for row, example in enumerate(batch.examples)}

    def chosen_rows(chosen):
        return batch.rows([index[item.examples[0].id] for item in chosen])

    def answer(number, batch_size):
        parts = evaluate(reader, Items(items[:number]), chosen_rows, scores, GENERATION, batch_size)
        return {row["id"]: row for part in parts for row in part}

    one = held(lambda: answer(1, 1))
    assert held(lambda: answer(count, count)) <= one + (count - 1) * own_bytes(reader, batch)
    batched, single = answer(count, count), answer(count, 1)
    assert batched.keys() == single.keys() and len(batched) == count
    for name, row in batched.items():
        assert row["prediction"] == single[name]["prediction"]
        assert row["nll"] == pytest.approx(single[name]["nll"], rel=1e-5)


@pytest.mark.parametrize("compressor", ["full_context", "mean_pool"])
def test_batches_of_several_contexts_hold_each_once(build, collate, compressor):
    """Two batches of two contexts share one context; its keys are held once, and nothing of the context that left."""
    reader = build([f"compressor={compressor}"]).eval()
    disturb(reader)
    first, second, third = (questions(2, name + CONTEXT) for name in ("One. ", "Two. ", "Three. "))
    reader.context_cache = ContextCache(capacity=2)
    for examples in ([*first, *second], [*second, *third]):
        batch = collate(examples)
        answers = reader.answer(batch, GENERATION)
        entries = reader.context_cache.prefills._entries.values()
        tensors = {id(x): x for entry in entries for x in entry.keys_values[3]}.values()
        assert [len(x) for x in tensors] == [2, 2]  # keys and values, each of two contexts
        assert all(x.untyped_storage().nbytes() == x.numel() * x.element_size() for x in tensors)
        assert not reader.context_cache._entries  # the states from which the memory was made
        assert answers == [reader.answer(collate([example]), GENERATION)[0] for example in examples]


@pytest.mark.parametrize("join", ["input", "depth"])
def test_questions_share_the_keys_of_a_memory(build, collate, ragged, join, monkeypatch):
    """A memory for one question answers others: [prefix ; slots] is computed once for all of them."""
    reader = build(["compressor=comi", f"compressor.join={join}"]).eval()
    disturb(reader)
    batch = collate(questions(4))
    memory = reader.encode_contexts(batch.rows([0]))[0].memory(batch.rows([0]))
    state, _ = reader.start_decoding(batch, memory._context_state(batch))
    assert {len(keys) for keys, _ in state.cache.before.keys_values.values()} == {1}
    columns = -(-batch.prompt.ids.shape[1] // 16) * 16
    layers = range(reader.compressor.layer, 4)
    assert all(state.cache._own[layer][0].shape[2] <= columns for layer in layers)
    assert memory.answer(batch, GENERATION) == [memory.answer(batch.rows([row]), GENERATION)[0] for row in range(4)]


def test_questions_share_comet_s_memory(build, collate):
    """Keys and values of the memory slots are held once while four questions are read in the same chunk."""
    reader = build(["compressor=comet", "compressor.chunk_size=128"]).eval()
    disturb(reader)
    batch = collate(questions(4))
    reader.context_cache = reader.context_cache_class(4)
    with torch.no_grad():
        [(rows, stream)] = reader._encoded_contexts(batch)
        [(cached, _)] = {id(entry[0]): entry for entry in reader.context_cache._entries.values()}.values()
        stream.read(batch.prompt.ids, batch.prompt.lengths)
    assert rows == [0, 1, 2, 3] and stream.open_chunk is not None
    for pair, own in zip(stream.open_chunk.memory_keys_values, cached.open_chunk.memory_keys_values, strict=True):
        for shared, one in zip(pair, own):
            assert shared.shape[0] == 4 and shared.untyped_storage().data_ptr() == one.untyped_storage().data_ptr()
    answers = reader.answer(batch, GENERATION)
    assert answers == [reader.answer(batch.rows([row]), GENERATION)[0] for row in range(4)]
