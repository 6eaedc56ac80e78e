"""Writes small GGUF files of one layer, as llama.cpp's converter does, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, INNER, HEADS, LAYERS = 32, 256, 2, 1  # 256: a row of K-quants
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Byte-level alphabet, then the results of two merges: a blank line, and " a".
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "ĊĊ", "Ġa"]

Raw = tuple[np.ndarray, GGMLQuantizationType]


def write_gguf(
    path: Path,
    pre: str = "smollm",
    family: str = "llama",
    more: dict[str, int] | None = None,
    raw: dict[str, Raw] | None = None,
) -> dict[str, torch.Tensor]:
    """Writes a model in float32 and returns the tensors that the converted model must have.

    family  llama | qwen2 (with biases)
    more    further tokens and their types
    raw     tensor name -> (bytes (rows, bytes per row), type): stored as they are
    """
    writer = GGUFWriter(path, family)
    tokens = {token: TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in TOKENS} | (more or {})
    _write_settings(writer, len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(tokens.values()))
    writer.add_token_merges(["Ċ Ċ", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    random = np.random.default_rng(0)
    raw = raw or {}
    tensors = {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in _shapes(len(tokens), family).items()
        if name not in raw
    }
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    for name, (stored_bytes, kind) in raw.items():
        writer.add_tensor(name, stored_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(values).bfloat16() for name, values in tensors.items()}


def _write_settings(writer: GGUFWriter, vocabulary: int) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)


def _shapes(vocabulary: int, family: str) -> dict[str, tuple[int, ...]]:
    biases = ("q", "k", "v") if family == "qwen2" else ()
    return {
        "token_embd.weight": (vocabulary, WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        **{f"blk.0.attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
        **{f"blk.0.attn_{name}.bias": (WIDTH,) for name in biases},
        "blk.0.ffn_gate.weight": (INNER, WIDTH),
        "blk.0.ffn_up.weight": (INNER, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, INNER),
    }
