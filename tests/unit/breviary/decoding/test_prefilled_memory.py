"""A memory that does not depend on the question is prefilled once for all questions.

tests/contract checks that answers from cached contexts equal answers from newly encoded ones.
"""

import pytest
import torch

from breviary.config.build import compressor_forms
from breviary.contract import Generation
from breviary.decoding.shared_keys import PrefilledMemory
from breviary.readers.cache import ContextCache
from breviary.readers.documents import EncodedDocument
from tests.tiny import disturb

FORMS = {
    name: compressor_forms()[name]
    for name in ("full_context", "truncate", "no_context", "mean_pool-input", "mean_pool-depth")
}
GENERATION = Generation(max_new_tokens=3)


@pytest.fixture(params=FORMS, ids=FORMS)
def reader(request, build):
    reader = build(FORMS[request.param]).eval()
    disturb(reader)
    return reader


@pytest.fixture
def widths(reader, monkeypatch):
    """Number of columns that the decoder's last layer computes, for each call."""
    widths, run = [], reader.decoder.run

    def recorded(states, layers, *args, **kwargs):
        if len(reader.decoder) - 1 in layers:
            widths.append(states.shape[1])
        return run(states, layers, *args, **kwargs)

    monkeypatch.setattr(reader.decoder, "run", recorded)
    return widths


def test_a_further_question_computes_its_own_tokens_only(reader, widths, ragged, monkeypatch):
    reader.context_cache = ContextCache(capacity=len(ragged))
    with torch.no_grad():
        reader.decode(ragged, GENERATION)
    columns = -(-ragged.prompt.ids.shape[1] // 16) * 16  # widths are rounded up
    assert widths[1:] == [columns, 1, 1]  # after the memory: the questions, then one token per step
    widths.clear()
    monkeypatch.setattr(reader.compressor, "compress", lambda *args: pytest.fail("compressed again"))
    with torch.no_grad():
        reader.decode(ragged, GENERATION)
        assert reader.context_cache.reused == [True] * len(ragged)
        loss = reader.loss(ragged)
    prompt_and_answer = -(-(ragged.prompt.ids.shape[1] + ragged.answer.ids.shape[1]) // 16) * 16
    assert widths == [columns, 1, 1, prompt_and_answer]
    reader.context_cache = None
    monkeypatch.undo()
    assert loss.slots.tolist() == reader.footprint(ragged).memory_slots.tolist()


def test_a_document_is_prefilled_at_its_first_question(reader, widths, ragged):
    document = reader.encode_contexts(ragged)[0]
    assert isinstance(document, EncodedDocument) and widths == []
    first = document.answer(ragged.rows([0, 1]), GENERATION)
    assert len(widths) > 1
    widths.clear()
    assert (
        document.answer(ragged.rows([0, 1]), GENERATION)
        == first
        == ["".join(document.stream(ragged.rows([row]), GENERATION)) for row in (0, 1)]
    )
    assert set(widths) == {-(-ragged.prompt.ids.shape[1] // 16) * 16, 1}  # the questions, then one token per step
    assert first[0] == reader.answer(ragged.rows([0]), GENERATION)[0]


def test_join_reverses_split():
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    layers = {n: (torch.randn(3, 2, 3, 4), torch.randn(3, 2, 3, 4)) for n in (2, 3)}
    whole = PrefilledMemory(layers, mask, torch.tensor([1, 2, 0]))
    again = PrefilledMemory.join(whole.split())
    assert again.keys_values is layers  # not copied
    assert torch.equal(again.mask, mask) and torch.equal(again.slots, whole.slots)
    for layer, pair in layers.items():
        assert all(torch.equal(one, other) for one, other in zip(again.by_row(layer), pair))


def test_rows_of_several_prefills_are_joined_without_repetition():
    """Two rows share a context of the first prefill; the other prefill is wider, and one of its contexts is empty."""
    first = PrefilledMemory({2: _random_pair(2, 5)}, _lengths_mask([3, 2], 5), torch.tensor([3, 2]))
    second = PrefilledMemory({2: _random_pair(2, 4)}, _lengths_mask([4, 0], 4), torch.tensor([4, 0]))
    parts = [*first.split(), *second.split()]
    rows = [1, 3, 1, 2]  # of the four contexts
    joined = PrefilledMemory.join([parts[row] for row in rows])
    assert joined.keys_values[2][0].shape == (3, 2, 4, 4) and joined.rows == (0, 1, 0, 2)
    assert joined.mask.sum(1).tolist() == joined.slots.tolist() == [2, 0, 2, 4]
    for b, row in enumerate(rows):
        mask = joined.mask[b]
        for actual, expected in zip(joined.by_row(2), parts[row].by_row(2)):
            assert torch.equal(actual[b, :, mask], expected[0, :, : int(mask.sum())])


def _random_pair(contexts, width):
    return tuple(torch.randn(contexts, 2, width, 4) for _ in range(2))


def _lengths_mask(lengths, width):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def test_a_question_dependent_memory_is_not_prefilled(build, ragged):
    reader = build(["compressor=comi"]).eval()
    reader.context_cache = ContextCache()
    with torch.no_grad():
        reader.loss(ragged)
    assert not reader.context_cache.prefills._entries and reader.context_cache._entries
