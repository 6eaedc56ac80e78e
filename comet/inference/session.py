"""One text, read in pieces, questioned and continued in constant memory (CoMeT, spec 1.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from breviary.contract import Batch, EncodedContext, Generation
from breviary.decoding.loop import decode_stream, decode_texts
from breviary.readers.saved import read_saved, write_saved
from breviary.readers.views import Described, context_facts
from breviary.runtime.files import hash_tensors
from breviary.runtime.markup import missing_field, surrogate_problem, tokenise, tokenise_inserted
from comet.inference.stream import Stream
from comet.memory import LayerState, MemoryState
from comet.protocol import SessionReader

KIND = "session"  # in the header of saved files
TEMPLATE = "\nQuestion: {question}\nAnswer:"  # as in configs/train.yaml


class Session(Described, EncodedContext):
    """The state of a reader for one text, from `Comet.open()`.

    template     text around a question, with the field {question}; may contain special tokens, the question may not
    tokens_read  tokens so far
    bytes        of the state
    Raises: ValueError for a template without its field.
    """

    reader: SessionReader

    def __init__(self, reader: SessionReader, template: str = TEMPLATE) -> None:
        problems = missing_field("template", template, "question", repr(TEMPLATE))
        if problems:
            raise ValueError(*problems)
        self.reader, self.template, self.tokens_read = reader, template, 0
        self._stream = Stream(reader, 1)
        self._open_ids: list[int] = []  # of the open chunk
        self._logits: Tensor | None = None  # (1, V) after the last token

    @property
    def bytes(self) -> int:
        """Bytes of the state: the same after ten chunks as after ten thousand."""
        return self._stream.bytes

    def facts(self) -> dict[str, str]:
        """As Described."""
        slots = int(self._stream.memory.slot_mask.sum())
        return context_facts(self, f"{slots:,} in each layer, and {len(self._open_ids):,} tokens of the open chunk")

    def read(self, text: str | Sequence[int]) -> None:
        """Reads further tokens. A string is tokenised by itself; special tokens in it are plain text.

        Raises: ValueError for a lone surrogate.
        """
        ids = tokenise(self.reader.tokenizer, _checked(text), plain=True) if isinstance(text, str) else list(text)
        c = self.reader.chunk_size
        for start in range(0, len(ids), c):  # the whole text need not fit into the device's memory
            part = torch.tensor([ids[start : start + c]], device=self._device)
            self._logits = self._stream.read(part, torch.tensor([part.shape[1]], device=self._device))
        self.tokens_read += len(ids)
        open_tokens = (self.tokens_read - 1) % c + 1 if self.tokens_read else 0
        self._open_ids = (self._open_ids + ids)[-open_tokens:] if open_tokens else []

    def fork(self) -> Session:
        """An independent copy of the session."""
        other = Session(self.reader, self.template)
        other._stream, other._open_ids, other._logits = self._stream.fork(), list(self._open_ids), self._logits
        other.tokens_read = self.tokens_read
        return other

    def ask(
        self, question: str | Sequence[int], generation: Generation | None = None, example_id: str | None = None
    ) -> str:
        """The answer to a question; the session does not change.

        question    a string is inserted into the template, token ids are read as they are
        example_id  sampling depends on it and on generation.seed; None = the question's text, "" for token ids
        """
        if example_id is None:
            example_id = question if isinstance(question, str) else ""
        fork = self._fork_with_question(question)
        with self.reader.decoder.mixed_precision():
            [answer] = decode_texts(
                fork._logits,
                fork._stream.step,
                generation or Generation(stop=("\n",)),
                self.reader.tokenizer,
                end_ids=self.reader.decoder.end_ids,
                example_ids=[example_id],
            )
        return answer

    def answer(self, questions: Batch, generation: Generation) -> list[str]:
        """As in EncodedContext: the answer to each row's prompt."""
        rows = zip(questions.prompt.ids, questions.prompt.mask, questions.examples)
        return [self.ask(ids[mask].tolist(), generation, example.id) for ids, mask, example in rows]

    def stream(self, questions: Batch, generation: Generation) -> Iterator[str]:
        """As in EncodedContext."""
        fork = self._fork_with_question(questions.prompt.ids[questions.prompt.mask].tolist())
        ids = [example.id for example in questions.examples]
        return decode_stream(
            fork._logits, fork._stream.step, generation, self.reader.tokenizer, self.reader.decoder.end_ids, ids
        )

    def _fork_with_question(self, question: str | Sequence[int]) -> Session:
        """A copy that has also read the question."""
        fork = self.fork()
        if isinstance(question, str):
            question = tokenise_inserted(self.reader.tokenizer, self.template, "question", _checked(question))
        fork.read(question)
        if fork._logits is None:
            raise ValueError("session.ask: no text was read and the question is empty; call session.read first")
        return fork

    def generate(self, tokens: int) -> Iterator[int]:
        """Continues the text greedily with up to `tokens` tokens, which are also read; stops after an end token.

        Raises: ValueError where no text was read.
        """
        if self._logits is None:
            raise ValueError("session.generate: no text was read; call session.read first")
        ends = {*self.reader.decoder.end_ids, self.reader.tokenizer.eos_token_id}
        for _ in range(tokens):
            token = int(self._logits.argmax(-1))
            self.read([token])
            yield token
            if token in ends:
                return

    def save(self, file: str | Path) -> int:
        """Writes the session into a safetensors file; returns its size in bytes.

        The open chunk is saved as token ids.
        """
        memory = self._stream.memory
        tensors = {"open": torch.tensor(self._open_ids, dtype=torch.int64), "queue_mask": memory.queue_mask}
        for index, layer in enumerate(memory.layers):
            tensors |= {f"carried.{index}": layer.global_state, f"queue.{index}": layer.queue}
        header = {"tokens_read": str(self.tokens_read), "template": self.template}
        return write_saved(file, KIND, session_identity(self.reader), tensors, header)

    @classmethod
    def load(cls, reader: SessionReader, file: str | Path) -> Session:
        """A session that was saved with the same reader.

        Raises: ValueError as in `breviary.readers.saved.read_saved`.
        """
        former = {"backbone": reader.fingerprint.get("former_sha256")}
        header, tensors = read_saved(file, [KIND], session_identity(reader), former)
        session, open_ids = cls(reader.eval(), header["template"]), tensors["open"].tolist()
        device = session._device
        layers = tuple(
            LayerState(tensors[f"carried.{i}"].to(device), tensors[f"queue.{i}"].to(device))
            for i in range(sum(name.startswith("queue.") for name in tensors))
        )
        initialized = torch.full((1,), bool(layers), device=device)
        session._stream.memory = MemoryState(layers, initialized, tensors["queue_mask"].to(device))
        session.read(open_ids)
        session.tokens_read, session._open_ids = int(header["tokens_read"]), open_ids
        return session

    @property
    def _device(self) -> torch.device:
        return self.reader.memory.tokens.weight.device


def _checked(text: str) -> str:
    problem = surrogate_problem(text)
    if problem:
        raise ValueError(f"the text {problem}")
    return text


def session_identity(reader: SessionReader) -> dict[str, Any]:
    """Properties that must be equal for two readers to share sessions."""
    return {
        "method": f"{type(reader).__module__}.{type(reader).__name__}",
        "backbone": reader.fingerprint["sha256"],
        "chunk_size": reader.chunk_size,
        "stride": reader.stride,
        "global_slots": reader.memory.global_slots,
        "queue_budget": reader.memory.queue_budget,
        "dtype": str(reader.decoder.dtype).removeprefix("torch."),
        "weights": reader.weights_hash or reader.hash_weights(),
    }


def hash_session_weights(reader: SessionReader) -> str:
    """Hash of the trained weights and the memory's."""
    return hash_tensors(
        {name: x for name, x in reader.named_parameters() if x.requires_grad or name.startswith("memory.")}
    )
