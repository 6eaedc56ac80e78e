"""How readers, encoded contexts and memories show themselves: one line (`repr`), and HTML in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from breviary.memory.trace import TokenSpan
from breviary.runtime.html import html_environment

TEMPLATES = Path(__file__).with_name("templates")

MOST_SPANS = 2000  # spans of the HTML view; further ones are counted
OPENING_TOKENS = 16  # of a text, stated in its views

MEANINGS = {
    "kept": "each token is a slot",
    "skimmed": "a segment, merged into one or a few slots",
    "group": "merged into one slot; the stronger the colour, the fewer tokens share it",
    "dropped": "in no slot",
    "cache": "kept by some layers and heads",
    "whole": "not described token by token",
}
STYLES = {
    "kept": "font-weight: 600; border-left: 3px solid",
    "skimmed": "opacity: .75; border-left: 1px solid",
    "group": "border-left: 1px solid",
    "dropped": "opacity: .6; text-decoration: line-through",
    "cache": "border-left: 1px dotted",
    "whole": "",
}


class Described:
    """Adds `repr` and the HTML view of notebooks to a class that states its facts."""

    def facts(self) -> dict[str, str]:
        """What both views state, by name."""
        raise NotImplementedError

    def shown_spans(self) -> Sequence[tuple[TokenSpan, str]]:
        """How each span of the context was compressed, and its text, for the HTML view."""
        return []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'; '.join(f'{name}: {value}' for name, value in self.facts().items())})"

    def _repr_html_(self) -> str:
        """HTML for notebooks, which call it by this name. Its text is untrusted, and escaped."""
        spans = self.shown_spans()
        marks = [(text, span_style(span), span_note(span)) for span, text in spans[:MOST_SPANS]]
        kinds = dict.fromkeys(span.kind for span, _ in spans)
        view = {
            "title": type(self).__name__,
            "facts": self.facts(),
            "marks": marks,
            "legend": [(kind, STYLES[kind], MEANINGS[kind]) for kind in kinds],
            "hidden": sum(span.tokens for span, _ in spans[MOST_SPANS:]),
        }
        return html_environment(TEMPLATES).get_template("view.html.jinja").render(view)


def span_style(span: TokenSpan) -> str:
    """CSS of a span. The fewer tokens share a slot, the stronger is the background of a group."""
    background = f"; background: rgba(11, 87, 208, {0.4 / span.size**0.5:.2f})" if span.kind == "group" else ""
    return STYLES[span.kind] + background


def span_note(span: TokenSpan) -> str:
    """The numbers of a span, shown when the pointer is on it."""
    slots = {"kept": span.tokens, "skimmed": len(span.slot_sizes) or 1, "group": 1, "dropped": 0}.get(span.kind)
    tokens = span.size if span.kind == "group" else span.tokens
    parts = [
        f"segment {span.number}" if span.relevance is not None else "",
        span.kind if slots is None else f"{span.kind}: {tokens} tokens, {slots} slot{'' if slots == 1 else 's'}",
        "" if span.relevance is None else f"relevance {span.relevance:.3f}",
        f"weights {min(span.weights):.2f} to {max(span.weights):.2f}" if span.weights else "",
    ]
    return "; ".join(part for part in parts if part)


def reader_facts(reader: Any) -> dict[str, str]:
    """Method, requested budget, and what `load_reader` knows of the reader's origin."""
    compressor = getattr(reader, "compressor", reader)
    settings = (reader.identity or {}).get("settings", {})
    facts = {"method": type(compressor).__name__}
    if reader.requested_ratio is not None:
        facts["requested ratio"] = f"{reader.requested_ratio:g}x"
    facts |= {f"requested {key}": str(settings[key]) for key in ("slots", "memory_tokens") if settings.get(key)}
    if settings.get("join"):
        facts["join"] = settings["join"]
    return facts | dict(reader.origin or {})


def context_facts(context: Any, slots: str) -> dict[str, str]:
    """Sizes of an encoded context or a memory, then the facts of its reader. slots: their number in words."""
    return {
        "tokens read": f"{context.tokens_read:,}",
        "slots": slots,
        "bytes": f"{context.bytes:,}, the key/value cache of the same text {context.cache_bytes:,}",
        **reader_facts(context.reader),
    }


def slots_in_words(slots: int, tokens: int) -> str:
    """'203, 4.0 tokens each'."""
    return f"{slots:,}, {tokens / slots:.1f} tokens each" if slots else "none"


def opening(tokenizer: Any, ids: Sequence[int]) -> str:
    """The beginning of a text as a quoted literal."""
    text = tokenizer.decode(list(ids[:OPENING_TOKENS]))
    return repr(f"{text} ..." if len(ids) > OPENING_TOKENS else text)
