"""Baselines that keep text and share one class: what each YAML adds to the contract of bm25 and llmlingua.

Each is built once: a batch equals batches of one (loss and answers), with the rows' own marks; the slots are exactly
ceil(tokens / ratio); a saved and loaded reader has no weights of its own; the context cache changes nothing.
"""

from dataclasses import replace

import pytest
import torch

from breviary.config.build import compressor_forms
from breviary.contract import Document
from breviary.readers.cache import ContextCache
from breviary.readers.external import External
from tests.forms import LIGHT
from tests.tiny import greedy_ids

SMALL = {"dense": ["compressor.relevance.layers=2"]}


@pytest.fixture(scope="module")
def marked(ragged_examples):
    """The ragged examples, each with a gold passage and a compressed context."""
    return [
        replace(
            example,
            documents=example.documents or (Document("", 0, len(example.context), True),),
            compressed_context=example.context[: 5 + row],
        )
        for row, example in enumerate(ragged_examples)
    ]


def test_every_light_yaml_exists():
    assert set(LIGHT) <= compressor_forms().keys()


@pytest.mark.parametrize("name", LIGHT)
def test_rows_are_independent_and_the_budget_is_exact(build, name, marked, collate):
    reader = build([f"compressor={name}", "decoder.train=frozen", *SMALL.get(name, [])]).eval()
    assert [n for n, weight in reader.named_parameters() if weight.requires_grad] == []
    batch, alone = collate(marked), [collate([example]) for example in marked]
    with torch.no_grad():
        single, ids = [reader.loss(one) for one in alone], [greedy_ids(reader, one)[0] for one in alone]
        for together in (batch, collate(marked, side="left")):
            output = reader.loss(together)
            torch.testing.assert_close(output.nll, torch.cat([one.nll for one in single]), rtol=1e-5, atol=0)
            assert greedy_ids(reader, together) == ids
        reader.context_cache = ContextCache(capacity=3)
        torch.testing.assert_close(reader.loss(batch).nll, output.nll, rtol=1e-5, atol=1e-6)
        assert greedy_ids(reader, batch) == ids
    lengths = batch.compressed.lengths if isinstance(reader.compressor, External) else -(-batch.context.lengths // 4)
    assert output.slots.tolist() == lengths.tolist()
    per_slot = reader.decoder.key_value_bytes(4)
    assert reader.footprint(batch).memory_bytes.tolist() == (lengths * per_slot).tolist()
