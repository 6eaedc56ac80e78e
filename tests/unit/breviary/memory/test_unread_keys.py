"""Keys and values of the context encoder are kept only where a question attends to them."""

import pytest
import torch

from breviary.contract import Generation
from breviary.readers.documents import EncodedDocument

# [settings, whether questions attend to the context in the encoder]
FORMS = {
    "mean_pool": (["compressor=mean_pool"], False),
    "query_free": (["compressor=comi", "compressor.query_free=true", "compressor.join=input"], False),
    "alone": (["compressor=comi", "compressor.question=alone", "compressor.join=input"], False),
    "ram": (["compressor=ram", "compressor.join=input"], False),
    "depth": (["compressor=comi", "compressor.join=depth"], False),
    "comi": (["compressor=comi", "compressor.join=input"], True),
}
# Tiny backbone, float32: a state of width 64, an id of 8 bytes, a mask; keys and values of 2 layers, 2 heads of 16.
STATE_BYTES, KEY_BYTES = 64 * 4 + 8 + 1, 2 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("form", FORMS)
def test_keys_are_kept_only_where_a_question_reads_them(build, ragged, form):
    words, reads = FORMS[form]
    reader = build(words).eval()
    document = reader.encode_contexts(ragged.rows([0]))[0]
    assert len(document.encoded.keys_values) == 2 * reads
    columns = document.encoded.mask.numel()
    assert document.bytes == columns * (STATE_BYTES + reads * KEY_BYTES)


def test_a_file_with_unread_keys_is_loaded_without_them(build, ragged, tmp_path):
    """Files of earlier versions hold them."""
    reader = build(["compressor=mean_pool"]).eval()
    document = reader.encode_contexts(ragged.rows([0]))[0]
    encoded = document.encoded
    tensors = {"states": encoded.states, "mask": encoded.mask, "ids": encoded.ids}
    pairs = {f"{name}.{layer}": torch.zeros(1, 1, 2, 8, 16) for name in ("keys", "values") for layer in (0, 1)}
    loaded = EncodedDocument.from_saved(reader, tensors | pairs, {})
    assert loaded.encoded.keys_values == [] and loaded.bytes == document.bytes
    questions, generation = ragged.rows([0, 1]), Generation(max_new_tokens=2)
    assert loaded.answer(questions, generation) == document.answer(questions, generation)
