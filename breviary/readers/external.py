"""Contexts that another tool has compressed to text: any foreign compressor as a row of our table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Compressor, Context, Encoded, Memory, Question
from breviary.memory.assembly import Layout
from breviary.readers.keep_tokens import embedded_context


class External(Compressor):
    """Reads field `compressed_context` of the data in place of the context, as plain text, whatever its length.

    Its tokens are the slots that the footprint counts; the context is not read. The time of the other tool is not in
    our times.
    """

    def __init__(self, backbone: Backbone | TinyBackbone, decoder: Stack):
        super().__init__()
        self._decoder = (decoder,)

    def encode(self, context: Context) -> Encoded:
        """Token embeddings of the context, which only its length is taken from."""
        return embedded_context(self._decoder[0], context)

    def compress(self, encoded: Encoded, question: Question) -> Memory:
        """Embeddings of the compressed text. Raises: ValueError where a context has tokens, but the batch no text."""
        compressed = question.compressed
        if compressed is None:
            if bool(encoded.mask.any()):
                raise ValueError(
                    "compressor=external: this context has no compressed text; give the field compressed_context in "
                    "the data (docs/own_data.md)"
                )
            states = encoded.states[:, 0, :0]
            return Memory(states, encoded.mask[:, 0, :0])
        layout = Layout.of([compressed.mask], round_to=1)
        return Memory(layout.pack([self._decoder[0].embed(compressed.ids)]), layout.mask)

    @property
    def requested_ratio(self) -> float | None:
        """None: the other tool's."""
        return None

    @classmethod
    def data_problems(cls, settings: Mapping[str, Any], name: str, items: Any, positions: int) -> list[str]:
        """Examples without compressed text, and texts that do not fit."""
        missing = [e.id for e in items.examples if e.context and e.compressed_context is None]
        if missing:
            return [
                f"dataset {name}: {len(missing)} of {len(items.examples)} examples have no compressed_context (first "
                f"id: {missing[0]!r}), which compressor=external reads; add the field to each line "
                "(docs/own_data.md), or choose another compressor, e.g. compressor=bm25"
            ]
        tokens = [length + other for length, other in zip(items.compressed_lengths, items.other_lengths)]
        longest = max(tokens, default=0)
        if longest <= positions:
            return []
        return [
            f"dataset {name}: compressed_context, prefix, question and answer take up to {longest} tokens, and the "
            f"backbone has {positions} positions for them; shorten compressed_context"
        ]
