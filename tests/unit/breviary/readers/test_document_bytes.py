"""Footprint.document_bytes: what the context cache holds of a context equals what `encode_contexts` would hold."""

from dataclasses import replace

import pytest
import torch

from breviary.contract import Generation
from breviary.readers.documents import EncodedDocument
from tests.tiny import greedy_ids

SMALL = ["backbone.layers=3", "backbone.width=32", "decoder.train=frozen"]
# For each question a memory of its own: the encoded context is held.
KNOWN = {
    "snapkv": ["compressor.question=known"],
    "comi": ["compressor.join=depth", "compressor.encoder_layers=2"],
    "bm25": [],
}
# One memory for any question.
UNKNOWN = {
    "kvzip": [],
    "attention_matching": [],
    "full_context": [],
    "mean_pool": ["compressor.join=depth", "compressor.encoder_layers=2"],
}


def answered(build, name, words, batch):
    """The reader with a context cache that has seen the batch, and its documents."""
    reader = build([f"compressor={name}", *SMALL, *words]).eval()
    assert reader.footprint(batch).document_bytes is None
    documents = reader.encode_contexts(batch)
    reader.context_cache = reader.context_cache_class(len(batch))
    greedy_ids(reader, batch, 1)
    return reader, documents


@pytest.mark.parametrize("name", KNOWN)
def test_a_method_that_reads_the_question_holds_the_encoded_context(build, name, ragged):
    reader, documents = answered(build, name, KNOWN[name], ragged)
    held = reader.footprint_from_slots(ragged, ragged.context.lengths).document_bytes
    assert held.tolist() == [document.bytes for document in documents]
    if name == "bm25":  # tokens: their id, and whether they are one
        assert held.tolist() == [9 * max(length, 1) for length in ragged.context.lengths.tolist()]


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_method_that_reads_no_question_holds_its_memory(build, name, ragged):
    reader, documents = answered(build, name, UNKNOWN[name], ragged)
    slots = reader.loss(ragged).slots
    footprint = reader.footprint_from_slots(ragged, slots)
    for b, document in enumerate(documents):
        if isinstance(document, EncodedDocument):  # its memory is computed with the first question
            document.answer(ragged.rows([b]), Generation(max_new_tokens=1))
            held = sum(x[:, :, : document._prefilled.mask.sum()].nbytes for x in _tensors(document._prefilled))
        else:
            held = document.bytes
        assert int(footprint.document_bytes[b]) == held
    per_token = reader.decoder.key_value_bytes(len(reader.decoder) - reader.compressor.layer)
    biases = reader.compressor.slot_bytes(reader.decoder) - per_token
    prefix = ragged.prefix.lengths * (per_token + biases)
    assert torch.equal(footprint.document_bytes, footprint.memory_bytes + prefix)


def test_a_stream_holds_its_state(build, ragged):
    words = ["compressor.chunk_size=16", "compressor.stride=4", "compressor.global_slots=3"]
    reader = build(["compressor=comet", *words, *SMALL]).eval()
    reader.context_cache = reader.context_cache_class(len(ragged))
    greedy_ids(reader, ragged, 1)
    held = reader.footprint_from_slots(ragged, ragged.context.lengths).document_bytes.tolist()
    assert held == [document.bytes for document in reader.encode_contexts(ragged)] and len(set(held)) == 5


def test_a_context_that_is_not_in_the_cache_is_not_counted(build, ragged):
    reader, _ = answered(build, "kvzip", [], ragged)
    other = replace(ragged, context=replace(ragged.context, ids=ragged.context.ids + 1))
    assert reader.footprint_from_slots(other, ragged.context.lengths).document_bytes is None


def _tensors(prefilled):
    return [x for pair in prefilled.keys_values.values() for x in pair]
