"""Readers of configs/compressor for tests that run over all of them."""

from __future__ import annotations

import pytest

from breviary.config.build import compressor_forms

# YAMLs whose class runs in these tests under another YAML: one that reads the question (bm25) and one that runs a
# language model without it (llmlingua). tests/contract/test_text_selections.py covers what differs.
LIGHT = ("bm25_sentences", "dense", "external", "gold", "longllmlingua", "random_text", "selective_context")
# Scorers of one class: here run one that reads the question (snapkv) and one with biases and a mask for each head
# (attention_matching). test_cache_selection.py runs all, test_windowed.py both of windowed attention.
LIGHT_CACHE = (
    "adakv",
    "expected_attention",
    "h2o",
    "keydiff",
    "knorm",
    "kvzip",
    "pyramidkv",
    "random_cache",
    "streaming_llm",
    "tova",
    "transformer_xl",
)
FROZEN = ["decoder.train=frozen"]  # saves the time to build adapters, where they have no effect


def representative_forms(only_compressors: bool = False) -> dict[str, list[str]]:
    """`compressor_forms` without those that run in other tests."""
    return {
        name: words for name, words in compressor_forms(only_compressors).items() if name not in LIGHT + LIGHT_CACHE
    }


def each(forms: dict[str, list[str]]) -> pytest.MarkDecorator:
    """Parametrises a test by `overrides`, one for each form."""
    return pytest.mark.parametrize("overrides", forms.values(), ids=forms.keys())
