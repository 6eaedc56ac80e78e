"""Positive segments of RAM's contrastive loss: those that hold the answer, determined from the data alone (spec 1.9).

Positives are gold passages where the data marks them (`Batch.evidence`). Elsewhere they are all occurrences of any
reference answer in the context's text. Occurrences are located by character offsets, so the result does not depend on
how the tokenizer splits words or treats leading spaces. Shapes: B rows, T context tokens, S segments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from breviary.contract import Batch, Example
from ram.segments import split_segments

SOURCES = ("evidence", "answers")


def answer_spans(example: Example, ignore_case: bool = True) -> list[tuple[int, int]]:
    """Character spans (start, end) of all occurrences of any reference in the context, sorted.

    Occurrences are whole words: "10" does not match in "2010". They may overlap.
    """
    fold: Callable[[str], str] = str.casefold if ignore_case else str
    if len(fold(example.context)) != len(example.context):  # some letters fold to two, which would shift offsets
        fold = _casefold_same_length
    text, spans = fold(example.context), set()
    for answer in example.answers:
        pattern = fold(answer.strip())
        start = text.find(pattern) if pattern else -1
        while start >= 0:
            end = start + len(pattern)
            if not _within_word(text[max(start - 1, 0) : start + 1]) and not _within_word(text[end - 1 : end + 1]):
                spans.add((start, end))
            start = text.find(pattern, start + 1)
    return sorted(spans)


def _casefold_same_length(text: str) -> str:
    """Case folding that leaves letters unchanged whose folded form is longer, such as the German sharp s."""
    return "".join(folded if len(folded := letter.casefold()) == 1 else letter for letter in text)


def _within_word(pair: str) -> bool:
    """True where two neighbouring characters belong to one word. Scripts without spaces have no word borders."""
    return len(pair) == 2 and pair.isalnum() and max(pair) < "\u2e80"


def answer_tokens(batch: Batch, ignore_case: bool = True) -> Tensor:
    """(B, T) bool: context tokens that overlap an occurrence of an answer.

    The texts are searched on the host; offsets are compared on the batch's device.
    Raises ValueError where the batch has no character offsets.
    """
    if batch.offsets is None:
        raise ValueError(
            "answers are located by character offsets, which this tokenizer does not provide; use the fast "
            "tokenizer of this backbone, or mark gold passages in the data (compressor.positives)"
        )
    rows = [answer_spans(example, ignore_case) for example in batch.examples]
    spans = torch.zeros(len(rows), max([1, *map(len, rows)]), 2, dtype=torch.int64)
    for b, row in enumerate(rows):
        if row:
            spans[b, : len(row)] = torch.tensor(row)
    spans = spans.to(batch.offsets.device)
    starts, ends = batch.offsets[..., 0, None], batch.offsets[..., 1, None]  # (B, T, 1)
    overlap = (starts < spans[:, None, :, 1]) & (ends > spans[:, None, :, 0])
    return overlap.any(-1) & batch.context.mask


def positive_tokens(batch: Batch, source: str = "evidence", ignore_case: bool = True) -> Tensor:
    """(B, T) bool: tokens of gold passages; in rows that mark none, or with source `answers`, tokens of answers."""
    evidence = batch.evidence if source == "evidence" else None
    if evidence is None:
        return answer_tokens(batch, ignore_case)
    if batch.offsets is None:
        return evidence
    unmarked = ~evidence.any(1, keepdim=True)
    return evidence | (unmarked & answer_tokens(batch, ignore_case))


def positive_segments(tokens: Tensor, length: int) -> Tensor:
    """Left-packed positive tokens (B, T) -> segments of `length` tokens that hold at least one, (B, S) bool."""
    return split_segments(tokens, length).any(-1)
