"""Converts a GGUF file into a folder in Hugging Face format: weights in bfloat16, and the tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig, PreTrainedTokenizerFast

CONTROL_TOKEN = 3  # a value of the GGUF enumeration of token types


def convert_gguf(gguf: Path, pre_tokenizer: str, folder: Path) -> dict[str, int]:
    """Dequantises every tensor in float32, rounds once to bfloat16, and writes weights and tokenizer to `folder`.

    pre_tokenizer  value that the GGUF's key tokenizer.ggml.pre must have
    Returns {GGUF tensor type: number of weights}. Raises: ValueError for another pre-tokenizer.
    """
    reader = GGUFReader(gguf)
    tokenizer = _build_tokenizer(reader, pre_tokenizer)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.config.update(special)
    model.generation_config = GenerationConfig(**special)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights_of_type: Counter[str] = Counter()
    for tensor in reader.tensors:
        weights_of_type[tensor.tensor_type.name] += int(tensor.n_elements)
    return dict(weights_of_type)


def quantisation_note(weights_of_type: dict[str, int]) -> str:
    """E.g. '4-bit (Q4_1) weights dequantised to bfloat16', from the most frequent tensor type."""
    name = max(weights_of_type, key=weights_of_type.__getitem__)
    bits = re.match(r"I?Q(\d)", name)
    if bits:
        return f"{bits[1]}-bit ({name}) weights dequantised to bfloat16"
    return f"{name} weights as bfloat16"


def _build_tokenizer(reader: GGUFReader, pre_tokenizer: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer from a GGUF's vocabulary, merges, special tokens and chat template.

    transformers also converts these tables, but ignores `tokenizer.ggml.pre` and splits like GPT-2: a blank line before
    a number becomes two tokens, which the model never saw there. Release 5.17 also takes the wrong end-of-text token.

    Raises: ValueError when the GGUF names another pre-tokenizer.
    """

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return field.contents() if field else None

    if value("tokenizer.ggml.pre") != pre_tokenizer:
        raise ValueError(
            f"the GGUF's tokenizer.ggml.pre is {value('tokenizer.ggml.pre')!r}, allowed is {pre_tokenizer!r}"
        )
    tokens = value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, value("tokenizer.ggml.token_type"), strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    special = {
        f"{role}_token": tokens[value(f"tokenizer.ggml.{key}_token_id")]
        for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=value("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=value(f"{value('general.architecture')}.context_length"),
        **special,
    )
