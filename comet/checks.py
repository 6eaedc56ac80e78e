"""Checks of CoMeT's settings, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from breviary.backbones.pretrained import usable_positions
from comet.chunking import STRATEGIES
from comet.layers import BACKENDS
from comet.memory import INITS

SUPERVISED = ("answer", "text")
# {key: (lowest value, example)}
LOWEST = {
    "chunk_size": (1, 2048),
    "stride": (1, 8),
    "global_slots": (0, 512),
    "queue_budget": (0, 2048),
    "adapter_rank": (1, 8),
    "new_token_logits": (0, 0),
    "most_chunks": (1, 16),
    "smallest_chunk": (1, 4),
}


def check_settings(settings: Mapping[str, Any], backbone: Any) -> list[str]:
    """Error messages for the keys compressor.*, each with the allowed values and an example."""
    problems = []
    for key, (lowest, example) in LOWEST.items():
        if settings[key] < lowest:
            problems.append(f"compressor.{key}={settings[key]}: must be at least {lowest}, e.g. {example}")
    choices = {"backend": BACKENDS, "strategy": STRATEGIES, "supervise": SUPERVISED, "adapter_init": INITS}
    for key, values in choices.items():
        if settings[key] not in values:
            problems.append(f"compressor.{key}={settings[key]}: allowed are {', '.join(values)}")
    for key, default in (("eps", "1e-6"), ("memory_rate", "5.0")):
        if settings[key] <= 0:
            problems.append(f"compressor.{key}={settings[key]}: must be above 0, e.g. {default}")
    if settings["truncate_every"] is not None and settings["truncate_every"] < 1:
        problems.append(
            f"compressor.truncate_every={settings['truncate_every']}: must be at least 1 chunk, or null for none"
        )
    return problems or _layout_problems(settings, usable_positions(backbone.config))


def _layout_problems(settings: Mapping[str, Any], positions: int) -> list[str]:
    """Error messages for sizes that do not fit each other or the backbone's positions."""
    problems = []
    c, s, G, B = (settings[key] for key in ("chunk_size", "stride", "global_slots", "queue_budget"))
    widest = settings["widest_stride"]
    if c % s:
        problems.append(
            f"compressor.chunk_size={c}: must be a multiple of compressor.stride={s}, e.g. {s * max(c // s, 1)}"
        )
    if 0 < B < c // s:
        problems.append(
            f"compressor.queue_budget={B}: must hold one chunk's {c // s} compression slots "
            f"(chunk_size / stride), e.g. {c // s}, or 0 for no queue"
        )
    if widest is not None and (widest < s or c % widest):
        problems.append(
            f"compressor.widest_stride={widest}: must be a divisor of compressor.chunk_size={c} of at least "
            f"compressor.stride={s}, e.g. {c if c % (2 * s) else 2 * s}, or null"
        )
    if settings["smallest_chunk"] > c:
        problems.append(
            f"compressor.smallest_chunk={settings['smallest_chunk']}: must be at most compressor.chunk_size={c}, e.g. 4"
        )
    columns = 2 * G + B + c + (c // s if B else 0)
    if columns > positions:
        size = _fitting(positions, s)
        problems.append(
            f"compressor: a chunk needs 2 * global_slots + queue_budget + chunk_size + chunk_size / stride = {columns} "
            f"positions, the backbone has {positions}; e.g. compressor.chunk_size={size} "
            f"compressor.global_slots={size // 4} compressor.queue_budget={size}"
        )
    return problems


def _fitting(positions: int, stride: int) -> int:
    """A chunk size c such that c tokens, c queue slots and c / 4 global slots fit."""
    return max(positions // 4 // stride * stride, stride)
