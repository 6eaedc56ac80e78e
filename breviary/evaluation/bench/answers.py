"""Latency of answers: time to the first token and to NEW_TOKENS tokens, relative to full context."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from breviary.config.compose import load_choice
from breviary.config.keys import CONFIGS
from breviary.contract import Batch, Generation, Reader
from breviary.evaluation.bench.compression import EVIDENCE, QUESTION
from breviary.evaluation.bench.rows import MeasuredRows, Row
from breviary.evaluation.timing import measure_in_turns, median_ratio, random_batch, reader_from_overrides
from breviary.runtime.device import synchronise
from breviary.runtime.timing import timed_phases

NEW_TOKENS, WARM_UP_LENGTH = 32, 256
KEYS = ("reader", "tokens", "ratio")  # of a row
Seconds = tuple[float, float]  # to the first token, to NEW_TOKENS tokens


@torch.no_grad()
def measure_answers(
    forms: Mapping[str, Sequence[str]],
    shared: Sequence[str],
    length: int,
    ratios: Sequence[int],
    runs: int,
    rows: MeasuredRows,
) -> Iterator[Row]:
    """Times to the first token and to NEW_TOKENS tokens against full context. Yields an updated row after each sample.

    forms   {name: overrides of the reader}, as from `compressor_forms`
    shared  overrides of every reader, e.g. backbone=NAME
    length  tokens of context and question together
    rows    earlier measurements: readers with `runs` samples are skipped, others get the missing ones
    All readers share the decoder's weights. After a warm-up they answer in turns, full context first, until each has
    `runs` samples.
    """
    samples = {key: _samples(rows.find(reader=key[0], tokens=length, ratio=key[1])) for key in _cells(forms, ratios)}
    missing = [key for key, measured in samples.items() if len(measured) < runs]
    if not missing:
        return
    shared = ["decoder.train=frozen", *shared]
    full = reader_from_overrides("compressor=full_context", *shared).eval()
    batch = random_batch(full, length, QUESTION, evidence=EVIDENCE)
    warm_up = random_batch(full, min(length, WARM_UP_LENGTH), QUESTION, evidence=EVIDENCE)
    readers = {key: _reader(full, [*forms[key[0]], *_budget(key[1]), *shared]) for key in missing}
    for reader in (full, *readers.values()):
        answer_seconds(reader, warm_up)
    calls = {key: partial(answer_seconds, reader, batch) for key, reader in readers.items()}
    for key in measure_in_turns(partial(answer_seconds, full, batch), calls, runs, samples):
        yield _answer_row(key, length, int(readers[key].footprint(batch).memory_slots), samples[key])


def _cells(forms: Mapping[str, Sequence[str]], ratios: Sequence[int]) -> list[tuple[str, int | None]]:
    """(reader, ratio) of every row; ratio None for readers without one."""
    return [
        (name, ratio)
        for name, overrides in forms.items()
        for ratio in (list[int | None](ratios) if has_ratio(overrides) else [None])
    ]


def _budget(ratio: int | None) -> list[str]:
    return [] if ratio is None else [f"compressor.ratio={ratio}"]


def _samples(row: Row | None) -> list[tuple[Seconds, Seconds]]:
    """(full context's seconds, the reader's) of each turn stored in a row."""
    return [(tuple(full), tuple(ours)) for full, ours in row["seconds"]] if row else []


def _reader(full: Reader, overrides: Sequence[str]) -> Reader:
    """The reader of a configuration, with the decoder weights of `full`."""
    reader = reader_from_overrides(*overrides).eval()
    for weight, source in zip(reader.decoder.parameters(), full.decoder.parameters(), strict=True):
        weight.data = source.data
    return reader


def _answer_row(
    key: tuple[str, int | None], length: int, slots: int, samples: Sequence[tuple[Seconds, Seconds]]
) -> Row:
    """Medians of the reader's times, of full context's, and of their ratio within a turn."""
    row: dict[str, Any] = {"reader": key[0], "tokens": length, "ratio": key[1], "slots": slots, "runs": len(samples)}
    for i, tokens in enumerate((1, NEW_TOKENS)):
        full, ours = ([pair[side][i] for pair in samples] for side in (0, 1))
        row |= {
            f"ours_{tokens}_s": statistics.median(ours),
            f"full_{tokens}_s": statistics.median(full),
            f"speedup_{tokens}": median_ratio(full, ours),
        }
    return row | {"seconds": [list(map(list, pair)) for pair in samples]}


def answer_seconds(reader: Reader, batch: Batch) -> Seconds:
    """Seconds to the first token and to all NEW_TOKENS tokens."""
    start = time.perf_counter()
    with timed_phases() as phases:
        reader.answer(batch, Generation(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS))
    synchronise()
    elapsed = time.perf_counter() - start
    return elapsed - phases["decode"], elapsed


def has_ratio(overrides: Sequence[str]) -> bool:
    """Whether the reader has a memory whose size `compressor.ratio` sets."""
    settings = load_choice(CONFIGS / "compressor" / f"{overrides[0].partition('=')[2]}.yaml")
    return settings.get("ratio") is not None and settings.get("keep") != "none"
