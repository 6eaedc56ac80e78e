"""One text that is read piece by piece, asked about and written on, in constant memory (CoMeT, spec 1.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from breviary.contract import Batch, EncodedContext, Generation
from breviary.decoding.loop import decode_stream, decode_texts
from breviary.readers.saved import read_saved, write_saved
from breviary.runtime.files import hash_tensors
from comet.memory import LayerState, MemoryState
from comet.inference.stream import Stream

if TYPE_CHECKING:
    from comet.model import Comet

KIND = "session"  # of what is kept, in a file's header
TEMPLATE = "\nQuestion: {question}\nAnswer:"  # as configs/train.yaml


class Session(EncodedContext):
    """What a reader holds of one text. `Comet.open()` gives one, `Comet.read` one for each row of a batch.

    tokens_read  tokens so far; bytes  what is kept of them
    """

    def __init__(self, reader: Comet, template: str = TEMPLATE) -> None:
        self.reader, self.template, self.tokens_read = reader, template, 0
        self._stream = Stream(reader, 1)
        self._open: list[int] = []  # tokens of the open chunk
        self._logits: Tensor | None = None  # (1, V) after the last token

    @property
    def bytes(self) -> int:
        """Bytes kept: the same after ten chunks as after ten thousand."""
        return self._stream.bytes

    def read(self, text: str | Sequence[int]) -> None:
        """Reads further tokens; a string is tokenised by itself, without special tokens."""
        ids = self._tokens(text) if isinstance(text, str) else list(text)
        for start in range(0, len(ids), self.reader.chunk_size):  # the text itself need not fit the device's memory
            part = torch.tensor([ids[start : start + self.reader.chunk_size]], device=self._device)
            self._logits = self._stream.read(part, torch.tensor([part.shape[1]], device=self._device))
        self.tokens_read += len(ids)
        c = self.reader.chunk_size
        open_now = (self.tokens_read - 1) % c + 1 if self.tokens_read else 0
        self._open = (self._open + ids)[-open_now:] if open_now else []

    def fork(self) -> Session:
        """An independent copy of the session."""
        other = Session(self.reader, self.template)
        other._stream, other._open, other._logits = self._stream.fork(), list(self._open), self._logits
        other.tokens_read = self.tokens_read
        return other

    def ask(self, question: str | Sequence[int], generation: Generation | None = None) -> str:
        """The answer to a question about what was read; the session stays as it is. A string is put into the template,
        tokens are read as they are."""
        asked = self._asked(question)
        with self.reader.decoder.mixed_precision():
            [answer] = decode_texts(
                asked._logits,
                asked._stream.step,
                generation or Generation(stop=("\n",)),
                self.reader.tokenizer,
                end_ids=self.reader.decoder.end_ids,
            )
        return answer

    def answer(self, questions: Batch, generation: Generation) -> list[str]:
        """As EncodedContext: the batch's prompts, asked one after the other."""
        prompts = zip(questions.prompt.ids, questions.prompt.mask)
        return [self.ask(ids[real].tolist(), generation) for ids, real in prompts]

    def stream(self, questions: Batch, generation: Generation) -> Iterator[str]:
        """As EncodedContext."""
        asked = self._asked(questions.prompt.ids[questions.prompt.mask].tolist())
        return decode_stream(
            asked._logits, asked._stream.step, generation, self.reader.tokenizer, self.reader.decoder.end_ids
        )

    def _asked(self, question: str | Sequence[int]) -> Session:
        """A copy that read the question too."""
        asked = self.fork()
        asked.read(self.template.replace("{question}", question) if isinstance(question, str) else question)
        if asked._logits is None:
            raise ValueError("session.ask: nothing was read, and the question is empty; call session.read first")
        return asked

    def generate(self, tokens: int) -> Iterator[int]:
        """Writes on, greedily, and reads what it wrote; gives the tokens one by one, stops behind an end token.

        Raises: ValueError where nothing was read yet.
        """
        if self._logits is None:
            raise ValueError("session.generate: nothing was read yet; call session.read first")
        ends = {*self.reader.decoder.end_ids, self.reader.tokenizer.eos_token_id}
        for _ in range(tokens):
            token = int(self._logits.argmax(-1))
            self.read([token])
            yield token
            if token in ends:
                return

    def save(self, file: str | Path) -> int:
        """Writes the session into a safetensors file; gives its bytes. Of the open chunk the tokens are kept."""
        memory = self._stream.memory
        tensors = {"open": torch.tensor(self._open, dtype=torch.int64), "queue_mask": memory.queue_mask}
        for index, layer in enumerate(memory.layers):
            tensors |= {f"carried.{index}": layer.carried, f"queue.{index}": layer.queue}
        more = {"tokens_read": str(self.tokens_read), "template": self.template}
        return write_saved(file, KIND, reader_identity(self.reader), tensors, more)

    @classmethod
    def load(cls, reader: Comet, file: str | Path) -> Session:
        """A saved session of this very reader.

        Raises: ValueError as kept_file.read_saved.
        """
        header, tensors = read_saved(file, [KIND], reader_identity(reader))
        session, open_ids = cls(reader.eval(), header["template"]), tensors["open"].tolist()
        device = session._device
        layers = tuple(
            LayerState(tensors[f"carried.{i}"].to(device), tensors[f"queue.{i}"].to(device))
            for i in range(sum(name.startswith("queue.") for name in tensors))
        )
        started = torch.full((1,), bool(layers), device=device)
        session._stream.memory = MemoryState(layers, started, tensors["queue_mask"].to(device))
        session.read(open_ids)
        session.tokens_read, session._open = int(header["tokens_read"]), open_ids
        return session

    @property
    def _device(self) -> torch.device:
        return self.reader.memory.tokens.weight.device

    def _tokens(self, text: str) -> list[int]:
        # Not verbose: it would warn that the text is longer than the positions, which chunks never are.
        return self.reader.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]


def reader_identity(reader: Comet) -> dict[str, Any]:
    """What must be equal for one reader's memory to mean anything to another."""
    own = {
        name: weight for name, weight in reader.named_parameters() if weight.requires_grad or name.startswith("memory.")
    }
    return {
        "method": f"{type(reader).__module__}.{type(reader).__name__}",
        "backbone": reader.fingerprint["sha256"],
        "chunk_size": reader.chunk_size,
        "stride": reader.stride,
        "global_slots": reader.memory.global_slots,
        "queue_budget": reader.memory.queue_budget,
        "dtype": str(reader.decoder.dtype).removeprefix("torch."),
        "weights": hash_tensors(own),
    }
