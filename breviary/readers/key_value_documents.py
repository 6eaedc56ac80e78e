"""A context of which each decoder layer keeps some keys and values: answers questions, is saved and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from breviary.contract import Batch, EncodedContext, Generation, KeyValueMemory, Tokens
from breviary.decoding.shared_keys import KeptCache, join_shared
from breviary.memory.kept_keys import KeptKeys
from breviary.readers.saved import write_saved
from breviary.readers.slot_reader import SlotReader, reader_identity, with_context
from breviary.readers.views import Described, context_facts, slots_in_words


class KeyValueDocument(Described, EncodedContext):
    """The kept keys and values of one context.

    memory    of batch size 1
    question  for which they were chosen; None = for any question
    """

    reader: SlotReader

    def __init__(self, reader: SlotReader, memory: KeyValueMemory, tokens_read: int, question: str | None = None):
        self.reader, self.tokens_read, self.question = reader, tokens_read, question
        self.layers, self.slots = memory.layers, int(memory.slots)

    def answer(self, questions: Batch, generation: Generation) -> list[str]:
        """As EncodedContext; all questions in one batch."""
        batch = with_context(questions, self._placeholder_tokens(questions))
        return [answer.text for answer in self.reader.decode(batch, generation, self._cache(len(batch)))]

    def stream(self, questions: Batch, generation: Generation) -> Iterator[str]:
        """As EncodedContext."""
        batch = with_context(questions, self._placeholder_tokens(questions))
        return self.reader.stream(batch, generation, self._cache(1))

    def memory(self, question: Batch) -> EncodedContext:
        """Raises: ValueError, as this is the memory already."""
        if self.question is None:
            return super().memory(question)
        raise ValueError(f"this memory was made for the question {self.question!r}; another one needs the document")

    def save(self, file: str | Path) -> int:
        """As EncodedContext: the entries of each layer."""
        device = self.layers[0].keys.device
        tensors = {"counts": torch.tensor([layer.counts[0] for layer in self.layers], device=device)}
        for index, layer in enumerate(self.layers):
            tensors |= {f"keys.{index}": layer.keys, f"values.{index}": layer.values}
            tensors |= {} if layer.bias is None else {f"bias.{index}": layer.bias}
        header = {"tokens_read": str(self.tokens_read), "slots": str(self.slots)}
        header |= {} if self.question is None else {"question": self.question}
        return write_saved(file, "key_values", reader_identity(self.reader), tensors, header)

    @classmethod
    def from_saved(
        cls, reader: SlotReader, tensors: Mapping[str, Tensor], header: Mapping[str, str]
    ) -> KeyValueDocument:
        """From a file's tensors, which are on the reader's device."""
        layers = [
            KeptKeys(tensors[f"keys.{i}"], tensors[f"values.{i}"], (tuple(counts),), tensors.get(f"bias.{i}"))
            for i, counts in enumerate(tensors["counts"].tolist())
        ]
        memory = KeyValueMemory(layers, torch.tensor([int(header["slots"])], device=layers[0].keys.device))
        return cls(reader, memory, int(header["tokens_read"]), header.get("question"))

    @property
    def bytes(self) -> int:
        """As EncodedContext."""
        return sum(layer.bytes for layer in self.layers)

    def facts(self) -> dict[str, str]:
        """As Described."""
        question = {} if self.question is None else {"question": repr(self.question)}
        return {**question, **context_facts(self, slots_in_words(self.slots, self.tokens_read))}

    def _cache(self, rows: int) -> KeptCache:
        """The kept entries in front of `rows` questions."""
        one = KeptCache(self.layers, torch.tensor([self.slots], device=self.layers[0].keys.device))
        cache = join_shared(one.split() * rows)
        assert isinstance(cache, KeptCache)
        return cache

    def _placeholder_tokens(self, questions: Batch) -> Tokens:
        """Tokens (1, T) in place of the context's, whose number determines the positions of the question."""
        ids_1T = torch.zeros(1, self.tokens_read, dtype=torch.int64, device=questions.prompt.ids.device)
        return Tokens(ids_1T, torch.ones_like(ids_1T, dtype=torch.bool))


def split_key_values(reader: SlotReader, memory: KeyValueMemory, tokens_read: Sequence[int]) -> list[KeyValueDocument]:
    """One document per context of `memory`, which was made for any question."""
    rows = [[layer.rows([b]) for layer in memory.layers] for b in range(len(tokens_read))]
    return [
        KeyValueDocument(reader, KeyValueMemory(layers, memory.slots[b : b + 1]), tokens_read[b])
        for b, layers in enumerate(rows)
    ]
