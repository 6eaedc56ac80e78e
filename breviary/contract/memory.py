"""Encoded contexts, memories of both kinds, and what they cost.

Shape letters: see the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from breviary.contract.batch import Tokens


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

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (self.states, self.mask, self.ids, *(x for pair in self.keys_values for x in pair), *self.observed)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class Question(Tokens):
    """Input of `Compressor.compress`: ids and mask (B, Q) of the bare question, and

    states       (B, P, D) the decoder's states of the prompt at the input of the joining layer
    states_mask  (B, P)
    labels       result of `Compressor.labels`, in training; None otherwise
    task         as in Batch
    evidence     (B, T) bool, as in Batch, left-packed like the encoded context; None unless `needs_evidence`
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
    """Memory cost of an answer, per example, each (B,) int64.

    document_bytes  held of the context, with its prefix, for further questions: its encoding where each question has
                    its own memory, else the memory; None without a context cache
    """

    context_tokens: Tensor
    memory_slots: Tensor  # vectors or tokens in place of the context
    memory_bytes: Tensor  # decoder keys and values of the context while answering
    requested_ratio: float | None  # context tokens per slot in the configuration; None = no ratio is configured
    document_bytes: Tensor | None = None

    @property
    def effective_ratio(self) -> float:
        """Context tokens per slot achieved over the batch; infinite where there is no slot."""
        slots = int(self.memory_slots.sum())
        return int(self.context_tokens.sum()) / slots if slots else float("inf")
