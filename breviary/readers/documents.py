"""A single context as a reader holds it: answers any number of questions, is saved to a file and loaded elsewhere.

A compressor's memory depends on the question. So the encoded context serves every question (`EncodedDocument`), and the
much smaller memory of one question is a class of its own (`QuestionMemory`). Files are safetensors with a header that
identifies the reader (readers/saved.py). Shape letters: B questions, T context tokens, M slots, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from breviary.contract import Batch, Encoded, EncodedContext, Generation, KeyValueMemory, Memory, Tokens
from breviary.decoding.shared_keys import SharedKeys, join_shared
from breviary.memory.encoded_batches import join_contexts
from breviary.memory.trace import TokenSpan, spans_from_trace, trace_row
from breviary.readers.key_value_documents import KeyValueDocument
from breviary.readers.saved import read_saved, write_saved
from breviary.readers.slot_reader import (
    ContextState,
    SlotReader,
    context_tokenizer,
    reader_identity,
    total_bytes,
    with_context,
)
from breviary.readers.views import Described, context_facts, opening, slots_in_words


class EncodedDocument(Described, EncodedContext):
    """A context encoded by a compressor, for any question. `encoded` has batch size 1."""

    reader: SlotReader

    def __init__(self, reader: SlotReader, encoded: Encoded):
        self.reader, self.encoded = reader, encoded
        self.tokens_read = int((encoded.mask & (encoded.ids >= 0)).sum())
        self._prefilled: SharedKeys | None = None  # computed with the first question

    def answer(self, questions: Batch, generation: Generation) -> list[str]:
        """As EncodedContext; all questions in one batch."""
        batch = with_context(questions, self._tokens())
        return [answer.text for answer in self.reader.decode(batch, generation, self._context_state(batch))]

    def stream(self, questions: Batch, generation: Generation) -> Iterator[str]:
        """As EncodedContext."""
        batch = with_context(questions, self._tokens())
        return self.reader.stream(batch, generation, self._context_state(batch))

    def _context_state(self, batch: Batch) -> ContextState:
        """This context for each row of the batch; prefilled where its memory does not depend on the question."""
        # The last token of a prompt predicts the answer: without a prompt, the last slot does.
        if self.reader.compressor.needs_question or not batch.prompt.mask.any(1).all():
            return join_contexts([self.encoded] * len(batch))
        if self._prefilled is None:
            self._prefilled = self.reader.prefill(batch.rows([0]), self.encoded)
        return join_shared([self._prefilled] * len(batch))

    def memory(self, question: Batch) -> QuestionMemory | KeyValueDocument:
        """The memory for the question of a batch of one."""
        [example] = question.examples
        memory = self.reader.memory(with_context(question, self._tokens()), self.encoded)
        if isinstance(memory, KeyValueMemory):
            return KeyValueDocument(self.reader, memory, self.tokens_read, example.question)
        return QuestionMemory(self.reader, memory, self.tokens_read, example.question, self._tokens().ids[0].tolist())

    def save(self, file: str | Path) -> int:
        """As EncodedContext: states, tokens and, where questions attend to them, the encoder's keys and values."""
        encoded = self.encoded
        tensors = {"states": encoded.states, "mask": encoded.mask, "ids": encoded.ids.int()}
        for layer, pair in enumerate(encoded.keys_values):
            tensors |= {f"{name}.{layer}": x for name, x in zip(("keys", "values"), pair)}
        tensors |= {f"observed.{layer}": x for layer, x in enumerate(encoded.observed)}
        return write_saved(file, "document", reader_identity(self.reader), tensors, {})

    @classmethod
    def from_saved(cls, reader: SlotReader, tensors: dict[str, Tensor], header: Mapping[str, str]) -> EncodedDocument:
        """From a file's tensors, which are on the reader's device."""
        # Earlier versions stored keys and values that a compressor without a question never reads.
        layers = sum(name.startswith("keys.") for name in tensors) if reader.compressor.needs_question else 0
        pairs = [(tensors[f"keys.{i}"], tensors[f"values.{i}"]) for i in range(layers)]
        observed = [tensors[f"observed.{i}"] for i in range(sum(name.startswith("observed.") for name in tensors))]
        return cls(reader, Encoded(tensors["states"], tensors["mask"], tensors["ids"].long(), pairs, observed))

    @property
    def bytes(self) -> int:
        """As EncodedContext."""
        return self.encoded.bytes

    def facts(self) -> dict[str, str]:
        """As Described."""
        if self._prefilled is not None:
            slots = slots_in_words(int(self._prefilled.slots[0]), self.tokens_read)
        else:
            slots = f"computed {'for each' if self.reader.compressor.needs_question else 'at the first'} question"
        begins = opening(context_tokenizer(self.reader), self._tokens().ids[0].tolist())
        return {"begins": begins, **context_facts(self, slots)}

    def _tokens(self) -> Tokens:
        ids_1T = self.encoded.ids[self.encoded.mask & (self.encoded.ids >= 0)][None]
        return Tokens(ids_1T, torch.ones_like(ids_1T, dtype=torch.bool))


class QuestionMemory(Described, EncodedContext):
    """The memory of a context for one question: slots (batch size 1) and the question.

    It answers other questions too, from slots that were computed for its own.
    ids  of the context's tokens, for `token_spans`; None for a memory from a file
    """

    reader: SlotReader

    def __init__(
        self, reader: SlotReader, memory: Memory, tokens_read: int, question: str, ids: list[int] | None = None
    ):
        slots = int(memory.mask.sum())  # left-packed
        positions = None if memory.positions is None else memory.positions[:, :slots]
        embeds = memory.embeds[:, :slots].to(reader.decoder.dtype)  # the dtype in which they enter the stream
        self.slots = Memory(embeds, memory.mask[:, :slots], memory.layer, positions, trace=memory.trace)
        self.reader, self.tokens_read, self.question, self._ids = reader, tokens_read, question, ids

    def __len__(self) -> int:
        return self.slots.mask.shape[1]

    def answer(self, questions: Batch, generation: Generation) -> list[str]:
        """As EncodedContext; all questions in one batch."""
        batch = with_context(questions, self._placeholder_tokens())
        return [answer.text for answer in self.reader.decode(batch, generation, self._context_state(batch))]

    def _context_state(self, batch: Batch) -> ContextState:
        """The slots for each row of the batch; several questions share their keys and values."""
        B, slots = len(batch), self.slots
        # The last token of a prompt predicts the answer: without a prompt, the last slot does.
        if B > 1 and bool(batch.prompt.mask.any(1).all()):
            return join_shared([self.reader.prefill(batch.rows([0]), slots)] * B)
        positions = None if slots.positions is None else slots.positions.expand(B, -1)
        return Memory(slots.embeds.expand(B, -1, -1), slots.mask.expand(B, -1), slots.layer, positions)

    def stream(self, questions: Batch, generation: Generation) -> Iterator[str]:
        """As EncodedContext."""
        return self.reader.stream(with_context(questions, self._placeholder_tokens()), generation, self.slots)

    def memory(self, question: Batch) -> QuestionMemory:
        """Raises: ValueError, as this is the memory for a question already."""
        raise ValueError(f"this memory was made for the question {self.question!r}; another one needs the document")

    def token_spans(self) -> list[tuple[TokenSpan, str]]:
        """How each span of the context was compressed, and its text, in order.

        Raises: ValueError for a memory from a file, which holds no tokens.
        """
        if self._ids is None:
            raise ValueError(
                "a memory from a file holds no tokens of its document; call token_spans on the memory before saving it"
            )
        segment_size = getattr(self.reader.compressor, "segment_size", None)
        tokenizer = context_tokenizer(self.reader)
        spans, start = [], 0
        for span in spans_from_trace(self.tokens_read, trace_row(self.slots.trace, 0, 1), segment_size):
            spans.append((span, tokenizer.decode(self._ids[start : start + span.tokens])))
            start += span.tokens
        return spans

    def save(self, file: str | Path) -> int:
        """As EncodedContext: the slots, without the context's tokens."""
        tensors = {"embeds": self.slots.embeds}
        if self.slots.positions is not None:
            tensors["positions"] = self.slots.positions.int()
        header_entries = {"tokens_read": str(self.tokens_read), "question": self.question}
        return write_saved(file, "memory", reader_identity(self.reader), tensors, header_entries)

    @classmethod
    def from_saved(cls, reader: SlotReader, tensors: dict[str, Tensor], header: Mapping[str, str]) -> QuestionMemory:
        """From a file's tensors, which are on the reader's device."""
        embeds, positions = tensors["embeds"], tensors.get("positions")
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        memory = Memory(embeds, mask, reader.compressor.layer, None if positions is None else positions.long())
        return cls(reader, memory, int(header["tokens_read"]), header["question"])

    @property
    def bytes(self) -> int:
        """As EncodedContext."""
        return total_bytes([self.slots.embeds] + ([] if self.slots.positions is None else [self.slots.positions]))

    def facts(self) -> dict[str, str]:
        """As Described."""
        return {"question": repr(self.question), **context_facts(self, slots_in_words(len(self), self.tokens_read))}

    def shown_spans(self) -> list[tuple[TokenSpan, str]]:
        """As `token_spans`; nothing for a memory from a file, which holds no tokens."""
        return [] if self._ids is None else self.token_spans()

    def _placeholder_tokens(self) -> Tokens:
        """Tokens (1, T) in place of the context's, whose number determines the positions of the question."""
        ids_1T = torch.zeros(1, self.tokens_read, dtype=torch.int64, device=self.slots.mask.device)
        return Tokens(ids_1T, torch.ones_like(ids_1T, dtype=torch.bool))


CLASSES: dict[str, type[EncodedDocument] | type[QuestionMemory] | type[KeyValueDocument]] = {
    "document": EncodedDocument,
    "memory": QuestionMemory,
    "key_values": KeyValueDocument,
}


def load_saved(reader: SlotReader, file: str | Path) -> EncodedContext:
    """A document or memory that this reader saved.

    Raises: ValueError as in `saved.read_saved`.
    """
    other = "memory" if reader.compressor.keeps_cache else "key_values"
    header, tensors = read_saved(file, [kind for kind in CLASSES if kind != other], reader_identity(reader))
    device = next(reader.parameters()).device
    return CLASSES[header["kept"]].from_saved(reader, {name: x.to(device) for name, x in tensors.items()}, header)
