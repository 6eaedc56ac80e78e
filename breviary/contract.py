"""The contract between the house and a method: what goes in, what comes out.

Shape letters, here and in every file that imports this one:
    B examples of a batch, T context tokens, Q question tokens, A answer tokens,
    M memory slots, D hidden width, V vocabulary, L layers.
Masks are boolean, True = a real token, and are made from lengths, never from token values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from breviary.encoded import Encoded
from breviary.pipeline import Place

if TYPE_CHECKING:
    from breviary.kept import Kept
    from breviary.translation import Translation

TASKS = ("answer", "reconstruct", "continue")


@dataclass(frozen=True)
class Document:
    """One passage of a context, with its place in the context's text (characters)."""

    title: str
    start: int  # first character of the passage in Example.context
    end: int  # one past its last character
    is_gold: bool = False


@dataclass(frozen=True)
class Example:
    """One question on one context, as text. `answers` holds every accepted reference."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    documents: tuple[Document, ...] = ()


@runtime_checkable
class Dataset(Protocol):
    """What a YAML of configs/dataset names: any class with these two; the arguments of its constructor are the keys."""

    def problems(self, splits: list[str]) -> list[str]:
        """A sentence for each wrong key or missing file, before anything is read."""

    def examples(self, split: str) -> list[Example]:
        """All examples of the train, validation or test split. Raises: ValueError where there are none."""


@dataclass
class Tokens:
    """Token ids with their validity: ids (B, N) int64, mask (B, N) bool. Pads may sit on any side."""

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on `device`."""
        return Tokens(self.ids.to(device), self.mask.to(device))

    def rows(self, index: Tensor) -> Tokens:
        """The rows named by `index` (R,) int64, in that order."""
        return Tokens(self.ids[index], self.mask[index])

    @property
    def lengths(self) -> Tensor:
        """Number of real tokens of each row, (B,) int64."""
        return self.mask.sum(-1)


@dataclass
class Batch:
    """B examples as tokens.

    prefix   BOS, chat header, instruction; may be of zero width
    context  the long text
    query    the bare question, for encoders
    prompt   the templated question, for the decoder
    answer   the first reference and the end token: what training supervises
    evidence (B, T) bool, True on tokens of gold passages; None where no example marks any
    offsets  (B, T, 2) int64, characters [start, end) of each context token in the example's context; None where the
             tokenizer does not tell
    examples the raw examples, in row order, for scoring
    task     what is asked of the contexts, one of TASKS: an objective says it, compressors may have a sign for it
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

    def __len__(self) -> int:
        return len(self.examples)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, (Tokens, Tensor)):
                moved[name] = value.to(device)
        return Batch(**moved)

    def rows(self, index: list[int]) -> Batch:
        """The examples named by `index`, in that order; widths stay as they are."""
        rows = torch.tensor(index, device=self.context.ids.device)
        parts = {name: getattr(self, name).rows(rows) for name in ("prefix", "context", "query", "prompt", "answer")}
        marks = {name: getattr(self, name) for name in ("evidence", "offsets")}
        marks = {name: None if value is None else value[rows] for name, value in marks.items()}
        return Batch(**parts, **marks, examples=[self.examples[i] for i in index], task=self.task)


@dataclass
class Context(Tokens):
    """What `Compressor.encode` reads: context tokens (B, T), and the prefix that precedes them in the decoder."""

    prefix: Tokens


@dataclass
class Question(Tokens):
    """What `Compressor.compress` knows of the question.

    ids, mask    (B, Q) the bare question
    states       (B, P, D) the decoder's own states of the prompt where they enter the joining layer
    states_mask  (B, P)
    labels       what `Compressor.labels` gave, in training; None where nobody knows the answer
    task         as Batch's
    """

    states: Tensor
    states_mask: Tensor
    labels: Any = None
    task: str = "answer"


@dataclass
class Memory:
    """What is kept of a context.

    embeds     (B, M, D_decoder), zero where masked
    mask       (B, M) True = a slot; left-packed
    layer      the decoder layer whose input stream the slots enter; 0 = the input embeddings
    positions  (B, M) rotary position of each slot, counted from the first context token; needed when layer > 0
    losses     {name: (weighted sum, count)}: the compressor's own losses, each divided by its own
               count over the global step
    trace      what was kept and why, for the reading map (tensors or plain values; nothing computes with it)
    """

    embeds: Tensor
    mask: Tensor
    layer: int = 0
    positions: Tensor | None = None
    losses: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    trace: dict[str, Any] = field(default_factory=dict)


@dataclass
class Footprint:
    """What an answer costs in memory, per example (each (B,))."""

    context_tokens: Tensor  # int64, tokens of the context
    memory_slots: Tensor  # int64, vectors or tokens the decoder reads in their stead
    memory_bytes: Tensor  # int64, bytes kept of the context while answering (decoder keys and values)
    asked_ratio: float | None  # context tokens per slot that the configuration asks for; None = not asked

    @property
    def effective_ratio(self) -> float:
        """Context tokens per slot actually reached over the batch; infinite where nothing is kept."""
        slots = int(self.memory_slots.sum())
        return int(self.context_tokens.sum()) / slots if slots else float("inf")


@dataclass
class LossOutput:
    """Negative log likelihood, in nats, summed per example, with what it is to be divided by.

    nll     (B,) sum over the example's supervised tokens, differentiable; in training the objective's own loss of them
    tokens  (B,) int64, number of supervised tokens
    parts   {name: (weighted sum, count)}: further losses, each divided by its own count
    slots   (B,) int64, memory slots used; context_tokens (B,) int64, tokens they stand for
    asked   what was supervised, (B, A); token_nll (B, A) nats of each token, token_hits (B, A) bool: it was the likeliest.
            In evaluation; None in training, and from readers that do not tell
    """

    nll: Tensor
    tokens: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]
    slots: Tensor
    context_tokens: Tensor
    asked: Tokens | None = None
    token_nll: Tensor | None = None
    token_hits: Tensor | None = None

    def terms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Every loss as {name: (sum, count)}, the answer's first."""
        return {"answer": (self.nll.sum(), self.tokens.sum()), **self.parts}


@dataclass(frozen=True)
class Generation:
    """How answers are decoded. Greedy unless `temperature` > 0.

    max_new_tokens      tokens at most, end token included
    min_new_tokens      the end token is barred before so many tokens
    temperature         0 = greedy
    top_p               nucleus of sampling, in (0, 1]
    repetition_penalty  1 = none; 1.3 in COMI's released script
    stop                an answer ends before the first of these strings
    seed                of sampling
    """

    max_new_tokens: int = 32
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Decoded:
    """What a reader wrote for one example."""

    text: str  # special tokens, everything from a stop string on and white space around it removed
    ids: list[int]  # as chosen, without the end token
    is_ended: bool  # an end token came, within the tokens allowed


class Reader(nn.Module):
    """Given a long context and a question, keeps a small memory of the context and answers from it."""

    def loss(self, batch: Batch) -> LossOutput:
        """Answer loss of every example (teacher-forced)."""
        raise NotImplementedError

    def decoded(self, batch: Batch, generation: Generation) -> list[Decoded]:
        """What is written for each example."""
        raise NotImplementedError

    def answer(self, batch: Batch, generation: Generation) -> list[str]:
        """The texts of `decoded`."""
        return [written.text for written in self.decoded(batch, generation)]

    def answered(self, batch: Batch, generation: Generation) -> tuple[list[Decoded], LossOutput | None]:
        """`decoded`, and `loss` where that comes of the same reading; None where it must be asked for. In evaluation."""
        return self.decoded(batch, generation), None

    def footprint(self, batch: Batch) -> Footprint:
        """What the reader keeps of each context of the batch."""
        raise NotImplementedError

    def footprint_of(self, batch: Batch, slots: Tensor) -> Footprint:
        """`footprint` where the slots (B,) are known already (LossOutput.slots): nothing is read again."""
        raise NotImplementedError

    # Contexts that were read, each once for all its questions: None (training), or what the class `new_context_cache` made for
    # so many contexts (evaluation, serving). Its `reused` says for each row of the latest call whether the context was there.
    context_cache: Any = None
    new_context_cache: type | None = None  # None = every question reads its context

    made_of: dict[str, Any] | None = None  # method, backbone, settings: files name them; set by checkpoint.load_reader

    def read(self, batch: Batch) -> list[Kept]:
        """What is kept of each context, prefix before it, while no question is known: it can be asked and saved."""
        raise NotImplementedError

    def load_kept(self, file: str | Path) -> Kept:
        """What a `Kept` of this very reader saved. Raises: ValueError for any other file."""
        raise NotImplementedError

    @property
    def asked_ratio(self) -> float | None:
        """Context tokens per slot asked for; None where nothing, or a number of slots, is asked."""
        return None

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What each term of `loss` will be divided by, known before any computing: {name: scalar count}."""
        raise NotImplementedError

    def begin_step(self, step: int, seed: int) -> None:
        """Told once per optimizer step, equally on every rank: draw here what is drawn anew each step."""

    equal_calls = True  # False: how often modules are called depends on the batch, which ZeRO-3 cannot follow

    schedules: tuple[str, ...] = ()  # ways in which several processes can share out the reading of one batch; () = none

    def join_pipeline(self, place: Place, schedule: str) -> None:
        """From now on, in training, every batch is read together with the other ranks of the pipeline, which have the same
        one: sums of `loss`, gradients and `counts` over them are the batch's. `schedule` is one of `schedules`."""
        raise NotImplementedError(f"{type(self).__name__} reads a batch on one process")

    @property
    def rate_factors(self) -> dict[str, float]:
        """{beginning of a parameter's name: what the learning rate is multiplied with there}; 1 elsewhere."""
        return {}

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As `Compressor.problems`, of a reader that a YAML names itself."""
        return []

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """As `Compressor.longest_context`, of a reader that a YAML names itself."""
        return None

    def forward(self, batch: Batch) -> dict[str, Any]:
        """`loss` through the call that DDP and DeepSpeed hook into, as plain containers, which their hooks look into:
        {"terms": {name: (sum, count)}, "slots": scalar, "context_tokens": scalar}."""
        output = self.loss(batch)
        return {"terms": output.terms(), "slots": output.slots.sum(), "context_tokens": output.context_tokens.sum()}


class Compressor(nn.Module):
    """A reader's front half in the vector family: turns a context into memory slots for a decoder.

    `layer` says where the slots join (see Memory) and is known before any forward.
    """

    layer: int = 0

    tokenizer: Any = None  # of what reads contexts, where it is not the decoder's

    needs_question: bool = True  # False: the memory is the context's alone, whatever is asked, and without losses of its own

    after_reading: frozenset[str] = frozenset()  # constructor arguments that `encode` looks at in no way

    mergeable = True  # False: something reads with the decoder's weights without its adapters, so these must stay apart

    def encode(self, context: Context) -> Encoded:
        """Everything that does not depend on the question; cacheable per context."""
        raise NotImplementedError

    def compress(self, encoded: Encoded, question: Question) -> Memory:
        """Memory slots for this question."""
        raise NotImplementedError

    @property
    def asked_ratio(self) -> float | None:
        """Context tokens per slot asked for now; None where a number of slots is asked instead."""
        raise NotImplementedError

    def labels(self, batch: Batch) -> Any:
        """What this compressor's own losses must know of the batch beyond context and question; training only."""
        return None

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Counts of this compressor's own losses, as in `Reader.counts`."""
        return {}

    def begin_step(self, step: int, seed: int) -> None:
        """As `Reader.begin_step`."""

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """What is wrong with constructor arguments `settings`, one sentence each with its key `compressor.X`, what is
        allowed and an example; asked before any weight is loaded. `backbone` has `config` (Hugging Face's)."""
        return []

    @classmethod
    def translation(cls, settings: Mapping[str, Any], backbone: Any) -> Translation | None:
        """From the backbone's tokens to those that this compressor reads, where it has a tokenizer of its own; else None.
        Lengths and ratios count the tokens that are read."""
        return None

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """Context tokens that fit a decoder of `positions` positions beside `others` further tokens; None = any."""
        return None
