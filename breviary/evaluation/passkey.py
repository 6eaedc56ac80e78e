"""Passkey retrieval: exact match by length of the text and depth of the key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from breviary.config.build import build_backbone
from breviary.contract import Generation, Reader
from breviary.evaluation.facts import training_record
from breviary.evaluation.loop import evaluate
from breviary.evaluation.resolve import find_checkpoint
from breviary.evaluation.session import EvaluationSession
from breviary.evaluation.statistics import interval


def measure_passkey(
    session: EvaluationSession, cfg: DictConfig, lengths: Sequence[int], depths: Sequence[float], examples: int
) -> Iterator[dict[str, Any]]:
    """Measures one cell after another; yields the measurements of the run after each cell.

    cfg         a checked configuration of a run with dataset=passkey, as from `session.check`
    lengths     words of the texts; depths  position of the key, 0 = start, 1 = end
    examples    texts per cell
    Yields {"run", "reader", "training", "trained_words", "compressor",
            "cells": [{"words", "depth", "tokens", "slots", "em", "nll"}]}.
    """
    checkpoint = find_checkpoint(cfg)
    reader = session.load_reader(cfg, checkpoint)
    measured: dict[str, Any] = {
        "run": cfg.run,
        "reader": cfg.reader,
        "training": training_record(cfg.run, checkpoint),
        "trained_words": cfg.dataset.context_words,
        "cells": [],
        "compressor": dict(cfg.compressor),
    }
    for length in lengths:
        for depth in depths:
            measured["cells"].append(_measure_cell(session, cfg, reader, length, depth, examples))
            yield measured


def _measure_cell(
    session: EvaluationSession, cfg: DictConfig, reader: Reader, length: int, depth: float, examples: int
) -> dict[str, Any]:
    """Answers `examples` texts of one length and depth. em is the exact match with its 95% interval."""
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.dataset.context_words, cfg.dataset.depth, cfg.dataset.test_size = length, depth, examples
        cfg.dataset.least_words = None
    items = session.tokenise(cfg, instantiate(cfg.dataset).examples("test"))
    collate, generation = session.text.collator(build_backbone(cfg).tokenizer()), Generation(**cfg.generation)
    batches = evaluate(reader, items, collate, session.text.scores, generation, cfg.eval_batch_size)
    rows = [row for batch in batches for row in batch]
    em = np.array([row["scores"]["em"] for row in rows])
    return {
        "words": length,
        "depth": depth,
        "tokens": round(float(np.mean([row["context_tokens"] for row in rows]))),
        "slots": round(float(np.mean([row["memory_slots"] for row in rows])), 1),
        "em": interval(em, np.ones(len(em)), seed=0, resamples=2000),
        "nll": float(sum(row["nll"] for row in rows) / sum(row["answer_tokens"] for row in rows)),
    }
