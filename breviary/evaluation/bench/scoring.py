"""Speed of key/value eviction: scoring and selecting against the bare prefill of the same context.

Shape letters: B contexts, T context tokens, P prompt tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from hydra.utils import get_class, instantiate

from breviary.backbones.stack import Stack
from breviary.config.build import ReaderSpec, build_backbone
from breviary.config.compose import compose_config, load_choice
from breviary.config.keys import CONFIGS
from breviary.contract import Batch, Compressor, Context, Question
from breviary.evaluation.bench.compression import QUESTION
from breviary.evaluation.bench.rows import MeasuredRows, Row
from breviary.evaluation.timing import measure_in_turns, median_ratio, random_batch, reader_from_overrides, seconds_of
from breviary.readers.cache_selection import CacheSelection

KEYS = ("scorer", "question", "tokens", "ratio")  # of a row


def scorer_forms() -> dict[str, list[str]]:
    """{name: values of compressor.question} of every YAML in configs/compressor that evicts keys and values."""
    forms = {}
    for file in sorted((CONFIGS / "compressor").glob("*.yaml")):
        settings = load_choice(file)
        if issubclass(get_class(settings._target_), CacheSelection):
            aware = instantiate(settings.scorer).question_aware
            forms[file.stem] = ["unknown", "known"] if aware else ["unknown"]
    return forms


@torch.no_grad()
def measure_scoring(
    names: Sequence[str], shared: Sequence[str], length: int, ratio: int, runs: int, rows: MeasuredRows
) -> Iterator[Row]:
    """Seconds of encoding, scoring and selection, and their ratio to the bare prefill. Yields a row after each sample.

    names   YAMLs out of `scorer_forms`; shared: overrides of backbone and dtype
    length  context tokens; the question has QUESTION further ones, which count where it is known
    rows    earlier measurements: scorers with `runs` samples are skipped, others get the missing ones
    The bare prefill encodes the context without features for a scorer: keys and values of all layers, and nothing else
    of the last layer. It and the scorers share weights and run in turns until each has `runs` samples.
    """
    cells = [(name, question) for name in names for question in scorer_forms()[name]]
    samples = {
        (name, question): _samples(rows.find(scorer=name, question=question, tokens=length, ratio=ratio))
        for name, question in cells
    }
    missing = [cell for cell in cells if len(samples[cell]) < runs]
    if not missing:
        return
    reader = reader_from_overrides("compressor=full_context", "decoder.train=frozen", *shared).eval()
    batch = random_batch(reader, length + QUESTION, QUESTION)
    context = Context(batch.context.ids, batch.context.mask, batch.prefix)
    calls: dict[tuple[str, str], Callable[[], float]] = {}
    for name, question in missing:
        overrides = [f"compressor={name}", f"compressor.question={question}"]
        compressor = _compressor(reader.decoder, overrides, ratio, shared)
        calls[name, question] = partial(seconds_of, _selection(compressor, reader.decoder, batch, context))
    bare = _compressor(reader.decoder, ["compressor=knorm"], ratio, shared)
    floor = partial(seconds_of, lambda: bare.encode(context))
    with reader.mixed_precision():
        floor()  # warm-up
        for call in calls.values():
            call()
        for name, question in measure_in_turns(floor, calls, runs, samples):
            yield _scoring_row(name, question, length, ratio, samples[name, question])


def _samples(row: Row | None) -> list[tuple[float, float]]:
    """(bare prefill's seconds, the scorer's) of each turn stored in a row."""
    return [(floor, ours) for floor, ours in row["seconds"]] if row else []


def _scoring_row(name: str, question: str, length: int, ratio: int, samples: Sequence[tuple[float, float]]) -> Row:
    floor, ours = zip(*samples)
    return {
        "scorer": name,
        "question": question,
        "tokens": length,
        "ratio": ratio,
        "runs": len(samples),
        "floor_s": statistics.median(floor),
        "ours_s": statistics.median(ours),
        "time_ratio": median_ratio(ours, floor),
        "seconds": [list(pair) for pair in samples],
    }


def _compressor(decoder: Stack, overrides: Sequence[str], ratio: int, shared: Sequence[str]) -> Compressor:
    """The compressor of a configuration, over the weights of `decoder`."""
    cfg = compose_config("train", [*overrides, f"compressor.ratio={ratio}", *shared])
    spec = ReaderSpec.of(cfg)
    assert issubclass(spec.compressor, Compressor), spec.compressor
    return spec.compressor(build_backbone(cfg), decoder, **spec.arguments()).eval()


def _selection(compressor: Compressor, decoder: Stack, batch: Batch, context: Context) -> Callable[[], Any]:
    """A function that encodes the context and selects entries."""
    width = None if compressor.needs_question else 0
    prompt = decoder.embed(batch.prompt.ids[:, :width])
    question = Question(batch.query.ids, batch.query.mask, prompt, batch.prompt.mask[:, :width])
    return lambda: compressor.compress(compressor.encode(context), question)
