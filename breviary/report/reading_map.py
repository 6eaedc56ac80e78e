"""The reading map: one HTML page that shows, in the document itself, what a reader kept closely and what it merged.

From plain values to HTML; no tensors here. The page stands alone: no script, no font, no picture, nothing is loaded.
Texts are foreign: every one passes `shown` and is escaped, and the page forbids scripts besides.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

from breviary.memory.trace import TokenSpan

LEVELS = 8  # shades of background and of ink that the style sheet knows, 0 the weakest

STYLE = Path(__file__).with_suffix(".css")

OPENING = 60  # characters of a segment in the list of segments

POLICY = "default-src 'none'; style-src 'unsafe-inline'"

# Control characters break pages, and half a surrogate pair has no UTF-8: all become one visible character each.
_VISIBLE = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)
)


@dataclass(frozen=True)
class Card:
    """One question on one context, and what became of the context.

    offsets  characters [start, end) of each context token in `context`, in order; byte-level tokens may share one
    gold     True on tokens of gold evidence, one each; empty = the data marks none
    parts    in order, all tokens together
    slots    memory slots of the context; asked: the budget as the configuration says it, e.g. "4x"
    exact    the prediction equals a reference, normalised; f1: token F1 in [0, 1]
    """

    question: str
    prediction: str
    references: tuple[str, ...]
    exact: bool
    f1: float
    context: str
    offsets: tuple[tuple[int, int], ...]
    gold: tuple[bool, ...]
    parts: tuple[TokenSpan, ...]
    slots: int
    asked: str

    def __post_init__(self) -> None:
        tokens = sum(part.tokens for part in self.parts)
        assert tokens == len(self.offsets), (tokens, len(self.offsets))
        assert len(self.gold) in (0, tokens), (len(self.gold), tokens)

    @property
    def verdict(self) -> str:
        """right | partly right | wrong."""
        return "right" if self.exact else "partly right" if self.f1 > 0 else "wrong"


def character_spans(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int, int | None]]:
    """(start, end, token) that make up `text` from its first to its last character, each once.

    A character that several tokens share belongs to the first of them. White space between tokens belongs to the
    next one, at the end to the last; other characters of no token (a cut context's middle) get None.
    """
    spans: list[tuple[int, int, int | None]] = []
    at = 0
    for token, (start, end) in enumerate(offsets):
        if end <= max(start, at):
            continue
        if start > at and not text[at:start].isspace():
            spans.append((at, start, None))
            at = start
        spans.append((at, end, token))
        at = end
    if at < len(text):
        last = spans[-1][2] if spans and text[at:].isspace() else None
        spans.append((at, len(text), last))
    return spans


# ------------------------------------------------------------------ pieces of HTML


def shown(text: str) -> str:
    """`text` as the page shows it: control characters but tab and line feed as pictures, one character for one."""
    return text.translate(_VISIBLE)


def _escaped(text: str) -> str:
    return html.escape(shown(text), quote=True)


def _element(name: str, inner: str, **attributes: str | None) -> str:
    """`inner` is HTML, attributes are plain text: class_ stands for class, aria_x for aria-x; None = not there."""
    told = [
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    ]
    return f"<{name}{''.join(told)}>{inner}</{name}>"


def _foreign(text: str, nothing: str = "(nothing)") -> str:
    """A text of unknown direction inside a line of ours."""
    return _element("bdi", _escaped(text)) if text.strip() else _element("em", nothing)


def _level(share: float) -> int:
    return round(min(max(share, 0.0), 1.0) * (LEVELS - 1))


def _facts(pairs: Sequence[tuple[str, str]]) -> str:
    """(name, HTML) as a list of terms."""
    return _element(
        "dl", "".join(_element("div", _element("dt", name) + _element("dd", value)) for name, value in pairs)
    )


def _shades(parts: Sequence[TokenSpan]) -> list[int | None]:
    """How strongly each part is shaded: skimmed segments by the rank of their relevance in the document, as cosines of
    means lie close together; groups from twice the mean size, the weakest, to half of it, the strongest."""
    ranked = sorted({part.relevance for part in parts if part.kind == "skimmed"})
    sizes = {part.number: part.size for part in parts if part.kind == "group"}
    mean = sum(sizes.values()) / max(len(sizes), 1)
    shades: list[int | None] = []
    for part in parts:
        if part.kind == "skimmed":
            shades.append(_level(ranked.index(part.relevance) / (len(ranked) - 1) if len(ranked) > 1 else 0.5))
        elif part.kind == "group":
            shades.append(_level(0.5 + math.log2(mean / part.size) / 2))
        else:
            shades.append(None)
    return shades


def _title(part: TokenSpan, segments: int) -> str | None:
    if part.relevance is not None:
        how = {
            "kept": "read closely",
            "skimmed": "skimmed" + f" into {len(part.slot_sizes)} slots" * bool(part.slot_sizes),
            "dropped": "dropped",
        }[part.kind]
        return f"segment {part.number} of {segments}: {how}, relevance {part.relevance:.3f}, {part.tokens} tokens"
    if part.kind == "group":
        return None if part.weights else f"group of {part.size}, weighted equally"
    return {"kept": "kept as it is", "dropped": "in no slot", "whole": None}[part.kind]


def _part(
    card: Card, part: TokenSpan, first: int, spans: list[tuple[int, int, int]], shade: int | None, segments: int
) -> str:
    """The characters `spans` of a part whose first token is number `first`."""

    def ink(token: int) -> int:
        return _level(part.weights[token - first] / (max(part.weights) or 1))

    def gold(span: tuple[int, int, int]) -> bool:
        return bool(card.gold) and card.gold[span[2]]

    run_of = [i for i, length in enumerate(part.slot_sizes) for _ in range(length)] or [0] * part.tokens
    seen = {0}
    inner = []
    for _, run in groupby(spans, key=lambda span: span[2] if part.weights else (run_of[span[2] - first], gold(span))):
        piece = list(run)
        token = piece[0][2]
        classes, title = ["gold"] * gold(piece[0]), None
        if part.weights:
            classes.append(f"i{ink(token)}")
            title = f"weight {part.weights[token - first]:.3f} in a group of {part.size}"
        if run_of[token - first] not in seen:
            seen.add(run_of[token - first])
            classes.append("slot")
        text = _escaped(card.context[piece[0][0] : piece[-1][1]])
        name = "u" if gold(piece[0]) else "span"
        inner.append(_element(name, text, class_=" ".join(classes), title=title) if classes else text)
    classes = [part.kind] + ["odd"] * (part.number % 2) + ([] if shade is None else [f"s{shade}"])
    return _element("span", "".join(inner), class_=" ".join(classes), title=_title(part, segments))


def _segments(parts: Sequence[TokenSpan]) -> list[TokenSpan]:
    return [part for part in parts if part.relevance is not None]


def _document(card: Card) -> str:
    """The context's whole text, in order, marked."""
    if not card.context:
        return _element("p", "The context is empty.", class_="note")
    index_of = [i for i, part in enumerate(card.parts) for _ in range(part.tokens)]
    firsts = list(accumulate((part.tokens for part in card.parts), initial=0))
    shades, segments = _shades(card.parts), len(_segments(card.parts))
    pieces = []
    for index, run in groupby(
        character_spans(card.context, card.offsets), key=lambda span: None if span[2] is None else index_of[span[2]]
    ):
        spans = list(run)
        if index is None:
            text = _escaped(card.context[spans[0][0] : spans[-1][1]])
            pieces.append(_element("span", text, class_="cut", title="not read: cut off before reading"))
        else:
            pieces.append(_part(card, card.parts[index], firsts[index], spans, shades[index], segments))
    return _element("div", "".join(pieces), class_="document", dir="auto")


def _budget(card: Card) -> str:
    """Tokens, slots, ratios; how many segments, tokens or groups; characters that no token covers."""
    tokens, parts = len(card.offsets), card.parts
    told = [
        f"{tokens} context tokens in {card.slots} slots",
        f"asked {card.asked}",
        f"reached {tokens / card.slots:.1f}x" if card.slots else "nothing kept",
    ]
    sizes = {part.number: part.size for part in parts if part.kind == "group"}
    segments = _segments(parts)
    if segments:
        told.append(f"{sum(part.kind == 'kept' for part in segments)} of {len(segments)} segments read closely")
    elif sizes:
        told.append(f"{len(sizes)} groups of {min(sizes.values())} to {max(sizes.values())} tokens")
    elif any(part.kind in ("kept", "dropped") for part in parts):
        told.append(f"{sum(part.tokens for part in parts if part.kind == 'kept')} of {tokens} tokens kept")
    cut = sum(end - start for start, end, token in character_spans(card.context, card.offsets) if token is None)
    if cut:
        told.append(f"{cut} of {len(card.context)} characters not read")
    return " · ".join(told)


def _gold_line(card: Card) -> str | None:
    """How the gold evidence fared; None where none is marked."""
    if not any(card.gold):
        return None
    firsts = list(accumulate((part.tokens for part in card.parts), initial=0))
    golds = [sum(card.gold[first : first + part.tokens]) for first, part in zip(firsts, card.parts)]
    if _segments(card.parts):
        holders = [part.kind for part, gold in zip(card.parts, golds) if gold]
        return f"{holders.count('kept')} of {len(holders)} segments that hold gold evidence read closely"
    if any(part.kind == "group" for part in card.parts):
        sizes = [part.size for part in card.parts for _ in range(part.tokens)]
        means = [
            f"{sum(own) / len(own):.1f}" if own else "none"
            for own in ([size for size, gold in zip(sizes, card.gold) if gold is wanted] for wanted in (True, False))
        ]
        return f"mean size of the group that a token is in: {means[0]} for gold evidence, {means[1]} elsewhere"
    kept = sum(gold for part, gold in zip(card.parts, golds) if part.kind == "kept")
    return f"{kept} of {sum(golds)} gold tokens kept"


def _segment_list(card: Card) -> str:
    """Every segment with its number, for those who cannot hover."""
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    index_of = [i for i, part in enumerate(card.parts) for _ in range(part.tokens)]
    for start, end, token in character_spans(card.context, card.offsets):
        if token is not None:
            starts.setdefault(index_of[token], start)
            ends[index_of[token]] = end
    firsts = accumulate((part.tokens for part in card.parts), initial=0)
    rows = [
        _element(
            "tr", "".join(_element("th", name, scope="col") for name in ("no.", "read", "relevance", "gold", "begins"))
        )
    ]
    for i, (part, first) in enumerate(zip(card.parts, firsts)):
        gold = any(card.gold[first : first + part.tokens])
        begins = card.context[starts.get(i, 0) : ends.get(i, 0)][:OPENING]
        how = {"kept": "closely"}.get(part.kind, part.kind)
        cells = [
            str(part.number),
            how,
            f"{part.relevance:.3f}",
            "gold" if gold else "",
            _element("bdi", _escaped(begins)),
        ]
        rows.append(_element("tr", "".join(_element("td", cell) for cell in cells), class_=part.kind))
    return _element(
        "details", _element("summary", f"All {len(card.parts)} segments as a list") + _element("table", "".join(rows))
    )


def _verdict(card: Card) -> str:
    sign = {"right": "✓ right", "partly right": f"partly right, F1 {card.f1:.2f}", "wrong": "✗ wrong"}[card.verdict]
    return _element("strong", sign, class_=card.verdict.replace(" ", "-"))


def _card(card: Card, number: int) -> str:
    references = "".join(_element("li", _foreign(reference)) for reference in card.references)
    gold = _gold_line(card)
    told = [
        ("Prediction", _foreign(card.prediction, "(empty answer)") + " " + _verdict(card)),
        ("References", _element("ul", references)),
        ("Budget", _escaped(_budget(card))),
    ]
    told += [("Evidence", gold)] if gold else []
    heading = _element("h2", f"{number}. {_foreign(card.question)}", id=f"question-{number}")
    listed = _segment_list(card) if _segments(card.parts) else ""
    return _element(
        "article", f"{heading}\n{_facts(told)}\n{_document(card)}\n{listed}", aria_labelledby=f"question-{number}"
    )


def _legend(cards: Sequence[Card]) -> str:
    """Only what occurs on this page."""
    kinds = {part.kind for card in cards for part in card.parts}
    ramp, inks = (
        _element(
            "span", "".join(_element("span", text, class_=f"{name}{level}") for level in range(LEVELS)), class_="ramp"
        )
        for name, text in (("s", "&nbsp;"), ("i", "a"))
    )
    lines = {
        "kept": _element("span", "kept", class_="kept") + ": every token is a slot, read closely",
        "skimmed": _element("span", "skimmed", class_="skimmed s4")
        + ": a segment merged into one slot, or a few with a "
        f"line between; shade {ramp} from the least to the most relevant one of the document, in order of rank",
        "dropped": _element("span", "dropped", class_="dropped") + ": in no slot",
        "group": _element("span", "group", class_="group odd s4") + ": merged into one slot, every other group with a "
        f"line above; shade {ramp} from long groups (twice the mean size or more: little attention) to short ones (half "
        "or less)",
        "whole": "plain text: the reader does not tell what became of single tokens",
    }
    told = [line for kind, line in lines.items() if kind in kinds]
    if any(part.weights for card in cards for part in card.parts):
        told.append(f"ink {inks} from small to large merge weight within the group")
    if any(any(card.gold) for card in cards):
        told.append(_element("u", "gold", class_="gold") + ": evidence that the data marks")
    if any(token is None for card in cards for *_, token in character_spans(card.context, card.offsets)):
        told.append(_element("span", "cut", class_="cut") + ": not read, cut off before")
    items = "".join(_element("li", line) for line in told)
    listed = "; those of segments also stand in the list below each document" if "skimmed" in kinds else ""
    return _element(
        "section",
        f'<h2>Legend</h2>\n<ul>{items}</ul>\n<p class="note">Numbers appear where the pointer rests{listed}.</p>',
        class_="legend",
    )


def page(facts: Sequence[tuple[str, str]], cards: Sequence[Card]) -> str:
    """The whole page. facts: (name, value) of what was read by whom, plain text."""
    right = sum(card.exact for card in cards)
    mean = sum(card.f1 for card in cards) / max(len(cards), 1)
    told = [(_escaped(name), _foreign(value)) for name, value in facts]
    told.append(("Answers", f"{right} of {len(cards)} exactly right, mean F1 {mean:.2f}"))
    links = "".join(
        _element("li", _element("a", _foreign(card.question), href=f"#question-{i}") + " " + _verdict(card))
        for i, card in enumerate(cards, 1)
    )
    title = _escaped(" · ".join(["Reading map", *(value for _, value in facts[:1])]))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title}</title>",
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>",
            "</head>",
            "<body>",
            _element("header", f"<h1>Reading map</h1>\n{_facts(told)}"),
            _legend(cards),
            _element("nav", f"<h2>Questions</h2>\n<ol>{links}</ol>"),
            _element("main", "\n".join(_card(card, i) for i, card in enumerate(cards, 1))),
            "</body>",
            "</html>",
            "",
        ]
    )
