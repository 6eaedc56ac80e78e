"""What encoded contexts and memories require of their reader, and what identifies it in saved files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from breviary.backbones.stack import Stack
from breviary.backbones.trainable import former_names, rename_parameter, trained_state
from breviary.contract import Batch, Compressor, Decoded, Encoded, Generation, KeyValueMemory, Memory, Tokens
from breviary.decoding.shared_keys import SharedKeys
from breviary.runtime.files import hash_tensors

# A batch of contexts after one of the steps that a reader can start from.
ContextState = Encoded | Memory | SharedKeys


class SlotReader(Protocol):
    """What a document requires of its reader (readers/compressed.py)."""

    compressor: Compressor
    decoder: Stack
    tokenizer: Any
    identity: dict[str, Any] | None
    weights_hash: str | None

    def hash_weights(self) -> str | None:
        """As Reader.hash_weights."""

    def decode(self, batch: Batch, generation: Generation, contexts: ContextState | None = None) -> list[Decoded]:
        """As CompressedReader.decode."""

    def stream(self, batch: Batch, generation: Generation, contexts: ContextState | None = None) -> Iterator[str]:
        """As CompressedReader.stream."""

    def memory(self, batch: Batch, encoded: Encoded | None = None) -> Memory | KeyValueMemory:
        """As CompressedReader.memory."""

    def prefill(self, batch: Batch, contexts: Encoded | Memory) -> SharedKeys:
        """As CompressedReader.prefill."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As nn.Module.parameters."""


def reader_identity(reader: SlotReader) -> dict[str, Any]:
    """What must be equal for two readers to exchange saved documents and memories."""
    assert reader.identity is not None, "reader.identity is set by breviary.load_reader only"
    return reader.identity | {
        "dtype": str(reader.decoder.dtype).removeprefix("torch."),
        "weights": reader.weights_hash or reader.hash_weights(),
    }


def hash_trained(reader: nn.Module) -> str:
    """Hash of the trained weights under their first names, so that files of earlier versions still load."""
    first_names = {new: old for old, new in former_names(reader).items()}
    return hash_tensors({rename_parameter(name, first_names): x for name, x in trained_state(reader).items()})


def with_context(questions: Batch, context: Tokens) -> Batch:
    """The questions, each on the same context (1, T)."""
    rows = torch.zeros(len(questions), dtype=torch.int64, device=context.ids.device)
    return replace(questions, context=context.rows(rows), evidence=None, offsets=None, compressed=None)


def context_tokenizer(reader: SlotReader) -> Any:
    """The tokenizer of contexts."""
    return reader.compressor.tokenizer or reader.tokenizer


def total_bytes(tensors: list[Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
