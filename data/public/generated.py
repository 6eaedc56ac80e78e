"""Data sets that need no download, and the state of all prepared ones."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from breviary.runtime.draws import random_below, seeded_rng
from data.checks import SPLITS
from data.converters.prepare import prepare
from data.public.sources import SOURCES, Source

KV_FOLDER, KV_PAIRS, KV_EXAMPLES = "kv_retrieval_75", 75, 500  # sizes of Lost in the Middle (arXiv 2307.03172)


def key_value_rows(pairs: int, examples: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows in the format of Lost in the Middle: `pairs` random pairs of UUIDs each, one of which the question names."""
    rng = seeded_rng("key-value retrieval", pairs, seed)
    for _ in range(examples):
        records = [[_random_uuid(rng), _random_uuid(rng)] for _ in range(pairs)]
        key, value = records[random_below(rng, pairs)]
        yield {"ordered_kv_records": records, "key": key, "value": value}


def _random_uuid(rng: Any) -> str:
    number = sum(random_below(rng, 1 << 32) << shift for shift in range(0, 128, 32))
    return str(uuid.UUID(int=number, version=4))


def generate(home: Path, examples: int = KV_EXAMPLES) -> list[str]:
    """Writes the generated data sets that `home` lacks; returns a line for each that was written."""
    folder = home / KV_FOLDER
    if folder.exists():
        return []
    with tempfile.TemporaryDirectory() as temp:
        file = Path(temp) / "rows.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in key_value_rows(KV_PAIRS, examples)))
        _, counts = prepare("kv_retrieval", {"test": [file]}, folder)
    return [f"{KV_FOLDER}: generated, test: {counts['test'].report()}; not comparable with published scores"]


def state_lines(home: Path) -> list[str]:
    """One line for each public data set: its prepared splits, or page and command."""
    width = max(len(source.folder) for source in SOURCES)
    return [f"{source.folder:<{width}}  {_state(home, source)}" for source in SOURCES]


def _state(home: Path, source: Source) -> str:
    splits = [split for split in SPLITS if (home / source.folder / f"{split}.jsonl.gz").is_file()]
    if splits:
        return f"ready: {', '.join(splits)}"
    return f"download from {source.page}, then {source.command()}"
