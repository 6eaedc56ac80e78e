"""Which segments hold what answers the question: RAM's positives, from the data alone (spec 1.9).

Gold passages where the data marks them (`Batch.evidence`), else every occurrence of any reference answer in the
context's text, found by character offsets: where a word begins, a leading space and how the tokenizer cuts do not
matter. B rows, T context tokens, S segments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from breviary.contract import Batch, Example
from ram.segments import cut

SOURCES = ("evidence", "answers")


def answer_spans(example: Example, ignore_case: bool = True) -> list[tuple[int, int]]:
    """Character spans (start, end) of every occurrence of any reference in the context, as whole words:
    "10" is not found in "2010". Occurrences may overlap."""
    fold = str.casefold if ignore_case else str
    if len(fold(example.context)) != len(example.context):  # a few letters fold to two, and places would move
        fold = _one_for_one
    text, spans = fold(example.context), set()
    for answer in example.answers:
        wanted = fold(answer.strip())
        start = text.find(wanted) if wanted else -1
        while start >= 0:
            end = start + len(wanted)
            if not _within_word(text[max(start - 1, 0) : start + 1]) and not _within_word(text[end - 1 : end + 1]):
                spans.add((start, end))
            start = text.find(wanted, start + 1)
    return sorted(spans)


def _one_for_one(text: str) -> str:
    """Case folded but for letters that would become two, such as the German sharp s."""
    return "".join(folded if len(folded := letter.casefold()) == 1 else letter for letter in text)


def _within_word(pair: str) -> bool:
    """Whether two neighbouring characters belong to one word; scripts written without spaces have no such borders."""
    return len(pair) == 2 and pair.isalnum() and max(pair) < "\u2e80"


def answer_tokens(batch: Batch, ignore_case: bool = True) -> Tensor:
    """(B, T) bool: context tokens that overlap an occurrence of an answer.

    The texts are searched on the host; comparing offsets runs on the batch's device.
    Raises ValueError where the tokenizer gave no character offsets.
    """
    if batch.offsets is None:
        raise ValueError(
            "answers are found by character offsets, which this tokenizer does not give; use the fast "
            "tokenizer of this backbone, or mark gold passages in the data (compressor.positives)"
        )
    found = [answer_spans(example, ignore_case) for example in batch.examples]
    most = max([1, *map(len, found)])
    spans = torch.zeros(len(found), most, 2, dtype=torch.int64)
    for b, row in enumerate(found):
        if row:
            spans[b, : len(row)] = torch.tensor(row)
    spans = spans.to(batch.offsets.device)
    starts, ends = batch.offsets[..., 0, None], batch.offsets[..., 1, None]  # (B, T, 1)
    overlap = (starts < spans[:, None, :, 1]) & (ends > spans[:, None, :, 0])
    return overlap.any(-1) & batch.context.mask


def positive_tokens(batch: Batch, source: str = "evidence", ignore_case: bool = True) -> Tensor:
    """(B, T) bool: tokens of gold passages; in rows that mark none, and everywhere with source `answers`, of answers."""
    evidence = batch.evidence if source == "evidence" else None
    if evidence is None:
        return answer_tokens(batch, ignore_case)
    unmarked = ~evidence.any(1, keepdim=True)
    if batch.offsets is None:
        return evidence
    return evidence | (unmarked & answer_tokens(batch, ignore_case))


def positive_segments(tokens: Tensor, length: int) -> Tensor:
    """Marks on left-packed tokens (B, T) -> marks on their segments of `length` tokens, (B, S).

    A span across a border marks both segments.
    """
    return cut(tokens, length).any(-1)
