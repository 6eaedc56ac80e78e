"""Which attention masks reach the kernel: one row, or rows of equal length, need none."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from breviary.backbones.attention import shared as shared_keys
from breviary.contract import Example, Generation
from breviary.readers.cache import ContextCache
from tests.forms import representative_forms
from tests.tiny import greedy_ids

FORMS = representative_forms()
EXAMPLE = Example("one", " ".join(["red blue green yellow black"] * 9), "What is the colour of the sun?", ("yellow",))


@pytest.fixture
def calls(monkeypatch):
    """(queries, keys, shape of the mask or None) of every call of the attention kernel."""
    recorded, plain = [], torch.nn.functional.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, **arguments):
        recorded.append((query.shape[2], key.shape[2], None if attn_mask is None else tuple(attn_mask.shape)))
        return plain(query, key, value, attn_mask=attn_mask, **arguments)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr("breviary.backbones.attention.causal.scaled_dot_product_attention", attention)

    def shared(query, key, value, attn_mask=None, **arguments):
        """One query of each row, whose grouped heads are in dimension 2."""
        recorded.append((1, key.shape[2], None if attn_mask is None else tuple(attn_mask.shape)))
        return attend(query, key, value, attn_mask=attn_mask, **arguments)

    attend = shared_keys._attend
    monkeypatch.setattr(shared_keys, "_attend", shared)
    return recorded


# Their heads keep different numbers of entries, or bias scores: each head has its own mask.
OWN_MASKS = ("adakv", "attention_matching", "kvzip", "sliding_window")


def check(calls):
    """No mask for a prefill or a decoding step; one that all heads share for several tokens after cached keys."""
    assert calls
    for queries, keys, mask in calls:
        assert mask is None if queries in (1, keys) else mask[1:] == (1, queries, keys), (queries, keys, mask)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", [name for name in FORMS if name not in OWN_MASKS])
def test_equal_rows_need_no_mask(build, name, rows, collate, calls):
    reader = build([*FORMS[name], "decoder.train=frozen"]).eval()
    batch = collate([replace(EXAMPLE, id=str(row)) for row in range(rows)])
    assert batch.context.ids.shape[1] % 16 and batch.prompt.ids.shape[1] % 16
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        reader.loss(batch)
        reader.decode(batch, Generation(max_new_tokens=12, min_new_tokens=12))
    check(calls)
    assert any(queries == 1 for queries, _, _ in calls)


@pytest.mark.parametrize("name", ["full_context", "mean_pool-depth"])
def test_a_context_of_a_ragged_batch_needs_no_mask_alone(build, name, collate, ragged_examples, calls):
    """Cached keys and values are cut to the row's length."""
    reader = build([*FORMS[name], "decoder.train=frozen"]).eval()
    reader.context_cache = ContextCache(8)
    greedy_ids(reader, collate(ragged_examples))
    assert any(mask == (5, 1, 1, keys) for _, keys, mask in calls)  # one row of keys for each example
    calls.clear()
    for example in ragged_examples:
        reader.decode(collate([example]), Generation(max_new_tokens=3, min_new_tokens=3))
    assert reader.context_cache.reused == [True]
    check(calls)


@pytest.mark.parametrize("name", ["full_context", "comi-depth", "comi-input"])
def test_ragged_prefills_need_no_mask(build, name, collate, ragged_examples, calls):
    """Rows are padded on the right, so that only the decoding steps have to skip the padding."""
    reader = build([*FORMS[name], "decoder.train=frozen"]).eval()
    reader.decode(collate(ragged_examples), Generation(max_new_tokens=3, min_new_tokens=3))
    for queries, keys, mask in calls:
        assert mask is None or queries < keys
    assert any(mask == (5, 1, 1, keys) for _, keys, mask in calls)
