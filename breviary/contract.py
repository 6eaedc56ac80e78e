"""The types that breviary, the methods and data exchange. Imports torch only.

Shape letters, unless a file has a legend of its own: B examples of a batch, T context tokens, Q question tokens,
P prompt tokens, A answer tokens, N tokens of any part, S segments of a context, L tokens of a segment, M memory slots,
D hidden width.
Masks are boolean, True = a real token, and are made from lengths, never from token values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

TASKS = ("answer", "reconstruct", "continue")


@dataclass(frozen=True)
class Document:
    """One passage of a context: characters [start, end) of Example.context."""

    title: str
    start: int
    end: int
    is_gold: bool = False


@dataclass(frozen=True)
class Example:
    """One question on one context, as text. `answers` holds every accepted reference."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    documents: tuple[Document, ...] = ()
    compressed_context: str | None = None  # the context as another tool compressed it


@runtime_checkable
class Dataset(Protocol):
    """What a YAML of configs/dataset instantiates. The constructor's arguments are the keys of the YAML."""

    def problems(self, splits: list[str]) -> list[str]:
        """Error messages for wrong keys and missing files, before anything is read."""

    def examples(self, split: str) -> list[Example]:
        """All examples of the train, validation or test split. Raises ValueError where there are none."""


@dataclass
class Tokens:
    """Token ids with their validity: ids (B, N) int64, mask (B, N) bool. Padding may be on any side."""

    ids: Tensor
    mask: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """`function` of ids and mask."""
        return Tokens(function(self.ids), function(self.mask))

    def rows(self, index: Tensor) -> Tokens:
        """The rows selected by `index` (R,) int64, in that order."""
        return self.map(lambda x: x[index])

    @property
    def lengths(self) -> Tensor:
        """Number of real tokens of each row, (B,) int64."""
        return self.mask.sum(-1)


@dataclass
class Batch:
    """B examples as tokens.

    prefix    BOS, chat header, instruction; may have width zero
    context   the long text
    query     the bare question, for encoders
    prompt    the templated question, for the decoder
    answer    the first reference and the end token: what training supervises
    evidence  (B, T) bool, True on tokens of gold passages; None where no example marks any
    offsets   (B, T, 2) int64, characters [start, end) of each context token; None where the tokenizer provides none
    examples  the raw examples, in row order, for scoring
    task      one of TASKS, set by the objective; a compressor may condition on it
    compressed  the contexts as another tool compressed them; None where no example has its own
    """

    prefix: Tokens
    context: Tokens
    query: Tokens
    prompt: Tokens
    answer: Tokens
    evidence: Tensor | None
    offsets: Tensor | None
    examples: list[Example]
    task: str = "answer"
    compressed: Tokens | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """`function` of every tensor."""
        parts: dict[str, Any] = {k: x for k, x in vars(self).items() if isinstance(x, (Tokens, Tensor))}
        return replace(self, **{k: function(x) if isinstance(x, Tensor) else x.map(function) for k, x in parts.items()})

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        return self.map(lambda x: x.to(device))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory. torch's DataLoader calls this where `pin_memory` is set."""
        return self.map(lambda x: x.pin_memory())

    def rows(self, index: list[int]) -> Batch:
        """The examples selected by `index`, in that order; widths do not change."""
        rows = torch.tensor(index, device=self.context.ids.device)
        return replace(self.map(lambda x: x[rows]), examples=[self.examples[i] for i in index])


@dataclass
class Context(Tokens):
    """Input of `Compressor.encode`: context tokens (B, T), and the prefix that precedes them in the decoder."""

    prefix: Tokens


@dataclass
class Encoded:
    """Encoded contexts, before a question is known; cacheable. Shorter contexts have empty segments at the end.

    states       (B, S, L, D) states after the encoding layers
    mask         (B, S, L)
    ids          (B, S, L) int64, of the encoder's tokenizer; 0 on padding, below 0 for positions that are no text
    keys_values  per layer (keys, values), each (B, S, heads, L, head width); empty where no question attends to them
    observed     per layer (B, N, F), further features for `compress`, zero on padding; empty where it needs none
    """

    states: Tensor
    mask: Tensor
    ids: Tensor
    keys_values: Sequence[tuple[Tensor, Tensor]] = field(default_factory=list)
    observed: Sequence[Tensor] = field(default_factory=list)


@dataclass
class Question(Tokens):
    """Input of `Compressor.compress`: ids and mask (B, Q) of the bare question, and

    states       (B, P, D) the decoder's states of the prompt at the input of the joining layer
    states_mask  (B, P)
    labels       result of `Compressor.labels`, in training; None otherwise
    task         as in Batch
    evidence     (B, T) bool, as in Batch, left-packed like the encoded context
    compressed   as in Batch
    """

    states: Tensor
    states_mask: Tensor
    labels: Any = None
    task: str = "answer"
    evidence: Tensor | None = None
    compressed: Tokens | None = None


@dataclass
class Memory:
    """The compressed context.

    embeds     (B, M, D_decoder), zero where masked
    mask       (B, M) True = a slot; left-packed
    layer      the decoder layer whose input stream the slots enter; 0 = the input embeddings
    positions  (B, M) rotary position of each slot, counted from the first context token; required when layer > 0
    losses     {name: (weighted sum, count)}: the compressor's own, each divided by its own count over the global step
    trace      which tokens went into which slot and why, for the reading map; nothing is computed from it
    """

    embeds: Tensor
    mask: Tensor
    layer: int = 0
    positions: Tensor | None = None
    losses: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    trace: dict[str, Any] = field(default_factory=dict)

    @property
    def slots(self) -> Tensor:
        """Number of slots of each context, (B,) int64."""
        return self.mask.sum(1)


@dataclass
class KeyValueMemory:
    """The second kind of memory: what each decoder layer keeps of the keys and values of [prefix ; context].

    layers  memory.kept_keys.KeptKeys of each layer, at their own positions
    slots   (B,) int64, entries kept of the context, averaged over layers and heads
    losses, trace  as in Memory
    """

    layers: Sequence[Any]
    slots: Tensor
    losses: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    trace: dict[str, Any] = field(default_factory=dict)


@dataclass
class Footprint:
    """Memory cost of an answer, per example, each (B,) int64."""

    context_tokens: Tensor
    memory_slots: Tensor  # vectors or tokens in place of the context
    memory_bytes: Tensor  # decoder keys and values of the context while answering
    requested_ratio: float | None  # context tokens per slot in the configuration; None = no ratio is configured

    @property
    def effective_ratio(self) -> float:
        """Context tokens per slot achieved over the batch; infinite where there is no slot."""
        slots = int(self.memory_slots.sum())
        return int(self.context_tokens.sum()) / slots if slots else float("inf")


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
    compress_only_keys: frozenset[str] = frozenset()  # constructor arguments that `encode` does not depend on
    supports_merge = True  # False: LoRA adapters must stay separate, as the encoder uses the weights without them

    def encode(self, context: Context) -> Encoded:
        """Everything that does not depend on the question; cacheable per context."""
        raise NotImplementedError

    def compress(self, encoded: Encoded, question: Question) -> Memory | KeyValueMemory:
        """The memory for this question."""
        raise NotImplementedError

    def slot_bytes(self, decoder: Any) -> int:
        """Bytes of a slot's keys and values in `decoder` (backbones.stack.Stack); layers below the joining one hold none."""
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
