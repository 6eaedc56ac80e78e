"""Speed of the backend kv_prefix against scatter: one steady chunk through two layers of a published width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from breviary.backbones.attention import BLOCKWISE
from breviary.backbones.stack import Stack
from breviary.evaluation.table import TABLE_WIDTH, print_block
from breviary.evaluation.timing import measure_alternating, median_ratio
from comet.layers import MemoryLayers
from comet.layout import chunk_layout
from comet.memory import MemoryState

SHAPES = {
    "qwen3_4b": dict(
        hidden_size=2560, intermediate_size=9728, num_attention_heads=32, num_key_value_heads=8, head_dim=128
    ),
    "smollm2_135m": dict(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64
    ),
}
PUBLISHED = dict(c=2048, s=8, G=512, B=2048)  # chunk size, stride, global slots, queue budget


@torch.no_grad()
def measure_backends(shape: str, runs: int) -> dict[str, Any]:
    """One row: median seconds and ratio of both backends, alternating, with random weights and a full memory."""
    config = AutoConfig.for_model(
        "qwen3", vocab_size=512, num_hidden_layers=2, max_position_embeddings=8192, **SHAPES[shape]
    )
    config._attn_implementation = BLOCKWISE
    torch.manual_seed(0)
    stack = Stack(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)).eval()
    stack.config.dtype = torch.bfloat16
    c, s, G, B = PUBLISHED.values()
    ids, updates, stride = torch.randint(0, 512, (1, c)), torch.tensor([True]), torch.tensor([s])
    layout = chunk_layout(torch.ones_like(ids, dtype=torch.bool), 0 * stride, updates, stride, c // s, G)
    calls = {}
    for backend in ("scatter", "kv_prefix"):
        torch.manual_seed(1)
        layers = MemoryLayers(stack, G, B, backend)
        embeds, memory = layers.embed(stack.embed(ids), layout), MemoryState.empty(1, ids.device)
        for _ in range(B // (c // s)):  # until the queue is full
            _, memory, _ = layers.run(stack, embeds, layout, memory, updates)
        calls[backend] = lambda layers=layers, embeds=embeds, memory=memory: layers.run(
            stack, embeds, layout, memory, updates
        )
    measured = measure_alternating(calls, runs)
    return {
        "shape": shape,
        **PUBLISHED,
        **{f"{name}_s": one.median_seconds for name, one in measured.items()},
        "speedup": median_ratio(measured["scatter"].seconds, measured["kv_prefix"].seconds),
        "bound": multiplications_ratio(SHAPES[shape]),
    }


def multiplications_ratio(shape: dict[str, int]) -> float:
    """Multiplications of scatter per multiplication of kv_prefix in a steady chunk, without masked ones."""
    c, s, G, B = PUBLISHED.values()
    D, kv = shape["hidden_size"], shape["num_key_value_heads"] * shape["head_dim"]
    q = shape["num_attention_heads"] * shape["head_dim"]
    slots, columns = G + B, c + c // s + G
    linear = 2 * D * q + 2 * D * kv + 3 * D * shape["intermediate_size"]  # per row
    causal = lambda n: n * (n + 1) // 2 * 2 * q  # scores and weighted sums over n rows
    scatter = (slots + columns) * linear + causal(slots + columns)
    prefix = columns * linear + slots * 2 * D * kv + causal(columns) + columns * slots * 2 * q
    return scatter / prefix


def print_backends(rows: Sequence[dict[str, Any]]) -> None:
    """Prints one table."""
    print("A steady chunk, two layers: scatter / kv_prefix")
    print_block(
        Console(width=TABLE_WIDTH),
        ("shape", "scatter s", "kv_prefix s", "speedup", "by multiplications"),
        [
            [
                row["shape"],
                f"{row['scatter_s']:.3f}",
                f"{row['kv_prefix_s']:.3f}",
                f"{row['speedup']:.2f}x",
                f"{row['bound']:.2f}x",
            ]
            for row in rows
        ],
    )
