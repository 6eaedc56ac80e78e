"""The page of a reading map: from cards, which are plain values, to HTML.

The page needs no other file: no script, no font, no image, and its content security policy forbids scripts. Questions,
answers and contexts are untrusted text. The templates escape every value, and control characters become visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from breviary.report.reading_map_marks import (
    LEVELS,
    TAIL,
    Card,
    character_spans,
    document_pieces,
    token_shares,
    treatment,
    uncovered_characters,
)
from breviary.runtime.html import html_environment

TEMPLATES = Path(__file__).with_name("templates")

MAX_OPENING = 60  # characters of a segment in the list of segments


# ---- rendering ----


def render_page(facts: Sequence[tuple[str, str]], cards: Sequence[Card]) -> str:
    """The HTML page. facts: (name, value) of the reader and the data, plain text."""
    mean = sum(card.f1 for card in cards) / max(len(cards), 1)
    view = {
        "title": " · ".join(["Reading map", *(value for _, value in facts[:1])]),
        "facts": facts,
        "summary": f"{sum(card.exact for card in cards)} of {len(cards)} exactly right, mean F1 {mean:.2f}",
        **marks_of(cards),
        "cards": [card_view(card) for card in cards],
    }
    return template_environment().get_template("reading_map.html.jinja").render(view)


def marks_of(cards: Sequence[Card]) -> dict[str, Any]:
    """What the legend explains: the marks that occur in the cards, and their scales."""
    return {
        "kinds": {span.kind for card in cards for span in card.spans},
        "has_notes": any(span.kind != "whole" for card in cards for span in card.spans),
        "tail": f"{TAIL:.0%}",
        "has_gold": any(any(card.gold) for card in cards),
        "has_cut": any(uncovered_characters(card) for card in cards),
        "levels": LEVELS,
    }


def template_environment() -> Environment:
    """The page's templates, see `html_environment`."""
    return html_environment(TEMPLATES)


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


def budget_line(card: Card) -> str:
    """Tokens, slots and ratios; counts of segments, tokens or groups; characters without a token."""
    tokens, spans = len(card.offsets), card.spans
    parts = [
        f"{tokens} context tokens in {card.slots} slots",
        "no requested budget" if card.requested is None else f"requested {card.requested}",
        f"achieved {tokens / card.slots:.1f}x" if card.slots else "nothing kept",
    ]
    sizes, segments = card.group_sizes, card.segments
    if segments:
        parts.append(f"{sum(span.kind == 'kept' for span in segments)} of {len(segments)} segments read closely")
    elif sizes:
        parts.append(f"{len(sizes)} groups of {min(sizes.values())} to {max(sizes.values())} tokens")
        shares = [share for share in token_shares(spans) if share is not None]
        parts.append(f"a token's share of its slot {min(shares):.3f} to {max(shares):.3f}")
    elif any(span.kind == "cache" for span in spans):
        kept = [share for span in spans for share in span.weights]
        parts.append(f"a token is kept by {min(kept):.3f} to {max(kept):.3f} of layers and heads")
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
    if any(span.kind == "cache" for span in card.spans):
        shares = [share for span in card.spans for share in span.weights]
        gold = _mean_or_none([share for share, is_gold in zip(shares, card.gold) if is_gold], digits=3)
        other = _mean_or_none([share for share, is_gold in zip(shares, card.gold) if not is_gold], digits=3)
        return f"mean share of layers and heads that keep a token: {gold} for gold evidence, {other} elsewhere"
    kept = sum(gold for span, gold in zip(card.spans, golds) if span.kind == "kept")
    return f"{kept} of {sum(golds)} gold tokens kept"


def segment_rows(card: Card) -> list[dict[str, Any]]:
    """Every segment as a table row: the numbers of the notes side by side, and on paper."""
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
            "treatment": treatment(span),
            "relevance": f"{span.relevance:.3f}",
            "gold": "gold" if any(card.gold[first : first + span.tokens]) else "",
            "opening": card.context[starts.get(i, 0) : ends.get(i, 0)][:MAX_OPENING],
        }
        for i, (span, first) in enumerate(zip(card.spans, card.first_tokens))
    ]


def _mean_or_none(values: Sequence[float], digits: int = 1) -> str:
    return f"{sum(values) / len(values):.{digits}f}" if values else "none"
