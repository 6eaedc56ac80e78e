"""Warnings about settings that are allowed but leave nothing to measure: no compression, or only cut contexts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHARE = 0.1  # of the contexts, from which on short ones are worth a warning


def budget_notes(items: Any, settings: Mapping[str, Any]) -> list[str]:
    """Warnings about the memory size and the length limit for these contexts.

    items     a tokenised split: `lengths` in tokens, `num_truncated`, `num_gold_lost`
    settings  constructor arguments of the compressor
    """
    notes, count = [], len(items.lengths)
    ratio, slots = settings.get("ratio"), settings.get("slots")
    compresses = settings.get("keep") not in ("all", "none")  # full_context, no_context
    reads_closely = {"keep", "segment_size"} <= settings.keys()  # RAM: floor(segments / ratio) segments stay whole
    if compresses and ratio and slots is None and reads_closely and settings.get("budget") != "strict":
        size = settings["segment_size"]
        few = [length for length in items.lengths if 0 < -(-length // size) < ratio]
        if len(few) >= max(1, SHARE * count):
            notes.append(
                f"warning: compressor.ratio={ratio:g} is above the number of segments (compressor.segment_size={size}) "
                f"of {len(few)} of {count} contexts (the longest of these has {max(few)} tokens): no segment is read "
                "closely, each becomes a vector; lower the ratio or the segment size"
            )
    elif compresses and ratio and slots is None:
        short = [length for length in items.lengths if 0 < length < ratio]
        if len(short) >= max(1, SHARE * count):
            notes.append(
                f"warning: compressor.ratio={ratio:g} is above the length of {len(short)} of {count} contexts (the "
                f"longest of these has {max(short)} tokens): at most one slot {'a segment ' if reads_closely else ''}"
                "is left of each; lower the ratio"
            )
    if compresses and slots is not None:
        short = [length for length in items.lengths if 0 < length <= slots]
        if len(short) >= max(1, SHARE * count):
            notes.append(
                f"warning: compressor.slots={slots} is at least the length of {len(short)} of {count} contexts: these "
                "are not compressed; set fewer slots"
            )
    if count and items.num_truncated == count:
        notes.append(
            f"warning: all {count} contexts were cut, to at most {max(items.lengths)} tokens, and "
            f"{items.num_gold_lost} lost their gold; see limits.max_context_tokens and the backbone's positions"
        )
    return notes
