"""What a reader holds of one text: asked any number of times, saved to a file, loaded in another process.

A compressor's memory depends on the question, so what serves every question is the document as it was encoded
(`EncodedDocument`); what is kept for one question is far smaller (`QuestionMemory`). Files are safetensors whose header
says of which reader they are. Shape letters: B questions, T context tokens, M slots, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from breviary.backbones.stack import Stack
from breviary.backbones.trainable import former_names, rename_parameter, trained_state
from breviary.contract import Batch, Compressor, Decoded, Encoded, EncodedContext, Generation, Memory, Tokens
from breviary.decoding.state import PrefilledMemory
from breviary.memory.encoded import join_contexts
from breviary.memory.trace import TokenSpan, spans_from_trace, trace_row
from breviary.readers.saved import read_saved, write_saved
from breviary.runtime.files import hash_tensors


class SlotReader(Protocol):
    """What a document needs of the reader that encoded it (readers/compressed.py)."""

    compressor: Compressor
    decoder: Stack
    tokenizer: Any
    identity: dict[str, Any] | None

    def decode(
        self,
        batch: Batch,
        generation: Generation,
        encoded: Encoded | None = None,
        memory: Memory | None = None,
        prefilled: PrefilledMemory | None = None,
    ) -> list[Decoded]:
        """As CompressedReader.decode."""

    def stream(
        self,
        batch: Batch,
        generation: Generation,
        encoded: Encoded | None = None,
        memory: Memory | None = None,
        prefilled: PrefilledMemory | None = None,
    ) -> Iterator[str]:
        """As CompressedReader.stream."""

    def memory(self, batch: Batch, encoded: Encoded | None = None) -> Memory:
        """As CompressedReader.memory."""

    def prefill(self, batch: Batch, encoded: Encoded) -> PrefilledMemory:
        """As CompressedReader.prefill."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As nn.Module.parameters."""


class EncodedDocument(EncodedContext):
    """A document as its compressor encoded it, whatever will be asked; encoded of batch size 1."""

    def __init__(self, reader: SlotReader, encoded: Encoded):
        self.reader, self.encoded = reader, encoded
        self.tokens_read = int((encoded.mask & (encoded.ids >= 0)).sum())
        self._prefilled: PrefilledMemory | None = None  # what the decoder holds, from the first question on

    def answer(self, questions: Batch, generation: Generation) -> list[str]:
        """As EncodedContext; all questions in one batch."""
        asked = _asked(self._tokens(), questions)
        return [one.text for one in self.reader.decode(asked, generation, **self._read(asked))]

    def stream(self, questions: Batch, generation: Generation) -> Iterator[str]:
        """As EncodedContext."""
        asked = _asked(self._tokens(), questions)
        return self.reader.stream(asked, generation, **self._read(asked))

    def _read(self, asked: Batch) -> dict[str, Any]:
        """What of the document is read already, for as many questions: where its memory needs none of them, the decoder reads it
        once."""
        if self.reader.compressor.needs_question:
            return {"encoded": join_contexts([self.encoded] * len(asked))}
        if self._prefilled is None:
            self._prefilled = self.reader.prefill(asked.rows([0]), self.encoded)
        return {"prefilled": PrefilledMemory.join([self._prefilled] * len(asked))}

    def memory(self, question: Batch) -> QuestionMemory:
        """The slots that this question's answer is read from, and why these."""
        [example] = question.examples
        memory = self.reader.memory(_asked(self._tokens(), question), self.encoded)
        return QuestionMemory(self.reader, memory, self.tokens_read, example.question, self._tokens().ids[0].tolist())

    def save(self, file: str | Path) -> int:
        """As EncodedContext: states, tokens and, where questions read on from the context, the encoder's keys and values."""
        encoded = self.encoded
        tensors = {"states": encoded.states, "mask": encoded.mask, "ids": encoded.ids.int()}
        for layer, pair in enumerate(encoded.keys_values):
            tensors |= {f"{name}.{layer}": x for name, x in zip(("keys", "values"), pair)}
        return write_saved(file, "document", reader_identity(self.reader), tensors, {})

    @classmethod
    def restored(cls, reader: SlotReader, tensors: dict[str, Tensor], header: Mapping[str, str]) -> EncodedDocument:
        """From a file's tensors, on the reader's device."""
        layers = sum(name.startswith("keys.") for name in tensors)
        pairs = [(tensors[f"keys.{i}"], tensors[f"values.{i}"]) for i in range(layers)]
        return cls(reader, Encoded(tensors["states"], tensors["mask"], tensors["ids"].long(), pairs))

    @property
    def bytes(self) -> int:
        """As EncodedContext."""
        parts = [self.encoded.states, self.encoded.mask, self.encoded.ids]
        return _size([*parts, *(x for pair in self.encoded.keys_values for x in pair)])

    def _tokens(self) -> Tokens:
        ids_1T = self.encoded.ids[self.encoded.mask & (self.encoded.ids >= 0)][None]
        return Tokens(ids_1T, torch.ones_like(ids_1T, dtype=torch.bool))


class QuestionMemory(EncodedContext):
    """What is kept of a document for one question: slots (of batch size 1) and the question.

    Another question may be asked too; the slots were chosen for this one. ids: of the document's tokens, where it was
    read in this process; parts says with them what became of the document.
    """

    def __init__(
        self, reader: SlotReader, memory: Memory, tokens_read: int, question: str, ids: list[int] | None = None
    ):
        slots = int(memory.mask.sum())  # left-packed
        positions = None if memory.positions is None else memory.positions[:, :slots]
        embeds = memory.embeds[:, :slots].to(reader.decoder.dtype)  # as they enter the stream
        self.slots = Memory(embeds, memory.mask[:, :slots], memory.layer, positions, trace=memory.trace)
        self.reader, self.tokens_read, self.question, self._ids = reader, tokens_read, question, ids

    def __len__(self) -> int:
        return self.slots.mask.shape[1]

    def answer(self, questions: Batch, generation: Generation) -> list[str]:
        """As EncodedContext; all questions in one batch."""
        B, slots = len(questions), self.slots
        positions = None if slots.positions is None else slots.positions.expand(B, -1)
        memory = Memory(slots.embeds.expand(B, -1, -1), slots.mask.expand(B, -1), slots.layer, positions)
        written = self.reader.decode(_asked(self._lengths(), questions), generation, memory=memory)
        return [one.text for one in written]

    def stream(self, questions: Batch, generation: Generation) -> Iterator[str]:
        """As EncodedContext."""
        return self.reader.stream(_asked(self._lengths(), questions), generation, memory=self.slots)

    def memory(self, question: Batch) -> QuestionMemory:
        """Raises: ValueError, as it was made for a question already."""
        raise ValueError(f"this memory was made for the question {self.question!r}; another one needs the document")

    def token_spans(self) -> list[tuple[TokenSpan, str]]:
        """What became of the document, in order: how each stretch of it was treated, and its text.

        Raises: ValueError for a memory from a file, which holds no tokens.
        """
        if self._ids is None:
            raise ValueError("a memory from a file holds no tokens of its document: look at it where it is made")
        segment_size = getattr(self.reader.compressor, "segment_size", None)
        tokenizer = self.reader.compressor.tokenizer or self.reader.tokenizer
        found, start = [], 0
        for part in spans_from_trace(self.tokens_read, trace_row(self.slots.trace, 0, 1), segment_size):
            found.append((part, tokenizer.decode(self._ids[start : start + part.tokens])))
            start += part.tokens
        return found

    def save(self, file: str | Path) -> int:
        """As EncodedContext: the slots alone."""
        tensors = {"embeds": self.slots.embeds}
        if self.slots.positions is not None:
            tensors["positions"] = self.slots.positions.int()
        more = {"tokens_read": str(self.tokens_read), "question": self.question}
        return write_saved(file, "memory", reader_identity(self.reader), tensors, more)

    @classmethod
    def restored(cls, reader: SlotReader, tensors: dict[str, Tensor], header: Mapping[str, str]) -> QuestionMemory:
        """From a file's tensors, on the reader's device."""
        embeds, positions = tensors["embeds"], tensors.get("positions")
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        memory = Memory(embeds, mask, reader.compressor.layer, None if positions is None else positions.long())
        return cls(reader, memory, int(header["tokens_read"]), header["question"])

    @property
    def bytes(self) -> int:
        """As EncodedContext."""
        return _size([self.slots.embeds] + ([] if self.slots.positions is None else [self.slots.positions]))

    def _lengths(self) -> Tokens:
        """Tokens of which nothing is known but their number, which says where the question stands."""
        ids_1T = torch.zeros(1, self.tokens_read, dtype=torch.int64, device=self.slots.mask.device)
        return Tokens(ids_1T, torch.ones_like(ids_1T, dtype=torch.bool))


KINDS = {"document": EncodedDocument, "memory": QuestionMemory}


def load_saved(reader: SlotReader, file: str | Path) -> EncodedDocument | QuestionMemory:
    """What a document or a memory of this very reader saved.

    Raises: ValueError as kept_file.read_saved.
    """
    header, tensors = read_saved(file, KINDS, reader_identity(reader))
    device = next(reader.parameters()).device
    return KINDS[header["kept"]].restored(reader, {name: x.to(device) for name, x in tensors.items()}, header)


def reader_identity(reader: SlotReader) -> dict[str, Any]:
    """What must be equal for what one reader kept to mean anything to another."""
    assert reader.identity is not None, "a reader that breviary.load_reader did not open"
    # Hashed under their first names, so that files of earlier versions still open.
    first = {new: old for old, new in former_names(reader).items()}
    weights = {rename_parameter(name, first): tensor for name, tensor in trained_state(reader).items()}
    return reader.identity | {
        "dtype": str(reader.decoder.dtype).removeprefix("torch."),
        "weights": hash_tensors(weights),
    }


def _asked(context: Tokens, questions: Batch) -> Batch:
    """The questions, each on the same context (1, T)."""
    rows = torch.zeros(len(questions), dtype=torch.int64, device=context.ids.device)
    return replace(questions, context=context.rows(rows))


def _size(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
