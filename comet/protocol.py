"""What streams, sessions and pipelines use of a reader, so that none of them imports `comet.model`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from breviary.backbones.stack import Stack
from breviary.memory.assembly import Layout
from comet.chunked_text import Chunk, ChunkedText, Step
from comet.layers import MemoryLayers


class StreamReader(Protocol):
    """A reader as streams and context caches use it."""

    decoder: Stack
    memory: MemoryLayers
    chunk_size: int
    stride: int


class SessionReader(StreamReader, Protocol):
    """A reader as sessions use it."""

    tokenizer: Any
    fingerprint: Mapping[str, Any]  # of the backbone
    weights_hash: str | None

    def hash_weights(self) -> str | None:
        """As Reader.hash_weights."""

    def eval(self) -> Any:
        """The reader in evaluation mode."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All weights."""


class PipelineReader(Protocol):
    """A reader as pipelines use it."""

    decoder: Stack
    memory: MemoryLayers

    def prepare_chunks(self, text: ChunkedText) -> Iterator[Chunk]:
        """The chunks of a text, with their masks and layouts."""

    def embed_chunk(self, text: ChunkedText, chunk: Chunk) -> Tensor:
        """Hidden states before the first layer, (B, N, D)."""

    def chunk_nll(self, text: ChunkedText, step: Step, layout: Layout, states: Tensor, max_supervised: int) -> Tensor:
        """Nats of a chunk's supervised tokens, (B,), from its last hidden states (B, N, D)."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """All weights."""
