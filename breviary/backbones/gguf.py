"""Converts a GGUF file into a folder in Hugging Face format: weights in bfloat16, and the tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig, PreTrainedTokenizerFast, Qwen2Tokenizer

from breviary.backbones.recipes import Recipe

EMBEDDING, HEAD = "token_embd.weight", "output.weight"  # a GGUF's names


def convert_gguf(gguf: Path, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Dequantises every tensor in float32, rounds once to bfloat16, and writes weights and tokenizer to `folder`.

    Some files store tied embeddings twice, at different precisions; the finer copy becomes both.
    Returns facts for provenance.json: weights_of_type {GGUF tensor type: number of weights used}, note, and
    tied_embeddings, the copy used, where there are two.
    Raises: ValueError for another pre-tokenizer, or a file without a special token of the recipe.
    """
    reader = GGUFReader(gguf)
    tokenizer = _build_tokenizer(reader, recipe)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    facts: dict[str, Any] = {}
    unused: str | None = None
    if recipe.architecture.get("tie_word_embeddings") and HEAD in types:
        finer, unused = order_copies(types)
        _tie_embeddings(model, finer)
        facts["tied_embeddings"] = f"{finer} ({types[finer].name}), not {unused} ({types[unused].name})"
    special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.config.update(special)
    ends = tokenizer.convert_tokens_to_ids(list(recipe.end_tokens))
    model.generation_config = GenerationConfig(**special | {"eos_token_id": ends if len(ends) > 1 else ends[0]})
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights_of_type: Counter[str] = Counter()
    for tensor in reader.tensors:
        if tensor.name != unused:
            weights_of_type[tensor.tensor_type.name] += int(tensor.n_elements)
    return {"note": quantisation_note(weights_of_type), "weights_of_type": dict(weights_of_type), **facts}


def quantisation_note(weights_of_type: Mapping[str, int]) -> str:
    """E.g. '4-bit (Q4_1) weights dequantised to bfloat16', from the most frequent tensor type."""
    name = max(weights_of_type, key=weights_of_type.__getitem__)
    bits = re.match(r"I?Q(\d)", name)
    if bits:
        return f"{bits[1]}-bit ({name}) weights dequantised to bfloat16"
    return f"{name} weights as bfloat16"


def order_copies(types: Mapping[str, GGMLQuantizationType]) -> tuple[str, str]:
    """(finer, coarser) of EMBEDDING and HEAD by bits per weight; of two equal ones, EMBEDDING is the finer."""

    def bits_per_weight(name: str) -> float:
        weights, stored_bytes = GGML_QUANT_SIZES[types[name]]
        return 8 * stored_bytes / weights

    return (HEAD, EMBEDDING) if bits_per_weight(HEAD) > bits_per_weight(EMBEDDING) else (EMBEDDING, HEAD)


def _tie_embeddings(model: nn.Module, finer: str) -> None:
    """Input embedding and head become one tensor, with the values of the GGUF's tensor `finer`."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if finer == HEAD:
        embedding.weight = head.weight
    model.config.tie_word_embeddings = True  # transformers took two tensors for an untied model
    model.tie_weights()
    assert head.weight is embedding.weight, f"{type(model).__name__} did not tie its head to its embedding"


def _smollm_backend(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """SmolLM's: digits one by one, then GPT-2's rule."""
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _qwen2_backend(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Qwen2's, with its regular expression and Unicode normalisation (NFC)."""
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges).backend_tokenizer


# Value of the GGUF key tokenizer.ggml.pre: builds the tokenizer of a vocabulary and its merges.
PRE_TOKENIZERS: dict[str, Callable[[dict[str, int], list[tuple[str, str]]], Tokenizer]] = {
    "smollm": _smollm_backend,
    "qwen2": _qwen2_backend,
}


def _build_tokenizer(reader: GGUFReader, recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer from a GGUF's vocabulary, merges, token types and chat template.

    transformers also converts these tables. Release 5.17 ignores `tokenizer.ggml.pre` and splits like GPT-2: a blank
    line before a number becomes two tokens, which the model never saw there. Its tokenizers have no Unicode
    normalisation, and take BOS and end-of-text from the GGUF, which is not always the released tokenizer's.

    Raises: ValueError when the GGUF names another pre-tokenizer or lacks a special token.
    """

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return field.contents() if field else None

    if value("tokenizer.ggml.pre") != recipe.pre_tokenizer:
        raise ValueError(
            f"the GGUF's tokenizer.ggml.pre is {value('tokenizer.ggml.pre')!r}, allowed is {recipe.pre_tokenizer!r}"
        )
    entries = list(zip(value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type"), strict=True))
    # Rows that only pad the embedding have names such as [PAD151665], which are no tokens.
    vocabulary = {token: index for index, (token, kind) in enumerate(entries) if kind != TokenType.UNUSED}
    missing = sorted({*filter(None, recipe.special_tokens.values()), *recipe.end_tokens} - set(vocabulary))
    if missing:
        raise ValueError(f"the GGUF's vocabulary lacks {', '.join(missing)}, special tokens of {recipe.hub}")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    backend = PRE_TOKENIZERS[recipe.pre_tokenizer](vocabulary, merges)
    added = {TokenType.CONTROL: True, TokenType.USER_DEFINED: False}  # special tokens do not appear in answers
    for kind, special in added.items():
        tokens = [AddedToken(token, special=special, normalized=False) for token, found in entries if found == kind]
        (backend.add_special_tokens if special else backend.add_tokens)(tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=value("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=value(f"{value('general.architecture')}.context_length"),
        **recipe.special_tokens,
    )
