"""The marks of a reading map: which characters of a context carry which classes and which numbers.

Plain values only; `breviary.report.reading_map_page` writes them as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from breviary.memory.trace import TokenSpan

LEVELS = 8  # shades in the style sheet, 0 = the weakest

TAIL = 0.05  # part of the tokens below the weakest, and above the strongest level of a context's shares

EQUAL = 1e-3  # natural logarithms of shares that differ by less are equal

MAX_NOTED = 40  # tokens of a group whose shares a note lists

CharacterSpan = tuple[int, int, int | None]  # start, end, token; None = of no token
TokenCharacters = tuple[int, int, int]


@dataclass(frozen=True)
class Card:
    """One question on one context, and how the reader compressed the context.

    offsets    characters [start, end) of each context token in `context`, in order; byte-level tokens may share one
    gold       True on tokens of gold evidence, one per token; empty = the data marks none
    spans      every token once, in order
    slots      memory slots of the context
    requested  the budget in the configuration, e.g. "4x"; None = none is configured
    exact      whether the prediction equals a reference after normalisation
    f1         token F1 in [0, 1]
    """

    question: str
    prediction: str
    references: tuple[str, ...]
    exact: bool
    f1: float
    context: str
    offsets: tuple[tuple[int, int], ...]
    gold: tuple[bool, ...]
    spans: tuple[TokenSpan, ...]
    slots: int
    requested: str | None

    def __post_init__(self) -> None:
        tokens = sum(span.tokens for span in self.spans)
        assert tokens == len(self.offsets), (tokens, len(self.offsets))
        assert len(self.gold) in (0, tokens), (len(self.gold), tokens)

    @property
    def verdict(self) -> str:
        """right | partly right | wrong."""
        return "right" if self.exact else "partly right" if self.f1 > 0 else "wrong"

    @property
    def segments(self) -> list[TokenSpan]:
        """The spans that are segments with a relevance."""
        return [span for span in self.spans if span.relevance is not None]

    @property
    def group_sizes(self) -> dict[int, int]:
        """Tokens of each group, by its number."""
        return {span.number: span.size for span in self.spans if span.kind == "group"}

    @property
    def first_tokens(self) -> list[int]:
        """The number of each span's first token."""
        return list(accumulate((span.tokens for span in self.spans), initial=0))[:-1]

    @property
    def span_of_token(self) -> list[int]:
        """The index of each token's span."""
        return [i for i, span in enumerate(self.spans) for _ in range(span.tokens)]


@dataclass(frozen=True)
class TextRun:
    """Characters with the same marks: CSS classes, and whether they are gold evidence."""

    text: str
    classes: str = ""
    is_gold: bool = False


@dataclass(frozen=True)
class Piece:
    """The text of a token span, or characters without tokens. note: its numbers in words; None = it has none."""

    classes: str
    note: str | None
    runs: list[TextRun]


def document_pieces(card: Card) -> list[Piece]:
    """The whole context in order: one piece per span, and one per stretch of characters without tokens."""
    span_of, firsts = card.span_of_token, card.first_tokens
    segments, levels = segment_levels(card.spans), share_levels(card.spans)
    notes = _Notes(card)
    pieces: list[Piece] = []
    for index, run in groupby(
        character_spans(card.context, card.offsets), key=lambda item: None if item[2] is None else span_of[item[2]]
    ):
        characters = list(run)
        if index is None:
            text = card.context[characters[0][0] : characters[-1][1]]
            pieces.append(Piece("cut", f"{len(text)} characters not read: truncated from the context", [TextRun(text)]))
            continue
        span, first = card.spans[index], firsts[index]
        of_tokens = [(start, end, token) for start, end, token in characters if token is not None]
        runs = _text_runs(card, span, first, of_tokens, levels[first : first + span.tokens])
        classes = [span.kind, *(["odd"] if span.number % 2 else [])]
        if segments[index] is not None:
            classes.append(f"r{segments[index]}")
        pieces.append(Piece(" ".join(classes), notes.of(index, of_tokens), runs))
    return pieces


def _text_runs(
    card: Card, span: TokenSpan, first: int, characters: list[TokenCharacters], levels: list[int | None]
) -> list[TextRun]:
    """The characters of a span, whose first token is number `first`, in runs of equal marks.

    A run ends where the slot or the gold evidence changes; with merge weights after every token.
    """

    def is_gold(item: TokenCharacters) -> bool:
        return bool(card.gold) and card.gold[item[2]]

    slot_of = [i for i, size in enumerate(span.slot_sizes) for _ in range(size)] or [0] * span.tokens
    seen = {0}
    runs = []
    for _, group in groupby(
        characters, key=lambda item: item[2] if span.weights else (slot_of[item[2] - first], is_gold(item))
    ):
        run = list(group)
        token = run[0][2] - first
        classes = ["gold"] if is_gold(run[0]) else []
        if levels[token] is not None:
            classes.append(f"s{levels[token]}")
        if slot_of[token] not in seen:
            seen.add(slot_of[token])
            classes.append("slot")
        text = card.context[run[0][0] : run[-1][1]]
        runs.append(TextRun(text, " ".join(classes), is_gold(run[0])))
    return runs


# ---- notes: the numbers of a piece ----


class _Notes:
    """Writes the numbers of a card's spans as one line each."""

    def __init__(self, card: Card) -> None:
        self.card, self.firsts = card, card.first_tokens
        self.sizes = card.group_sizes
        self.ranking = sorted((span.relevance for span in card.segments if span.relevance is not None), reverse=True)

    def of(self, index: int, characters: list[TokenCharacters]) -> str | None:
        """The note of span number `index`, whose tokens own these characters."""
        span, first = self.card.spans[index], self.firsts[index]
        if span.relevance is not None:
            note = self._segment(span)
        elif span.kind == "group":
            note = self._group(span, first, characters)
        elif span.kind == "cache":
            shares = self._shares(span, first, characters)
            note = f"tokens {first + 1} to {first + span.tokens}; kept by this share of layers and heads: {shares}"
        elif span.kind == "whole":
            return None
        else:
            note = f"{_tokens(span.tokens)} " + ("kept, a slot each" if span.kind == "kept" else "in no slot")
        gold = sum(self.card.gold[first : first + span.tokens])
        return f"{note}, {gold} of gold evidence" if gold else note

    def _segment(self, span: TokenSpan) -> str:
        assert span.relevance is not None, span
        rank = self.ranking.index(span.relevance) + 1
        return (
            f"segment {span.number} of {len(self.ranking)}: {treatment(span)}, relevance {span.relevance:.3f} "
            f"(rank {rank}), {_tokens(span.tokens)}"
        )

    def _group(self, span: TokenSpan, first: int, characters: list[TokenCharacters]) -> str:
        note = f"slot {span.number} of {len(self.sizes)}: {_tokens(span.size)}"
        if span.tokens < span.size:
            note += f", {span.tokens} of them here"
        if span.size == 1:
            return f"{note}, alone"
        if not span.weights:
            return f"{note}, equal shares of {1 / span.size:.3f}"
        return f"{note}; shares: {self._shares(span, first, characters)}"

    def _shares(self, span: TokenSpan, first: int, characters: list[TokenCharacters]) -> str:
        """The text of each token with its weight."""
        texts = {token: " ".join(self.card.context[start:end].split()) for start, end, token in characters}
        shares = [f"{texts.get(first + i) or '·'} {weight:.3f}" for i, weight in enumerate(span.weights[:MAX_NOTED])]
        return ", ".join([*shares, *(["…"] if span.tokens > MAX_NOTED else [])])


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def treatment(span: TokenSpan) -> str:
    """How a segment was compressed."""
    if span.kind == "skimmed" and span.slot_sizes:
        return f"skimmed into {len(span.slot_sizes)} slots"
    return {"kept": "read closely", "skimmed": "skimmed into 1 slot"}.get(span.kind, span.kind)


# ---- characters ----


def character_spans(text: str, offsets: Sequence[tuple[int, int]]) -> list[CharacterSpan]:
    """(start, end, token) that cover `text` from its first to its last character, each character once.

    A character shared by several tokens belongs to the first of them. White space between tokens belongs to the next
    token, at the end of the text to the last. Other characters without a token (the middle of a truncated context) have
    None.
    """
    spans: list[CharacterSpan] = []
    position = 0
    for token, (start, end) in enumerate(offsets):
        if end <= max(start, position):
            continue
        if start > position and not text[position:start].isspace():
            spans.append((position, start, None))
            position = start
        spans.append((position, end, token))
        position = end
    if position < len(text):
        last = spans[-1][2] if spans and text[position:].isspace() else None
        spans.append((position, len(text), last))
    return spans


def uncovered_characters(card: Card) -> int:
    """Characters of the context without a token, see `character_spans`."""
    return sum(end - start for start, end, token in character_spans(card.context, card.offsets) if token is None)


# ---- shades ----


def segment_levels(spans: Sequence[TokenSpan]) -> list[int | None]:
    """The level of each skimmed segment; None for other spans.

    By the rank of its relevance in the document, because cosines of means lie close together.
    """
    ranked = sorted({span.relevance for span in spans if span.kind == "skimmed" and span.relevance is not None})
    return [
        None
        if span.kind != "skimmed" or span.relevance is None
        else _level(ranked.index(span.relevance) / (len(ranked) - 1) if len(ranked) > 1 else 0.5)
        for span in spans
    ]


def token_shares(spans: Sequence[TokenSpan]) -> list[float | None]:
    """The share of each token in its slot: its merge weight, 1 / size where weights are equal; None outside groups.

    Of a cache: the share of layers and heads that keep the token.
    """
    shares: list[float | None] = []
    for span in spans:
        if span.kind in ("group", "cache"):
            shares += span.weights or [1 / span.size] * span.tokens
        else:
            shares += [None] * span.tokens
    return shares


def share_levels(spans: Sequence[TokenSpan]) -> list[int | None]:
    """The level of each of `token_shares`, on a logarithmic scale; None where it is None.

    The scale spans the context's own shares without its tails, so that small differences are visible and a few tokens
    with a slot of their own do not hide the others. Equal shares have the middle level, shares of 0 the weakest.
    """
    shares = token_shares(spans)
    logs = sorted(math.log(share) for share in shares if share)
    if not logs:
        return [None if share is None else 0 for share in shares]
    low, high = logs[int(TAIL * (len(logs) - 1))], logs[math.ceil((1 - TAIL) * (len(logs) - 1))]
    if high - low < EQUAL:
        low, high = low - EQUAL, high + EQUAL
    return [
        None if share is None else _level((math.log(share) - low) / (high - low)) if share else 0 for share in shares
    ]


def _level(part: float) -> int:
    return round(min(max(part, 0.0), 1.0) * (LEVELS - 1))
