"""Recall of gold segments: the share of segments with evidence that a ranking keeps, at several ratios.

Compares the relevance of readers (RAM's cosine, attention of the question) with the same readers untrained, BM25 on the
same segments, chance, and the best possible ranking. With few kept segments even the best ranking cannot keep all gold
segments.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import bm25s
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from breviary.config.build import build_backbone
from breviary.contract import Batch, Example, Reader
from breviary.evaluation.facts import training_record, training_text, with_training
from breviary.evaluation.resolve import find_checkpoint
from breviary.evaluation.session import EvaluationSession
from breviary.evaluation.statistics import cluster_codes, paired_bootstrap
from breviary.runtime.distributed import print_progress, print_rank0
from ram.labels import positive_segments
from ram.segments import select_segments, split_segments

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every index that it builds

RESAMPLES, SEED = 2000, 0  # of the bootstrap
BM25, CHANCE, BEST = "BM25", "chance", "best possible"

Recall = dict[int, float]  # ratio -> share of the gold segments that are kept


def measure_recall(
    session: EvaluationSession, cfgs: Sequence[DictConfig], examples: Sequence[Example], ratios: Sequence[int]
) -> list[dict[str, Any]]:
    """Recall of every ranker on the examples that mark gold passages, one row per ranker; the trained reader first.

    cfgs  checked configurations of readers of one run, or of none, that rank segments, as from `session.check`
    A row is {"ranker", "run", "n", "contexts", "segment_size", "recall": {ratio: {"value", "low", "high"}}}; intervals
    are of breviary.evaluation.statistics, over contexts. A reader's row also has "over": {other ranker: {ratio: paired
    difference from it}}, for BM25, and for the same reader untrained where it is trained.
    Raises: ValueError where no example marks gold passages.
    """
    cfg = cfgs[0]
    size = cfg.compressor.segment_size
    batches = list(_gold_batches(session, cfg, examples))
    if not batches:
        source = cfg.run or "these settings"
        raise ValueError(f"{source}: no example marks gold passages; choose another dataset, e.g. dataset=nq_gold4")
    recalls: dict[str, list[Recall]] = {}
    over: dict[str, list[str]] = {}  # the rankers from which a reader's differences are printed
    for one in cfgs:
        checkpoint = find_checkpoint(one)
        name, untrained = one.reader, with_training(one.reader, "untrained")
        if checkpoint is not None:
            name = with_training(name, training_text([training_record(one.run, checkpoint)]))
            recalls[name] = _reader_recalls(name, session.load_reader(one, checkpoint), batches, size, ratios)
            over[name] = [untrained, BM25]
        recalls[untrained] = _reader_recalls(untrained, session.load_reader(one), batches, size, ratios)
        over[untrained] = [BM25]
    recalls |= _baseline_recalls(batches, size, ratios)
    columns = {name: {r: np.array([recall[r] for recall in rows]) for r in ratios} for name, rows in recalls.items()}
    contexts = [batch.examples[0].context for batch in batches]
    codes = cluster_codes(contexts)
    rows = [
        {
            "ranker": name,
            "run": cfg.run,
            "n": len(batches),
            "contexts": len(set(contexts)),
            "segment_size": size,
            "recall": {r: paired_bootstrap(values, RESAMPLES, SEED, codes) for r, values in column.items()},
        }
        for name, column in columns.items()
    ]
    for row in rows:
        name = row["ranker"]
        if name in over:
            row["over"] = {
                other: {
                    r: paired_bootstrap(columns[name][r] - columns[other][r], RESAMPLES, SEED, codes) for r in ratios
                }
                for other in over[name]
            }
    return rows


def segment_recall(relevance: Tensor, gold: Tensor, lengths: Tensor, ratios: Sequence[int]) -> Recall:
    """Share of the gold segments that are kept at each ratio: floor(segments / ratio) segments, at least one.

    relevance, gold, lengths  (1, S)
    """
    recall = {}
    for ratio in ratios:
        keep = select_segments(relevance, lengths, min(float(ratio), float(gold.shape[1])))
        recall[ratio] = float((keep & gold).sum() / gold.sum())
    return recall


def bm25_scores(batch: Batch, segment_size: int) -> np.ndarray:
    """BM25 score (Lucene's variant) of each segment's text for the question, (S,), in a batch of one example."""
    [example] = batch.examples
    assert batch.offsets is not None, "the tokenizer provides no character offsets"
    offsets = batch.offsets[0][batch.context.mask[0]].tolist()
    segments = [offsets[start : start + segment_size] for start in range(0, len(offsets), segment_size)]
    texts = [example.context[segment[0][0] : segment[-1][1]] for segment in segments]
    words = bm25s.tokenize([*texts, example.question], stopwords="en", return_ids=False, show_progress=False)
    ranker = bm25s.BM25()
    ranker.index(words[:-1], show_progress=False)
    return ranker.get_scores(words[-1])


def _gold_batches(session: EvaluationSession, cfg: DictConfig, examples: Sequence[Example]) -> Iterator[Batch]:
    """A batch of one for each example that marks gold passages."""
    collate = session.text.collator(build_backbone(cfg).tokenizer())
    for item in session.tokenise(cfg, examples):
        batch = collate([item])
        if batch.evidence is not None:
            yield batch


def _gold_segments(batch: Batch, segment_size: int) -> tuple[Tensor, Tensor]:
    """(1, S) bool, segments with a token of a gold passage; (1, S) int64, tokens of each segment."""
    gold = positive_segments(batch.evidence, segment_size)
    return gold, split_segments(batch.context.mask, segment_size).sum(-1)


@torch.no_grad()
def _reader_recalls(
    name: str, reader: Reader, batches: Sequence[Batch], segment_size: int, ratios: Sequence[int]
) -> list[Recall]:
    """Recall of the reader's own relevance, for each batch."""
    reader.eval()
    device, recalls = next(reader.parameters()).device, []
    for batch in batches:
        gold, lengths = _gold_segments(batch, segment_size)
        relevance = reader.memory(batch.to(device)).trace["relevance"][:, : gold.shape[1]].cpu()
        recalls.append(segment_recall(relevance, gold, lengths, ratios))
        print_progress(f"  {name}: {len(recalls)}/{len(batches)} ranked")
    print_rank0(f"  {name}: {len(batches)}/{len(batches)} ranked")
    return recalls


def _baseline_recalls(batches: Sequence[Batch], segment_size: int, ratios: Sequence[int]) -> dict[str, list[Recall]]:
    """Recall of BM25, of a random ranking, and of a ranking with all gold segments first, for each batch."""
    recalls: dict[str, list[Recall]] = {BM25: [], CHANCE: [], BEST: []}
    for batch in batches:
        gold, lengths = _gold_segments(batch, segment_size)
        segments = gold.shape[1]
        scores = torch.tensor(bm25_scores(batch, segment_size))[None]
        recalls[BM25].append(segment_recall(scores, gold, lengths, ratios))
        recalls[CHANCE].append({ratio: max(int(segments / ratio), 1) / segments for ratio in ratios})
        recalls[BEST].append(segment_recall(gold.float(), gold, lengths, ratios))
    return recalls
