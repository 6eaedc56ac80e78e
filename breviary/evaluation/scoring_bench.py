"""Speed of key/value eviction: scoring and selecting against the bare prefill of the same context.

Shape letters: B contexts, T context tokens, P prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hydra.utils import get_class, instantiate

from breviary.backbones.stack import Stack
from breviary.config.build import ReaderSpec, build_backbone
from breviary.config.compose import compose_config, load_choice
from breviary.config.keys import CONFIGS
from breviary.contract import Batch, Compressor, Context, Question
from breviary.evaluation.bench import QUESTION
from breviary.evaluation.timing import measure_alternating, median_ratio, random_batch, reader_from_overrides
from breviary.readers.cache_selection import CacheSelection

BARE = "bare prefill"


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
    names: Sequence[str], shared: Sequence[str], length: int, ratio: int, runs: int
) -> list[dict[str, Any]]:
    """Seconds until the kept entries are there, and their ratio to the bare prefill, one row per scorer and question.

    names   YAMLs out of `scorer_forms`; shared: overrides of backbone and dtype
    length  context tokens; the question has QUESTION further ones, which count where it is known
    The bare prefill encodes the context without storing features for a scorer: all keys and values, of the last layer
    nothing else. It and all scorers run in turn, `runs` times after a warm-up, over the same weights.
    """
    reader = reader_from_overrides("compressor=full_context", "decoder.train=frozen", *shared).eval()
    batch = random_batch(reader, length + QUESTION, QUESTION)
    context = Context(batch.context.ids, batch.context.mask, batch.prefix)
    keys = [(name, question) for name in names for question in scorer_forms()[name]]
    calls: dict[str, Callable[[], Any]] = {}
    for name, question in keys:
        compressor = _compressor(
            reader.decoder, [f"compressor={name}", f"compressor.question={question}"], ratio, shared
        )
        calls[f"{name}, {question}"] = _selection(compressor, reader.decoder, batch, context)
    bare = _compressor(reader.decoder, ["compressor=knorm"], ratio, shared)
    with reader.mixed_precision():
        measured = measure_alternating({BARE: lambda: bare.encode(context), **calls}, runs)
    floor = measured[BARE]
    return [
        {
            "scorer": name,
            "question": question,
            "tokens": length,
            "ratio": ratio,
            "floor_s": floor.median_seconds,
            "ours_s": measured[f"{name}, {question}"].median_seconds,
            "time_ratio": median_ratio(measured[f"{name}, {question}"].seconds, floor.seconds),
        }
        for name, question in keys
    ]


def _compressor(decoder: Stack, overrides: Sequence[str], ratio: int, shared: Sequence[str]) -> Compressor:
    """The compressor of a configuration, over the weights of `decoder`."""
    cfg = compose_config("train", [*overrides, f"compressor.ratio={ratio}", *shared])
    spec = ReaderSpec.of(cfg)
    assert issubclass(spec.compressor, Compressor), spec.compressor
    return spec.compressor(build_backbone(cfg), decoder, **spec.arguments()).eval()


def _selection(compressor: Compressor, decoder: Stack, batch: Batch, context: Context) -> Callable[[], Any]:
    """Encodes the context and selects what is kept of it."""
    width = None if compressor.needs_question else 0
    prompt = decoder.embed(batch.prompt.ids[:, :width])
    question = Question(batch.query.ids, batch.query.mask, prompt, batch.prompt.mask[:, :width])
    return lambda: compressor.compress(compressor.encode(context), question)
