"""HTML made from untrusted text: templates escape every value, and control characters become visible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# Control characters break pages, and a lone surrogate has no UTF-8: each becomes one visible character.
_VISIBLE = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)
)


def html_environment(templates: Path) -> Environment:
    """The templates of a folder. Every value that one writes is made visible, then escaped."""
    return Environment(
        loader=FileSystemLoader(templates),
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
