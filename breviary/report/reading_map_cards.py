"""The cards of a reading map as a file: its page shows all of them, the page of a report the first ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from breviary.memory.trace import TokenSpan
from breviary.report.reading_map_marks import Card
from breviary.runtime.files import write_json

CARDS = "reading_map.json"  # in a run, beside reading_map.html

SCHEMA = 1


def write_cards(file: Path, facts: Sequence[tuple[str, str]], cards: Sequence[Card]) -> None:
    """Writes the cards of a reading map, from which a report's page shows some."""
    write_json(file, {"schema": SCHEMA, "facts": facts, "cards": [asdict(card) for card in cards]})


def read_cards(file: Path) -> tuple[list[tuple[str, str]], list[Card]]:
    """(facts, cards) of `write_cards`. Raises ValueError where the file is damaged or of another version."""
    try:
        content = json.loads(file.read_bytes())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}; this version reads {SCHEMA}")
        return [(name, value) for name, value in content["facts"]], [_card(card) for card in content["cards"]]
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{file} is no reading map ({error}); remove it, scripts/reading_map.py writes it") from error


def _card(values: dict[str, Any]) -> Card:
    spans = tuple(TokenSpan(**_with_tuples(span)) for span in values["spans"])
    offsets = tuple((start, end) for start, end in values["offsets"])
    return Card(**_with_tuples(values) | {"spans": spans, "offsets": offsets})


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists in the place of tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
