"""Windowed attention: baselines that encode a long context with attention to its most recent tokens.

Shape letters: B contexts, S columns of [prefix ; context], N columns of a block, J key/value heads, d head width.

sliding window   every token attends to itself and to the W - 1 tokens before it
Transformer-XL   (arXiv 1901.02860) the text is cut into segments; a token attends to its segment's tokens up to itself
                 and to the W - segment tokens before the segment, through which no gradient passes
Prompt and answer attend to the context tokens that the next context token would attend to, and causally to each other.
With a window as long as the text, the reader equals the plain backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Compressor, Context, Encoded, KeyValueMemory, Question
from breviary.memory.assembly import Layout
from breviary.memory.columns import Columns
from breviary.memory.kept_keys import KeptKeys

BLOCK = 1024  # fewest columns that a sliding window processes at once

Pair = tuple[Tensor, Tensor]


class Windowed(Compressor):
    """Keys and values of the last tokens of a context, computed with windowed attention in every layer.

    window   W: tokens that a token attends to at most, itself included
    segment  tokens of a Transformer-XL segment, at most W; None = a sliding window
    Cost: all layers on every token, with attention to about W tokens. Memory: all keys and values during encoding, and
    those of at most W tokens afterwards. Positions are not reset at segments or windows.
    Deviations: CoMeT's paper (2602.01766) compares with both and does not publish its code. Here prompt and answer
    evict no tokens from the window, and Transformer-XL uses the backbone's rotary positions.
    """

    keeps_cache, has_weights, needs_question, has_blocks = True, False, False, True

    def __init__(
        self, backbone: Backbone | TinyBackbone, decoder: Stack, window: int = 5120, segment: int | None = None
    ):
        super().__init__()
        self.window, self.segment, self._decoder = window, segment, (decoder,)

    @property
    def requested_ratio(self) -> None:
        """None: the window is a number of tokens."""
        return None

    def encode(self, context: Context) -> Encoded:
        """Keys and values of [prefix ; context] in every layer. Ids are -1 on the prefix; states have width 0."""
        decoder = self._decoder[0]
        layout = Layout.of([context.prefix.mask, context.mask])
        positions, width = layout.positions(), layout.mask.shape[1]
        ids = layout.pack([context.prefix.ids, context.ids])
        block = self.segment or max(self.window, BLOCK)
        parts: list[list[Pair]] = [[] for _ in range(len(decoder))]  # of each layer, by block
        for start in range(0, width, block):
            columns = slice(start, min(start + block, width))
            self._run_block(decoder.embed(ids[:, columns]), positions[:, columns], start, parts)
        pairs = [tuple(torch.cat(blocks, 2)[:, None] for blocks in zip(*layer)) for layer in parts]
        marked = layout.pack([torch.full_like(context.prefix.ids, -1), context.ids])
        states = decoder.embed_tokens.weight.new_zeros(*ids.shape, 0, dtype=decoder.dtype)
        return Encoded(states[:, None], layout.mask[:, None], marked[:, None], pairs, [])

    def _run_block(self, states: Tensor, positions: Tensor, start: int, parts: list[list[Pair]]) -> None:
        """Columns from `start` on through all layers; appends each layer's new keys and values to its `parts`.

        states  (B, N, D) input embeddings
        """
        decoder = self._decoder[0]
        seen = min(start, self.window - (self.segment or 1))  # earlier columns visible to the block's first column
        inputs = decoder.attention_inputs(states, positions)
        inputs["attention_mask"] = self._mask(states, seen)
        for index in range(len(decoder)):
            cache = _EarlierKeys(self._earlier(parts[index], seen))
            if index < len(decoder) - 1:
                states = decoder.run_layer(index, states, inputs, cache)
                assert cache.new is not None  # set by run_layer
                parts[index].append(cache.new)
            else:  # of the last layer only keys and values are used
                parts[index].append(decoder.keys_values(index, states, positions))

    def _earlier(self, blocks: list[Pair], seen: int) -> Pair | None:
        """The last `seen` keys and values of earlier blocks, detached with segments."""
        if not seen:
            return None
        taken: list[Pair] = []
        for pair in reversed(blocks):
            taken.insert(0, pair)
            if sum(keys.shape[2] for keys, _ in taken) >= seen:
                break
        keys, values = (torch.cat(tensors, 2)[:, :, -seen:] for tensors in zip(*taken))
        return (keys.detach(), values.detach()) if self.segment else (keys, values)

    def _mask(self, states: Tensor, seen: int) -> Tensor | None:
        """Mask (1, 1, N, seen + N) of a block's attention as its kernel expects it; None = plain causal."""
        decoder, N = self._decoder[0], states.shape[1]
        is_eager = decoder.config._attn_implementation == "eager"
        if not seen and (self.segment or self.window >= N) and not is_eager:
            return None
        keys = torch.arange(-seen, N, device=states.device)
        queries = torch.arange(N, device=states.device)[:, None]
        visible = keys <= queries
        if not self.segment:
            visible &= queries - keys < self.window
        if not is_eager:
            return visible[None, None]
        zeros = torch.zeros((), dtype=states.dtype, device=states.device)
        return zeros.masked_fill(~visible, torch.finfo(states.dtype).min)[None, None]

    def compress(self, encoded: Encoded, question: Question) -> KeyValueMemory:
        """Keeps the tokens that the next token would attend to."""
        columns = Columns.of(encoded.mask[:, 0], encoded.ids[:, 0])
        lengths_B1 = columns.lengths[:, None]
        if self.segment:
            open_B1 = (lengths_B1 - 1).clamp(min=0) // self.segment * self.segment  # start of the last segment
            first_B1 = open_B1 - (self.window - self.segment)
        else:
            first_B1 = lengths_B1 - (self.window - 1)
        column = torch.arange(encoded.mask.shape[-1], device=encoded.mask.device)
        kept_BS = columns.valid & (column >= first_B1)
        heads = encoded.keys_values[0][0].shape[2]
        kept_BJS = kept_BS[:, None].expand(-1, heads, -1)
        layers = [KeptKeys.select(keys[:, 0], values[:, 0], kept_BJS) for keys, values in encoded.keys_values]
        kept_BT = columns.context(kept_BS) & columns.mask
        return KeyValueMemory(layers, kept_BT.sum(1), trace={"kept_share": kept_BT.float()})

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for window and segment."""
        window, segment = settings["window"], settings["segment"]
        if window < 1:
            return [f"compressor.window={window}: must be at least 1 token, e.g. 5120"]
        if segment is not None and not 1 <= segment <= window:
            return [
                f"compressor.segment={segment}: must be from 1 to compressor.window={window} tokens, e.g. "
                f"{max(window // 2, 1)}, or null for a sliding window"
            ]
        return []


class _EarlierKeys:
    """Cache for one call of one layer: prepends earlier keys and values and records the new ones; never appends."""

    def __init__(self, earlier: Pair | None) -> None:
        self.earlier = earlier
        self.new: Pair | None = None

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Pair:
        """Earlier and new keys, then earlier and new values, each (B, J, K, d)."""
        self.new = keys, values
        if self.earlier is None:
            return keys, values
        return tuple(torch.cat([old.to(new.dtype), new], 2) for old, new in zip(self.earlier, self.new))
