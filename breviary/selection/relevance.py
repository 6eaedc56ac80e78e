"""Relevance: what ranks the units of a context, as one interface for text selection and for methods that merge.

A subclass implements `scores`, one file each; `select` fills a budget with the best units. Shape letters: B contexts,
T context tokens, U units of a context, Q question tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Context, Question
from breviary.selection.units import fixed_segments, pad_lists, text_with_offsets, unit_of_tokens


@dataclass
class Candidates:
    """Contexts in units, among which a relevance chooses.

    ids, mask     (B, T) right-padded context tokens
    question      as in Compressor.compress; without any token where `needs_question` is False
    units         kind of the units, one of units.UNITS
    segment_size  tokens of a segment
    tokenizer     returns the tokenizer of `ids`, for what reads text; None = nothing does
    states        (B, T, D) states of the tokens, zero on padding, where the compressor has any; None otherwise
    query         (B, D) vector of the question to compare them with; None where there is none
    """

    ids: Tensor
    mask: Tensor
    question: Question
    units: str
    segment_size: int
    tokenizer: Callable[[], Any] | None = None
    states: Tensor | None = None
    query: Tensor | None = None

    def __post_init__(self) -> None:
        self.numbers = self.split(self.units)
        width = self.numbers.shape[1]
        if self.units == "segments":  # known without the tokens
            self.count = max(-(-width // self.segment_size), 1)
        else:
            self.count = int(self.numbers.max()) + 1 if width and bool(self.mask.any()) else 1

    # numbers  (B, T) int64, unit of each token, -1 on padding
    # count    U, an upper bound on the units of a context

    def split(self, kind: str) -> Tensor:
        """Unit of each token, (B, T) int64, -1 on padding, for any kind of unit."""
        if kind == "segments":
            return fixed_segments(self.mask, self.segment_size)
        rows = [unit_of_tokens(*text_with_offsets(row, self._tokenizer()), kind) for row in self.rows()]
        return pad_lists(rows, self.mask.shape[1], -1).to(self.mask.device)

    def _tokenizer(self) -> Any:
        assert self.tokenizer is not None, "candidates without a tokenizer"
        return self.tokenizer()

    def rows(self) -> list[list[int]]:
        """Token ids of each context, without padding."""
        return [ids[mask].tolist() for ids, mask in zip(self.ids, self.mask)]

    def question_rows(self) -> list[list[int]]:
        """Token ids of each question, without padding."""
        return [ids[mask].tolist() for ids, mask in zip(self.question.ids, self.question.mask)]

    def columns(self) -> list[list[list[int]]]:
        """Columns of the tokens of each unit of each context."""
        contexts: list[list[list[int]]] = []
        for numbers, mask in zip(self.numbers, self.mask):
            units: list[list[int]] = []
            for column, unit in enumerate(numbers[mask].tolist()):
                if unit == len(units):
                    units.append([])
                units[unit].append(column)
            contexts.append(units)
        return contexts

    def texts(self) -> list[list[str]]:
        """Text of each unit of each context."""
        contexts = []
        for ids, units in zip(self.rows(), self.columns()):
            text, offsets = text_with_offsets(ids, self._tokenizer())
            contexts.append([text[offsets[unit[0]][0] : offsets[unit[-1]][1]] for unit in units])
        return contexts

    def questions(self) -> list[str]:
        """Text of each question."""
        return [text_with_offsets(ids, self._tokenizer())[0] for ids in self.question_rows()]

    def unit_mean(self, values: Tensor) -> Tensor:
        """Mean of `values` (B, T) over the tokens of each unit, (B, U); 0 where a context has no such unit."""
        index = self.numbers.clamp(min=0)
        total = values.new_zeros(len(values), self.count)
        sums = total.scatter_add(1, index, values.masked_fill(~self.mask, 0))
        return sums / total.scatter_add(1, index, self.mask.to(values.dtype)).clamp(min=1)


class Relevance(nn.Module):
    """Ranks the units of a context. A subclass implements `scores`, or `select` where it cuts inside units.

    Constructor arguments are the method's hyperparameters, and keys of compressor.relevance. Nothing is trained through
    a selection of text; relevances whose scores have gradients say so.
    """

    needs_question: bool = True  # False: the scores depend on the context alone
    needs_states: bool = False  # True: compares states that the compressor computes (Candidates.states and query)
    needs_evidence: bool = False  # True: reads the data's gold marks (Question.evidence)

    def prepare(self, backbone: Backbone | TinyBackbone, decoder: Stack) -> None:
        """Called once by the compressor that uses this relevance, before anything else."""
        self._backbone = (backbone,)
        self._decoder = (decoder,)  # in a tuple: the decoder belongs to the reader and must not be registered twice

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of contexts and questions: the decoder's. Read from disk when a relevance needs text."""
        return self._backbone[0].tokenizer()

    @property
    def decoder(self) -> Stack:
        """The decoder of the reader."""
        return self._decoder[0]

    @property
    def start_id(self) -> int:
        """The token before a text that stands alone: BOS, else the end token, which separates texts in training."""
        start = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if start is None else start

    def encode(self, context: Context) -> Tensor | None:
        """States of left-packed tokens, (B, T, D), independent of the question and cached per context; None = none."""
        return None

    def scores(self, candidates: Candidates) -> Tensor:
        """Score of each unit, (B, U) float: higher is kept first. Padding units have any finite value."""
        raise NotImplementedError

    @torch.no_grad()
    def select(self, candidates: Candidates, slots: Tensor) -> Tensor:
        """Place of each token in the compressed text, (B, T) int64, -1 = dropped; places need not be consecutive.

        slots  (B,) int64, tokens to keep; never more than the context has
        """
        return fill_budget(self.scores(candidates), candidates.numbers, slots)

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for constructor arguments, as `Compressor.problems`; keys begin with compressor.relevance."""
        return []


def fill_budget(scores: Tensor, units: Tensor, slots: Tensor) -> Tensor:
    """Units by score until the budget is full, the last one cut, in document order: places (B, T), -1 = dropped.

    scores (B, U), units (B, T) with -1 on padding, slots (B,). Ties go to the earlier unit, so equal scores keep the
    beginning of the text. Exactly min(slots, tokens) tokens are kept, and a larger budget keeps a superset.
    """
    columns = torch.arange(units.shape[1], device=units.device).expand(units.shape)
    rank_BU = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
    keys = rank_BU.gather(1, units.clamp(min=0)) * units.shape[1] + columns
    keys = keys.masked_fill(units < 0, torch.iinfo(torch.int64).max)
    kept = (keys.argsort(1).argsort(1) < slots[:, None]) & (units >= 0)
    return columns.masked_fill(~kept, -1)
