"""Examples as text and as batches of tokens.

Shape letters: see the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

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
    """One question on one context, as text.

    answers        every accepted reference
    answer_prefix  text between question and answer that the reader is given and does not generate, such as "Answer:";
                   with a chat template it begins the assistant's turn
    choices        the options of a multiple-choice question, in order; () = the answer is free. One of `answers` is
                   one of them
    messages       (role, text, supervised) of a chat before the answer, of which `context` is the rendering; () = no
                   chat. Training supervises those that are marked beside the answer, see Batch.targets
    """

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    documents: tuple[Document, ...] = ()
    compressed_context: str | None = None  # the context as another tool compressed it
    answer_prefix: str = ""
    choices: tuple[str, ...] = ()
    messages: tuple[tuple[str, str, bool], ...] = ()


@runtime_checkable
class Dataset(Protocol):
    """What a YAML of configs/dataset instantiates. The constructor's arguments are the keys of the YAML.

    Optional, for large files: `content_hash(split)`, a hash of all that the examples depend on or None, with which a
    split is read once for all processes; `stream(split)`, an iterator over what `examples` returns.
    """

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
    prompt    the templated question and the example's answer prefix, for the decoder
    answer    the first reference and the end token: what training supervises
    evidence  (B, T) bool, True on tokens of gold passages; None where no example marks any
    offsets   (B, T, 2) int64, characters [start, end) of each context token; None where the tokenizer provides none
    examples  the raw examples, in row order, for scoring
    task      one of TASKS, set by the objective; a compressor may condition on it
    compressed  the contexts as another tool compressed them; None where no example has its own
    choices   one Tokens (B, .) for each place of an option, in the answer template without the end token; rows of
              examples with fewer options are empty. None where no example has options
    targets   (B, T) bool, True on context tokens that training supervises beside the answer: earlier messages of the
              assistant; None where no example has any
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
    choices: list[Tokens] | None = None
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """`function` of every tensor."""
        parts: dict[str, Any] = {k: x for k, x in vars(self).items() if isinstance(x, (Tokens, Tensor))}
        mapped = {k: function(x) if isinstance(x, Tensor) else x.map(function) for k, x in parts.items()}
        choices = None if self.choices is None else [option.map(function) for option in self.choices]
        return replace(self, **mapped, choices=choices)

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
