"""RAM's settings, checked before any weight is loaded."""

import pytest
import torch
from ram_forms import DEPTH, SEVERAL, SIX, SKIMMED, SLOTS

from breviary.backbones.tiny import TinyBackbone
from breviary.config.build import ReaderSpec
from ram.model import RAM

# ------------------------------------------------------------------ checks before any weight is loaded


@pytest.mark.parametrize(
    "override, words",
    [
        ("compressor.keep=best", "compressor.keep=best: allowed are topk, random, none"),
        ("compressor.read=twice", "compressor.read=twice: allowed are segments, whole"),
        ("compressor.budget=loose", "compressor.budget=loose: allowed are nominal, strict"),
        ("compressor.skim=max", "compressor.skim=max: allowed are query_weighted, mean, drop"),
        ("compressor.positives=all", "compressor.positives=all: allowed are evidence, answers"),
        ("compressor.skim_temperature=0", "compressor.skim_temperature=0: must be above 0, e.g. 1.0"),
        ("compressor.contrastive_temperature=-1", "compressor.contrastive_temperature=-1: must be above 0, e.g. 0.1"),
        ("compressor.contrastive_weight=-1", "compressor.contrastive_weight=-1: must be 0 (off) or more"),
        ("compressor.segment_size=1", "compressor.segment_size=1: must be at least 2 tokens"),
        ("compressor.skim_ratio=0", "compressor.skim_ratio=0: must be"),
        (("compressor=ram_comi", "compressor.uniform_keep=false", "compressor.skim=drop"), "has nothing to merge"),
        ("compressor.ratio_choices=[2,4]", "set compressor.uniform_keep=false or compressor.ratio_choices=null"),
        (("compressor.quirks=true", DEPTH), "set compressor.join=input"),
        ((SKIMMED, "compressor.skim=drop"), "use compressor=no_context"),
        (
            "compressor.relevance=tfidf",
            "compressor.relevance=tfidf: allowed are cosine, attention, bm25, embedding, gold, random",
        ),
        ("compressor.relevance=bm25", "set compressor.contrastive_weight=0"),
        (("compressor.relevance=embedding", "compressor.contrastive_weight=0"), "encodes contexts by itself"),
        (
            ("compressor.relevance=bm25", "compressor.contrastive_weight=0", SKIMMED),
            "is not used with compressor.keep=none",
        ),
    ],
)
def test_invalid_settings_are_named(compose, override, words):
    overrides = [override] if isinstance(override, str) else list(override)
    problems = RAM.problems(ReaderSpec.of(compose([*SIX, *overrides])).settings, TinyBackbone(layers=4))
    assert len(problems) == 1 and words in problems[0]
    assert RAM.problems(ReaderSpec.of(compose(SIX)).settings, TinyBackbone(layers=4)) == []


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["compressor.ratio=1"],
        ["compressor.ratio=5"],
        SLOTS,
        [SKIMMED],
        ["compressor.budget=strict"],
        ["compressor.budget=strict", "compressor.ratio=9"],
        ["compressor.skim=drop", "compressor.budget=strict"],
        [*SEVERAL, "compressor.ratio=5"],
        [*SEVERAL, "compressor.budget=nominal"],
        [*SEVERAL, SKIMMED],
        [*SEVERAL, *SLOTS],
    ],
    ids=[
        "nominal",
        "all",
        "5",
        "slots",
        "skimmed",
        "strict",
        "strict-9",
        "drop",
        "several",
        "several-nominal",
        "several-skimmed",
        "several-slots",
    ],
)
def test_the_longest_context_fits(build, compose, overrides):
    """Its memory fits the remaining positions, whether or not the short last segment is kept."""
    overrides = [*SIX, "compressor.uniform_keep=false", *overrides]
    settings, compressor = ReaderSpec.of(compose(overrides)).settings, build(overrides).compressor
    for room in (17, 40, 100, 101):
        longest = RAM.longest_context(settings, room + 20, 20)
        assert longest >= room - 5
        for tokens in (longest, longest - 4):
            lengths = torch.tensor([[6] * (tokens // 6) + [tokens % 6]])
            mask = torch.arange(6) < lengths[..., None]
            scores = torch.arange(lengths.shape[1], 0, -1)[None] / 100  # the short segment is the least relevant
            keep = compressor.select(scores, torch.zeros(mask.shape), mask)
            assert int(torch.where(keep, lengths, compressor.skimmed_slots(lengths)).sum()) <= room
    settings["uniform_keep"] = True
    assert RAM.longest_context(settings, 80, 20) >= 60 - 5
