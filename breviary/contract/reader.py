"""Readers and compressors, and what they return.

Shape letters: see the package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from breviary.contract.batch import Batch, Tokens
from breviary.contract.memory import Context, Encoded, Footprint, KeyValueMemory, Memory, Question


@dataclass
class LossOutput:
    """Negative log likelihood in nats, summed per example, and the counts to divide by.

    nll         (B,) summed over supervised tokens: the negative log likelihood, in training the objective's loss
    tokens      (B,) int64, number of supervised tokens
    parts       {name: (weighted sum, count)}: further losses, each divided by its own count
    slots       (B,) int64, memory slots used; context_tokens (B,) int64, tokens they replace
    supervised  tokens (B, A); token_nll (B, A) nats of each; token_hits (B, A) bool, the most likely. None in training
    """

    nll: Tensor
    tokens: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]
    slots: Tensor
    context_tokens: Tensor
    supervised: Tokens | None = None
    token_nll: Tensor | None = None
    token_hits: Tensor | None = None

    def terms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Every loss as {name: (sum, count)}, the answer's first."""
        return {"answer": (self.nll.sum(), self.tokens.sum()), **self.parts}


@dataclass(frozen=True)
class Generation:
    """Decoding settings. Greedy unless `temperature` > 0."""

    max_new_tokens: int = 32  # end token included
    min_new_tokens: int = 0  # the end token is suppressed before that many tokens
    temperature: float = 0.0  # 0 = greedy
    top_p: float = 1.0  # nucleus sampling, in (0, 1]
    repetition_penalty: float = 1.0  # 1 = none; 1.3 in COMI's released script
    stop: tuple[str, ...] = ()  # an answer ends before the first of these strings
    seed: int = 0  # of sampling, together with each example's id


@dataclass(frozen=True)
class Decoded:
    """A decoded answer."""

    text: str  # without special tokens, the first stop string and all behind it, and surrounding white space
    ids: list[int]  # as decoded, without the end token
    is_ended: bool  # an end token was decoded within the limit


class EncodedContext:
    """A context that `reader` has encoded: it answers any number of questions and can be saved."""

    reader: Any  # a Reader; an implementation may require more of it (readers.slot_reader.SlotReader)
    tokens_read: int  # of the context

    def answer(self, questions: Batch, generation: Generation) -> list[str]:
        """An answer for each row. The batch's contexts are ignored."""
        raise NotImplementedError

    def stream(self, questions: Batch, generation: Generation) -> Iterator[str]:
        """The answer to a batch of one, as pieces of text while it is decoded."""
        raise NotImplementedError

    def memory(self, question: Batch) -> EncodedContext:
        """The memory for the question of a batch of one. Raises: ValueError where it is one for any already."""
        raise ValueError(f"{type(self).__name__} is already the memory, for any question: save it, or ask it")

    def save(self, file: str | Path) -> int:
        """Writes a safetensors file; returns its size in bytes."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Bytes held in memory."""
        raise NotImplementedError

    @property
    def cache_bytes(self) -> int:
        """Bytes of the plain decoder's key/value cache for the same context."""
        return self.tokens_read * self.reader.decoder.key_value_bytes(len(self.reader.decoder))


class Reader(nn.Module):
    """Given a long context and a question, keeps a small memory of the context and answers from it."""

    context_cache: Any = None  # in evaluation an instance of `context_cache_class`; its `reused` lists hits, row by row
    context_cache_class: type | None = None  # None = contexts are encoded again for every question
    identity: dict[str, Any] | None = None  # method, backbone and settings, stored in saved files; set by load_reader
    origin: Mapping[str, str] | None = None  # name, backbone and training in words, for views; set by load_reader
    supervises_context: bool = False  # True: training also supervises context tokens (Batch.targets)
    weights_hash: str | None = None  # `hash_weights` of the weights as loaded, where they were cast afterwards
    decoder: Any  # backbones.stack.Stack
    objective: Any  # breviary.objectives
    tokenizer: Any

    def loss(self, batch: Batch) -> LossOutput:
        """Teacher-forced answer loss of every example."""
        raise NotImplementedError

    def decode(self, batch: Batch, generation: Generation) -> list[Decoded]:
        """The decoded answer of each example."""
        raise NotImplementedError

    def answer(self, batch: Batch, generation: Generation) -> list[str]:
        """The texts of `decode`."""
        return [decoded.text for decoded in self.decode(batch, generation)]

    def answer_with_loss(self, batch: Batch, generation: Generation) -> tuple[list[Decoded], LossOutput | None]:
        """`decode`, and `loss` where the same forward pass yields both; else None. Evaluation only."""
        return self.decode(batch, generation), None

    def footprint(self, batch: Batch) -> Footprint:
        """Memory cost of each context of the batch."""
        raise NotImplementedError

    def footprint_from_slots(self, batch: Batch, slots: Tensor) -> Footprint:
        """`footprint` for a known number of slots (B,) (LossOutput.slots), without encoding again."""
        raise NotImplementedError

    def document_bytes(self, batch: Batch) -> Tensor | None:
        """`Footprint.document_bytes`, of the tensors that the context cache holds."""
        held = self.context_cache.held_bytes(batch.prefix, batch.context) if self.context_cache else None
        return None if held is None else torch.tensor(held, device=batch.context.ids.device)

    def encode_contexts(self, batch: Batch) -> Sequence[EncodedContext]:
        """Each context, with its prefix, encoded for any question."""
        raise NotImplementedError

    def load_saved(self, file: str | Path) -> EncodedContext:
        """What `EncodedContext.save` of this reader wrote. Raises: ValueError for any other file."""
        raise NotImplementedError

    def hash_weights(self) -> str | None:
        """Hash of the trained weights, by which saved files name them; None where the reader saves none."""

    @property
    def requested_ratio(self) -> float | None:
        """Context tokens per slot in the configuration; None where it sets a number of slots, or nothing."""
        return None

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Divisor of each term of `loss`, known before the forward pass: {name: scalar count}."""
        raise NotImplementedError

    def begin_step(self, step: int, seed: int) -> None:
        """Called once per optimizer step with equal arguments on every rank: draws what changes from step to step."""

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As `Compressor.problems`, for a reader named in configs/compressor."""
        return []

    @classmethod
    def data_problems(cls, settings: Mapping[str, Any], name: str, items: Any, positions: int) -> list[str]:
        """As `Compressor.data_problems`, for a reader named in configs/compressor."""
        return []

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """As `Compressor.longest_context`, for a reader named in configs/compressor."""
        return None

    def forward(self, batch: Batch) -> dict[str, Any]:
        """`loss` as plain containers, which the hooks of DDP and DeepSpeed traverse:
        {"terms": {name: (sum, count)}, "slots": scalar, "context_tokens": scalar}."""
        output = self.loss(batch)
        return {"terms": output.terms(), "slots": output.slots.sum(), "context_tokens": output.context_tokens.sum()}


class Compressor(nn.Module):
    """First part of a reader whose memory is a set of vectors: turns a context into memory slots for a decoder."""

    layer: int = 0  # the decoder layer at which the slots join (see Memory), known before any forward pass
    tokenizer: Any = None  # the encoder's tokenizer, where it differs from the decoder's
    needs_question: bool = True  # False: the memory depends on the context alone; losses of its own in training only
    keeps_cache: bool = False  # True: `compress` returns a KeyValueMemory, behind which every question has a prompt
    needs_evidence: bool = False  # True: `compress` reads Question.evidence, the data's gold marks
    compress_only_keys: frozenset[str] = frozenset()  # constructor arguments that `encode` does not depend on
    has_blocks: bool = False  # True: the number of module calls grows with the context, one per block
    has_weights: bool = True  # False: no weights of its own, only the decoder's
    supports_merge = True  # False: LoRA adapters must stay separate, as the encoder uses the weights without them

    @classmethod
    def encode_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The part of the constructor arguments `settings` on which encoded contexts depend."""
        return {key: value for key, value in settings.items() if key not in cls.compress_only_keys}

    def encode(self, context: Context) -> Encoded:
        """Everything that does not depend on the question; cacheable per context."""
        raise NotImplementedError

    def compress(self, encoded: Encoded, question: Question) -> Memory | KeyValueMemory:
        """The memory for this question."""
        raise NotImplementedError

    def slot_bytes(self, decoder: Any) -> int:
        """Bytes of a slot's keys and values in `decoder` (a Stack); layers below the joining one hold none."""
        return decoder.key_value_bytes(len(decoder) - self.layer)

    @property
    def requested_ratio(self) -> float | None:
        """Context tokens per slot at present; None where a number of slots is configured."""
        raise NotImplementedError

    def labels(self, batch: Batch) -> Any:
        """Labels for the compressor's own losses; training only."""
        return None

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Counts of the compressor's own losses, as `Reader.counts`."""
        return {}

    def begin_step(self, step: int, seed: int) -> None:
        """As `Reader.begin_step`."""

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for constructor arguments `settings`: key, value, what is allowed, an example. No weight is
        loaded yet; `backbone.config` is Hugging Face's configuration."""
        return []

    @classmethod
    def data_problems(cls, settings: Mapping[str, Any], name: str, items: Any, positions: int) -> list[str]:
        """Error messages for tokenised examples (data.tokenised.Tokenised) of split `name` that lack what `compress`
        reads, or do not fit into `positions` positions of the decoder. No weight is loaded yet."""
        return []

    @classmethod
    def translation(cls, settings: Mapping[str, Any], backbone: Any) -> Any:
        """`backbones.translation.Translation` to the compressor's own tokens, which lengths count; None = none."""
        return None

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """Longest context that fits into `positions` positions beside `others` further tokens; None = any."""
        return None
