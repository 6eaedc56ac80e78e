"""The page of a reading map: from cards, which are plain values, to HTML.

The page needs no other file: no script, no font, no image, and its content security policy forbids scripts. Questions,
answers and contexts are untrusted text. The templates escape every value, and control characters become visible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from breviary.memory.trace import TokenSpan

TEMPLATES = Path(__file__).with_name("templates")

LEVELS = 8  # shades of background and of ink in the style sheet, 0 = the weakest

MAX_OPENING = 60  # characters of a segment in the list of segments

# Control characters break pages, and a lone surrogate has no UTF-8: each becomes one visible character.
_VISIBLE = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)
)

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
    def first_tokens(self) -> list[int]:
        """The number of each span's first token."""
        return list(accumulate((span.tokens for span in self.spans), initial=0))[:-1]

    @property
    def span_of_token(self) -> list[int]:
        """The index of each token's span."""
        return [i for i, span in enumerate(self.spans) for _ in range(span.tokens)]


# ---- rendering ----


def render_page(facts: Sequence[tuple[str, str]], cards: Sequence[Card]) -> str:
    """The HTML page. facts: (name, value) of the reader and the data, plain text."""
    mean = sum(card.f1 for card in cards) / max(len(cards), 1)
    view = {
        "title": " · ".join(["Reading map", *(value for _, value in facts[:1])]),
        "facts": facts,
        "summary": f"{sum(card.exact for card in cards)} of {len(cards)} exactly right, mean F1 {mean:.2f}",
        "kinds": {span.kind for card in cards for span in card.spans},
        "has_weights": any(span.weights for card in cards for span in card.spans),
        "has_gold": any(any(card.gold) for card in cards),
        "has_cut": any(uncovered_characters(card) for card in cards),
        "levels": LEVELS,
        "cards": [card_view(card) for card in cards],
    }
    return template_environment().get_template("reading_map.html.jinja").render(view)


def template_environment() -> Environment:
    """Every value that a template writes is made visible, then escaped."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )


def _finalize(value: Any) -> Any:
    return visible_text(value) if type(value) is str else value  # the output of a macro is Markup, already finished


def visible_text(text: str) -> str:
    """Replaces control characters except tab and line feed by visible ones; the length does not change."""
    return text.translate(_VISIBLE)


# ---- views: the values that the templates write ----


def card_view(card: Card) -> dict[str, Any]:
    """One card as plain values."""
    verdicts = {"right": "✓ right", "partly right": f"partly right, F1 {card.f1:.2f}", "wrong": "✗ wrong"}
    return {
        "question": card.question,
        "prediction": card.prediction,
        "references": card.references,
        "verdict": verdicts[card.verdict],
        "verdict_class": card.verdict.replace(" ", "-"),
        "budget": budget_line(card),
        "evidence": evidence_line(card),
        "pieces": document_pieces(card),
        "segments": segment_rows(card) if card.segments else [],
    }


@dataclass(frozen=True)
class TextRun:
    """Characters with the same marks: CSS classes, the title shown when the pointer is on them, gold evidence."""

    text: str
    classes: str = ""
    title: str | None = None
    is_gold: bool = False


@dataclass(frozen=True)
class Piece:
    """The text of a token span, or characters without tokens."""

    classes: str
    title: str | None
    runs: list[TextRun]


def document_pieces(card: Card) -> list[Piece]:
    """The whole context in order: one piece per span, and one per stretch of characters without tokens."""
    span_of, firsts, shades = card.span_of_token, card.first_tokens, _shades(card.spans)
    segments = len(card.segments)
    pieces: list[Piece] = []
    for index, run in groupby(
        character_spans(card.context, card.offsets), key=lambda item: None if item[2] is None else span_of[item[2]]
    ):
        characters = list(run)
        if index is None:
            text = card.context[characters[0][0] : characters[-1][1]]
            pieces.append(Piece("cut", "not read: truncated from the context", [TextRun(text)]))
            continue
        span, shade = card.spans[index], shades[index]
        classes = [span.kind, *(["odd"] if span.number % 2 else []), *([] if shade is None else [f"s{shade}"])]
        of_tokens = [(start, end, token) for start, end, token in characters if token is not None]
        runs = _text_runs(card, span, firsts[index], of_tokens)
        pieces.append(Piece(" ".join(classes), _span_title(span, segments), runs))
    return pieces


def _text_runs(card: Card, span: TokenSpan, first: int, characters: list[TokenCharacters]) -> list[TextRun]:
    """The characters of a span, whose first token is number `first`, in runs of equal marks.

    With merge weights every token is a run; otherwise a run ends where the slot or the gold evidence changes.
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
        classes, title = ["gold"] if is_gold(run[0]) else [], None
        if span.weights:
            classes.append(f"i{_level(span.weights[token] / (max(span.weights) or 1))}")
            title = f"weight {span.weights[token]:.3f} in a group of {span.size}"
        if slot_of[token] not in seen:
            seen.add(slot_of[token])
            classes.append("slot")
        text = card.context[run[0][0] : run[-1][1]]
        runs.append(TextRun(text, " ".join(classes), title, is_gold(run[0])))
    return runs


def _span_title(span: TokenSpan, segments: int) -> str | None:
    """The numbers of a span, shown when the pointer is on it; `segments`: how many the context has."""
    if span.relevance is not None:
        return (
            f"segment {span.number} of {segments}: {_treatment(span)}, relevance {span.relevance:.3f}, "
            f"{span.tokens} tokens"
        )
    if span.kind == "group":
        return None if span.weights else f"group of {span.size}, weighted equally"
    return {"kept": "kept unchanged", "dropped": "in no slot", "whole": None}[span.kind]


def _treatment(span: TokenSpan) -> str:
    """How a segment was compressed."""
    if span.kind == "skimmed" and span.slot_sizes:
        return f"skimmed into {len(span.slot_sizes)} slots"
    return "read closely" if span.kind == "kept" else span.kind


def budget_line(card: Card) -> str:
    """Tokens, slots and ratios; counts of segments, tokens or groups; characters without a token."""
    tokens, spans = len(card.offsets), card.spans
    parts = [
        f"{tokens} context tokens in {card.slots} slots",
        "no requested budget" if card.requested is None else f"requested {card.requested}",
        f"achieved {tokens / card.slots:.1f}x" if card.slots else "nothing kept",
    ]
    sizes = {span.number: span.size for span in spans if span.kind == "group"}
    segments = card.segments
    if segments:
        parts.append(f"{sum(span.kind == 'kept' for span in segments)} of {len(segments)} segments read closely")
    elif sizes:
        parts.append(f"{len(sizes)} groups of {min(sizes.values())} to {max(sizes.values())} tokens")
    elif any(span.kind in ("kept", "dropped") for span in spans):
        parts.append(f"{sum(span.tokens for span in spans if span.kind == 'kept')} of {tokens} tokens kept")
    cut = uncovered_characters(card)
    if cut:
        parts.append(f"{cut} of {len(card.context)} characters not read")
    return " · ".join(parts)


def evidence_line(card: Card) -> str | None:
    """How the gold evidence was compressed; None where the data marks none."""
    if not any(card.gold):
        return None
    golds = [sum(card.gold[first : first + span.tokens]) for first, span in zip(card.first_tokens, card.spans)]
    if card.segments:
        kinds = [span.kind for span, gold in zip(card.spans, golds) if gold]
        return f"{kinds.count('kept')} of {len(kinds)} segments with gold evidence read closely"
    if any(span.kind == "group" for span in card.spans):
        sizes = [span.size for span in card.spans for _ in range(span.tokens)]
        gold = _mean_or_none([size for size, is_gold in zip(sizes, card.gold) if is_gold])
        other = _mean_or_none([size for size, is_gold in zip(sizes, card.gold) if not is_gold])
        return f"mean size of a token's group: {gold} for gold evidence, {other} elsewhere"
    kept = sum(gold for span, gold in zip(card.spans, golds) if span.kind == "kept")
    return f"{kept} of {sum(golds)} gold tokens kept"


def segment_rows(card: Card) -> list[dict[str, Any]]:
    """Every segment as a table row, because the titles of the marks need a pointer."""
    span_of = card.span_of_token
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for start, end, token in character_spans(card.context, card.offsets):
        if token is not None:
            starts.setdefault(span_of[token], start)
            ends[span_of[token]] = end
    return [
        {
            "kind": span.kind,
            "number": span.number,
            "treatment": "read closely" if span.kind == "kept" else span.kind,
            "relevance": f"{span.relevance:.3f}",
            "gold": "gold" if any(card.gold[first : first + span.tokens]) else "",
            "opening": card.context[starts.get(i, 0) : ends.get(i, 0)][:MAX_OPENING],
        }
        for i, (span, first) in enumerate(zip(card.spans, card.first_tokens))
    ]


# ---- characters and shades ----


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


def _shades(spans: Sequence[TokenSpan]) -> list[int | None]:
    """The level of each span's background; None for kinds without one.

    Skimmed segments by the rank of their relevance in the document, because cosines of means lie close together. Groups
    from twice the mean size (weakest) to half of it (strongest), on a logarithmic scale.
    """
    ranked = sorted({span.relevance for span in spans if span.kind == "skimmed" and span.relevance is not None})
    sizes = {span.number: span.size for span in spans if span.kind == "group"}
    mean = sum(sizes.values()) / max(len(sizes), 1)
    shades: list[int | None] = []
    for span in spans:
        if span.kind == "skimmed" and span.relevance is not None:
            shades.append(_level(ranked.index(span.relevance) / (len(ranked) - 1) if len(ranked) > 1 else 0.5))
        elif span.kind == "group":
            shades.append(_level(0.5 + math.log2(mean / span.size) / 2))
        else:
            shades.append(None)
    return shades


def _level(share: float) -> int:
    return round(min(max(share, 0.0), 1.0) * (LEVELS - 1))


def _mean_or_none(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else "none"
