"""How much of the gold a reader's relevance finds: recall of gold segments against the share of segments kept.

    python scripts/gold_recall.py RUN [RUN ...] [--examples N] [--ratios 2 4 8 16] [--output FILE.json] [key=value ...]

RUN is a run of a reader that ranks segments (compressor=ram). Beside each run stand the same reader untrained, BM25 on
the same segments, chance, and the best possible: where few segments are kept, not all gold can be among them. A segment
is gold if it holds a token of a gold passage; for each ratio, floor(segments / ratio) segments are kept, at least one.
Mean over examples with 95% bootstrap intervals, and of the trained reader's paired differences from untrained and BM25;
no answer is generated. Further words are keys as eval.py takes them, e.g. dataset=nq_gold4 split=validation.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import bm25s
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from breviary.config.build import build_backbone
from breviary.config.errors import ConfigError
from breviary.config.keys import allow_run_keys, validate_keys
from breviary.contract import Batch
from breviary.evaluation.statistics import interval, paired_bootstrap
from breviary.runs.environment import environment
from breviary.runtime.files import write_json
from data.collate import Collator
from eval import checked, checkpoint_of, loaded, of_one_reader, say, settle, tokenised
from ram.labels import positive_segments
from ram.segments import select_segments, split_segments

logging.getLogger("bm25s").setLevel(logging.WARNING)  # says of every index that it builds it, between our own lines

Found = dict[str, list[dict[int, float]]]  # ranker -> for each example: ratio -> recall


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; a wrong one ends with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, and key=value")
    parser.add_argument("--examples", type=int, default=100, help="the split's first so many (default 100)")
    parser.add_argument("--ratios", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--output", metavar="FILE", help="JSON file")
    given = parser.parse_intermixed_args(arguments)
    words = [word for word in given.runs if "=" in word]
    try:
        rows = measure([run for run in given.runs if run not in words], words, given.examples, given.ratios)
    except ValueError as error:
        for sentence in str(error).splitlines():
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    show(rows, given.ratios)
    if given.output:
        write_json(given.output, {"schema": 1, "examples": given.examples, "rows": rows, "environment": environment()})


def measure(runs: list[str], words: list[str], examples: int, ratios: list[int]) -> list[dict[str, Any]]:
    """A row for each ranker of each run: {"ranker", "run", "n", "recall": {ratio: {"value", "low", "high"}}}.

    The trained reader's has "over": {other ranker: {ratio: paired difference, likewise}}.
    """
    rows = []
    for run in runs:
        cfg = settled(run, [*words, f"examples={examples}"])
        cfg, problems = validate_keys(cfg)
        [cfg], rows_of_data = checked(cfg, problems)
        found: Found = {}
        for trained in (True, False):
            rank_all(cfg, rows_of_data, trained, ratios, found)
        columns = {
            ranker: {ratio: np.array([recall[ratio] for recall in recalls]) for ratio in ratios}
            for ranker, recalls in found.items()
        }
        trained, *others, _, _ = columns  # the last two are chance and the best possible
        for ranker, column in columns.items():
            row = {
                "ranker": ranker,
                "run": run,
                "n": len(found[ranker]),
                "segment_size": cfg.compressor.segment_size,
                "recall": {
                    ratio: interval(values, np.ones(len(values)), seed=0, resamples=2000)
                    for ratio, values in column.items()
                },
            }
            if ranker == trained:
                row["over"] = {
                    other: {
                        ratio: paired_bootstrap(column[ratio] - columns[other][ratio], resamples=2000, seed=0)
                        for ratio in ratios
                    }
                    for other in others
                }
            rows.append(row)
    return rows


def settled(run: str, words: list[str]) -> DictConfig:
    """The run's configuration for evaluation, `words` changed in it."""
    overrides = [f"run={run}", *words, "baselines=[]"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = of_one_reader(
            settle(compose("eval", allow_run_keys(overrides)), overrides), "name further runs, or call this again"
        )
    if "segment_size" not in cfg.compressor or "keep" not in cfg.compressor:
        raise ConfigError(
            [f"{run}: compressor {cfg.compressor._target_} ranks no segments; give a run of compressor=ram"]
        )
    return cfg


@torch.no_grad()
def rank_all(cfg: DictConfig, examples: list[Any], trained: bool, ratios: list[int], found: Found) -> None:
    """Adds the recalls of the reader's relevance, and with the untrained reader those of BM25, of chance and of a ranker that
    puts all gold first."""
    backbone = build_backbone(cfg)
    items = tokenised(cfg, backbone, examples)
    reader = loaded(cfg, backbone, checkpoint_of(cfg) if trained else None).eval()
    collate = Collator(backbone.tokenizer().pad_token_id or 0)
    name = cfg.reader if trained else f"{cfg.reader} (untrained)"
    for number, item in enumerate(items):
        batch = collate([item]).to(next(reader.parameters()).device)
        if batch.evidence is None:
            continue  # nothing is marked as gold
        gold_S = positive_segments(batch.evidence, cfg.compressor.segment_size)
        lengths_S = split_segments(batch.context.mask, cfg.compressor.segment_size).sum(-1)
        relevance = reader.memory(batch).trace["relevance"][:, : gold_S.shape[1]]
        found.setdefault(name, []).append(recalls(relevance, gold_S, lengths_S, ratios))
        if not trained:
            scores = torch.tensor(bm25(batch, cfg.compressor.segment_size))[None]
            found.setdefault("BM25", []).append(recalls(scores, gold_S, lengths_S, ratios))
            found.setdefault("chance", []).append(
                {ratio: max(int(gold_S.shape[1] / ratio), 1) / gold_S.shape[1] for ratio in ratios}
            )
            found.setdefault("best possible", []).append(recalls(gold_S.float(), gold_S, lengths_S, ratios))
        say(f"  {name}: {number + 1}/{len(items)} ranked", end="\r")
    say("")


def recalls(relevance: torch.Tensor, gold: torch.Tensor, lengths: torch.Tensor, ratios: list[int]) -> dict[int, float]:
    """Share of the gold segments (1, S) that are kept, for each ratio."""
    out = {}
    for ratio in ratios:
        ratio_kept = min(float(ratio), float(gold.shape[1]))  # at least one segment
        keep = select_segments(relevance, lengths, ratio_kept)
        out[ratio] = float((keep & gold).sum() / gold.sum())
    return out


def bm25(batch: Batch, segment_size: int) -> np.ndarray:
    """BM25 score (Lucene's form) of each segment's text for the question, one context of one example."""
    [example] = batch.examples
    offsets = batch.offsets[0][batch.context.mask[0]].tolist()
    pieces = [offsets[start : start + segment_size] for start in range(0, len(offsets), segment_size)]
    texts = [example.context[piece[0][0] : piece[-1][1]] for piece in pieces]
    words = bm25s.tokenize([*texts, example.question], stopwords="en", return_ids=False, show_progress=False)
    ranker = bm25s.BM25()
    ranker.index(words[:-1], show_progress=False)
    return ranker.get_scores(words[-1])


def written(found: dict[str, float]) -> str:
    """A value with its interval."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def show(rows: list[dict[str, Any]], ratios: list[int]) -> None:
    """One table for all."""
    table = Table(title="Recall of gold segments, 95% bootstrap intervals", title_justify="left")
    table.add_column("ranker")
    table.add_column("n", justify="right")
    for ratio in ratios:
        table.add_column(f"1/{ratio} kept", justify="right")
    for row in rows:
        table.add_row(row["ranker"], str(row["n"]), *map(written, row["recall"].values()))
    for row in rows:
        for other, differences in row.get("over", {}).items():
            table.add_row(f"{row['ranker']} minus {other}", str(row["n"]), *map(written, differences.values()))
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main()
