"""Units of a context: the spans of tokens that are ranked and kept together.

segments   `segment_size` tokens each, the last one shorter
sentences  end at . ! ? ... and line breaks; an initial ("J. Smith") ends none
passages   paragraphs between blank lines; lines, where the context has no blank line
words      separated by white space
All but segments are found in the text that the tokens decode to. Shape letters: B contexts, T context tokens, U units.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import regex
import torch
from torch import Tensor

UNITS = ("segments", "sentences", "passages", "words")

# What separates two units, with the white space behind it.
_SENTENCE_END = regex.compile(
    r"""(?<!\b\p{Lu})[.!?\u2026]+["'\u2019\u201d)\]]*\s+|[\u3002\uff01\uff1f]+["\u2019\u201d\uff09\u300d]*\s*|\n\s*"""
)
_BLANK_LINE, _LINE_BREAK, _SPACE = regex.compile(r"\n\s*\n\s*"), regex.compile(r"\n\s*"), regex.compile(r"\s+")


def unit_starts(text: str, kind: str) -> list[int]:
    """Characters at which the units of `text` start, the first at 0. Raises: ValueError for an unknown kind."""
    if kind == "sentences":
        separator = _SENTENCE_END
    elif kind == "passages":
        separator = _BLANK_LINE if _BLANK_LINE.search(text.strip()) else _LINE_BREAK
    elif kind == "words":
        separator = _SPACE
    else:
        raise ValueError(f"units={kind!r}: allowed are {', '.join(UNITS)} (compressor.units)")
    ends = [match.end() for match in separator.finditer(text)]
    return [0, *(end for end in ends if 0 < end < len(text))]


def text_with_offsets(ids: Sequence[int], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens, and characters [start, end) of each token in it.

    Where tokenising the text again yields other tokens (a context cut in its middle, for example), the text is joined
    from single tokens. A character that several tokens encode is then a replacement character for each of them.
    """
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if tokenizer.is_fast:
        again = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        if again["input_ids"] == list(ids):
            return text, again["offset_mapping"]
    # Some tokenizers drop the space before a first token: each is decoded behind another one.
    distinct = list(dict.fromkeys(ids))
    behind = [[distinct[0], id] for id in distinct]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    first = len(tokenizer.decode(distinct[:1], **options)) if distinct else 0
    pieces = dict(zip(distinct, (piece[first:] for piece in tokenizer.batch_decode(behind, **options))))
    offsets, end = [], 0
    for id in ids:
        offsets.append((end, end + len(pieces[id])))
        end += len(pieces[id])
    return "".join(pieces[id] for id in ids), offsets


def unit_of_tokens(text: str, offsets: Sequence[tuple[int, int]], kind: str) -> list[int]:
    """Number of the unit of each token, from 0, without gaps. A token belongs to the unit of its first letter.

    White space belongs to the unit before it; many tokenizers put a space into the token of the word that follows.
    """
    starts = unit_starts(text, kind)
    numbers: dict[int, int] = {}
    units = []
    for start, end in offsets:
        piece = text[start:end]
        at = start + len(piece) - len(piece.lstrip()) if piece.strip() else start
        units.append(numbers.setdefault(bisect_right(starts, at) - 1, len(numbers)))
    return units


def fixed_segments(mask: Tensor, segment_size: int) -> Tensor:
    """Segment of each token of right-padded rows, (B, T) int64, -1 on padding."""
    columns = torch.arange(mask.shape[1], device=mask.device) // segment_size
    return columns.expand(mask.shape).masked_fill(~mask, -1)


def pad_lists(rows: Sequence[Sequence[int]], width: int | None = None, fill: int = 0) -> Tensor:
    """Rows of integers as (B, width) int64, padded on the right with `fill`; width None = the longest row's."""
    width = max(map(len, rows), default=0) if width is None else width
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.int64).view(
        len(rows), width
    )
