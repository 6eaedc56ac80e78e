"""Context cache, splitting and joining of encoded contexts, and losses and footprints of CompressedReader."""

import pytest
import torch

from breviary.contract import Context, Encoded, Tokens
from breviary.memory.encoded_batches import join_contexts, split_contexts
from breviary.readers.cache import ContextCache
from tests.tiny import compose_tiny, tiny_reader


class RecordingCompressor:
    """Encodes ids as states and records the rows of each call in `encoded`."""

    def __init__(self):
        self.encoded = []

    def encode(self, context):
        self.encoded.append([ids[mask].tolist() for ids, mask in zip(context.ids, context.mask)])
        states = context.ids[:, None, :, None].float() * context.mask[:, None, :, None]
        return Encoded(states, context.mask[:, None], context.ids[:, None])


def contexts(*rows, prefixes=None):
    def tokens(parts):
        width = max(map(len, parts))
        ids, mask = torch.full((len(parts), width), 9), torch.zeros(len(parts), width, dtype=torch.bool)
        for b, part in enumerate(parts):
            ids[b, : len(part)] = torch.tensor(part)
            mask[b, : len(part)] = True
        return ids, mask

    return Context(*tokens(rows), prefix=Tokens(*tokens(prefixes or [[1]] * len(rows))))


def encode(cache, compressor, *rows, **kwargs):
    encoded = cache.encode(compressor, contexts(*rows, **kwargs))
    return [encoded.states[b, 0, encoded.mask[b, 0], 0].tolist() for b in range(len(rows))]


def test_a_context_is_encoded_once():
    cache, compressor = ContextCache(), RecordingCompressor()
    assert encode(cache, compressor, [5, 6], [7], [5, 6]) == [[5, 6], [7], [5, 6]]
    assert cache.reused == [False, False, True]
    assert encode(cache, compressor, [8, 8, 8], [7]) == [[8, 8, 8], [7]]
    assert cache.reused == [False, True]
    assert encode(cache, compressor, [7], [7]) == [[7], [7]] and cache.reused == [True, True]
    assert [sorted(rows) for rows in compressor.encoded] == [[[5, 6], [7]], [[8, 8, 8]]]


def test_the_prefix_is_part_of_the_key():
    cache, compressor = ContextCache(), RecordingCompressor()
    encode(cache, compressor, [5], [5], prefixes=[[1], [1, 2]])
    assert cache.reused == [False, False]
    encode(cache, compressor, [2, 5], prefixes=[[1]])  # not the same as prefix [1, 2] and context [5]
    assert cache.reused == [False]


def test_the_least_recently_used_context_is_evicted():
    cache, compressor = ContextCache(capacity=2), RecordingCompressor()
    encode(cache, compressor, [1], [2])
    encode(cache, compressor, [1], [3])
    encode(cache, compressor, [1], [2])
    assert cache.reused == [True, False]


def test_a_batch_larger_than_the_capacity():
    cache, compressor = ContextCache(capacity=1), RecordingCompressor()
    assert encode(cache, compressor, [1], [2], [3, 4]) == [[1], [2], [3, 4]]
    assert encode(cache, compressor, [3, 4], [1]) == [[3, 4], [1]]
    assert cache.reused == [True, False]


def test_join_reverses_split():
    torch.manual_seed(0)
    mask = torch.zeros(3, 2, 4, dtype=torch.bool)
    mask[0], mask[1, 0, :2], mask[2, 0] = True, True, True
    states = torch.randn(3, 2, 4, 5) * mask[..., None]
    keys = torch.randn(3, 2, 2, 4, 3) * mask[:, :, None, :, None]
    ids = torch.randint(1, 9, (3, 2, 4)) * mask
    encoded = Encoded(states, mask, ids, [(keys, 2 * keys)])
    parts = split_contexts(encoded)
    assert [tuple(part.mask.shape) for part in parts] == [(1, 2, 4), (1, 1, 2), (1, 1, 4)]
    joined = join_contexts(parts)
    assert torch.equal(joined.states, states) and torch.equal(joined.mask, mask) and torch.equal(joined.ids, ids)
    assert torch.equal(joined.keys_values[0][0], keys) and torch.equal(joined.keys_values[0][1], 2 * keys)
    again = join_contexts([parts[1], parts[2]])
    assert again.mask.shape == (2, 1, 4) and torch.equal(again.states[0, 0, :2], states[1, 0, :2])


def test_an_empty_context_survives_split_and_join():
    encoded = Encoded(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, dtype=torch.bool), torch.zeros(1, 1, 3).long())
    [part] = split_contexts(encoded)
    assert part.mask.shape == (1, 1, 1) and not join_contexts([part, part]).mask.any()


@pytest.fixture(scope="module")
def reader():
    return tiny_reader(compose_tiny(["compressor=mean_pool", "compressor.join=depth"])).eval()


def test_the_head_runs_on_supervised_rows_only(reader, ragged):
    shapes = []
    handle = reader.decoder.lm_head.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    reader.loss(ragged)
    handle.remove()
    assert shapes == [(ragged.answer.ids.numel(), reader.decoder.width)]


def test_unsupervised_answer_columns_do_not_change_the_loss(reader, ragged):
    before = reader.loss(ragged).nll.detach()
    width = ragged.answer.ids.shape[1]
    wider = torch.nn.functional.pad(ragged.answer.ids, (0, 3), value=77)
    ragged.answer = Tokens(wider, torch.nn.functional.pad(ragged.answer.mask, (0, 3)))
    torch.testing.assert_close(reader.loss(ragged).nll, before, rtol=1e-6, atol=0)
    assert ragged.answer.ids.shape[1] == width + 3


def test_forward_returns_plain_containers(reader, ragged):
    output, loss = reader(ragged), reader.loss(ragged)
    assert output.keys() == {"terms", "slots", "context_tokens"}
    value, count = output["terms"]["answer"]
    assert torch.equal(value, loss.nll.sum()) and count == loss.tokens.sum() == reader.counts(ragged)["answer"]
    assert output["slots"] == loss.slots.sum() and output["context_tokens"] == ragged.context.mask.sum()


def test_footprint_from_slots_equals_footprint(reader, ragged):
    whole, known = reader.footprint(ragged), reader.footprint_from_slots(ragged, reader.loss(ragged).slots)
    for name in ("context_tokens", "memory_slots", "memory_bytes"):
        assert torch.equal(getattr(whole, name), getattr(known, name))
    assert whole.requested_ratio == known.requested_ratio == 4


def test_rows_of_a_batch_have_the_losses_of_the_batch(reader, ragged):
    whole = reader.loss(ragged).nll
    torch.testing.assert_close(reader.loss(ragged.rows([3, 0])).nll, whole[[3, 0]], rtol=1e-5, atol=0)
