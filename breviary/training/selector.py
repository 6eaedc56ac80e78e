"""Fits the read-out of attention heads that chooses what a reader keeps, on a frozen decoder, in about a minute.

Reading by attention with heads: linear has one weight for each head's mean and largest attention mass
(selection/head_scores.py). Alone they are a small convex problem over features that are computed once.

Shape letters: U units of a context, F features of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import TrainerState

from breviary.config.errors import raise_problems
from breviary.config.text_pipeline import TextPipeline
from breviary.contract import Reader
from breviary.readers.attention_selection import AttentionSelection
from breviary.runs.checkpoints import save_trained, write_processes
from breviary.runs.folders import finish_run
from breviary.runtime.distributed import print_progress, print_rank0, world_size
from breviary.runtime.files import write_json
from breviary.selection.attention import Attention
from breviary.selection.head_scores import unit_features, unit_means
from breviary.selection.relevance import Candidates
from breviary.training.session import TrainingSession

TARGETS = ("evidence", "attention")
RECORD = "selector.json"
RATIOS = (2, 4, 8, 16)
L1 = 1e-3  # weight of the sum of absolute weights
RATE, STEPS = 0.02, 400  # of Adam, on all examples at once


@dataclass
class Units:
    """One context's units: features (U, F), target (U,) summing to 1, gold (U,) bool, tokens (U,)."""

    features: Tensor
    target: Tensor
    gold: Tensor
    tokens: Tensor


def fit_selector(cfg: DictConfig, text: TextPipeline, examples: int, target: str, teacher: int | None = None) -> Path:
    """Fits, and writes a finished run whose checkpoint holds the read-out and the weights of `init_from`.

    examples  of the train split, from the first
    target    evidence: every gold unit's share among itself and the units that are not gold, as in the contrastive
              loss | attention: the mean attention mass of four deeper layers, which needs no marks
    teacher   first layer behind those four; None = two thirds of the decoder's
    Raises: ConfigError before any weight is loaded.
    """
    raise_problems(_problems(cfg, examples, target))
    session = TrainingSession(cfg, text)
    folder, _ = session.open()
    reader = session.build_reader().eval()
    collate = text.collator(session.backbone.tokenizer())
    teaching = None if target == "evidence" else _teacher(reader, session.backbone, teacher)
    train = _collect(reader, session.splits["train"], examples, collate, teaching, "train")
    if not train:
        raise ValueError(f"{cfg.reader}: no training example marks evidence; give documents with is_gold, or --target")
    heldout = session.splits.get("validation", [])
    heldout = _collect(reader, heldout, len(heldout), collate, teaching, "validation")
    scores = reader.compressor.head_scores
    before = [mean_recall(scores.readout, rows) for rows in (train, heldout)]
    scores.readout.data = fit(scores.readout.detach(), train)
    after = [mean_recall(scores.readout, rows) for rows in (train, heldout)]
    record = {"schema": 1, "target": target, "examples": len(train), "steps": STEPS, "l1": L1, "rate": RATE}
    for name, rows, first, last in zip(("train", "validation"), (train, heldout), before, after):
        record[name] = {"n": len(rows), "recall_before": first, "recall": last}
        print_rank0(f"{name}, {len(rows)} questions: gold units kept at 1/2, 1/4, 1/8, 1/16")
        print_rank0(f"  before {_line(first)}, fitted {_line(last)}")
    checkpoint = folder / "checkpoints" / "checkpoint-0"
    save_trained(checkpoint, reader, session.backbone.fingerprint)
    state = TrainerState()
    state.global_step = STEPS
    state.save_to_json(str(checkpoint / "trainer_state.json"))
    write_processes(checkpoint, world_size(), len(train))
    write_json(folder / RECORD, record)
    finish_run(folder)
    return folder


def fit(readout: Tensor, rows: Sequence[Units]) -> Tensor:
    """The read-out (F,) that minimises the mean cross-entropy of the targets, plus L1.

    A gold unit's share is among itself and the units with no target, so that one gold unit does not satisfy the loss.
    """
    weights = readout.clone().float().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=RATE)
    for _ in range(STEPS):
        loss = torch.stack([target_loss(row.features @ weights, row) for row in rows]).mean()
        optimizer.zero_grad()
        (loss + L1 * weights.abs().sum()).backward()
        optimizer.step()
    return weights.detach()


def target_loss(scores: Tensor, row: Units) -> Tensor:
    """The loss of one context, from log scores (U,)."""
    if bool((row.target[~row.gold] > 0).any()):  # soft targets
        return -(row.target * scores.log_softmax(0)).sum()
    others = scores.masked_fill(row.gold, -torch.inf).logsumexp(0)
    return (torch.logaddexp(scores, others) - scores)[row.gold].mean()


def mean_recall(readout: Tensor, rows: Sequence[Units]) -> dict[int, float]:
    """Mean share of the gold units among the floor(U / ratio) best, at least one, for each ratio."""
    sums = dict.fromkeys(RATIOS, 0.0)
    marked = [row for row in rows if bool(row.gold.any())]
    for row in marked:
        order = (row.features @ readout.detach().float()).argsort(descending=True, stable=True)
        for ratio in RATIOS:
            kept = order[: max(len(order) // ratio, 1)]
            sums[ratio] += float(row.gold[kept].sum() / row.gold.sum())
    return {ratio: value / max(len(marked), 1) for ratio, value in sums.items()}


@torch.no_grad()
def _collect(
    reader: Reader, items: Any, examples: int, collate: Any, teaching: Attention | None, name: str
) -> list[Units]:
    """Features and targets of the first examples that have any, one context at a time."""
    seen: list[Any] = []
    handle = reader.compressor.head_scores.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    rows = []
    for index in range(min(examples, len(items))):
        batch = collate([items[index]])
        seen.clear()
        reader.memory(batch)
        [(mass, numbers, count)] = seen
        features, valid = unit_features(mass.flatten(2), numbers, count)
        gold = torch.zeros_like(valid)
        evidence = reader.compressor.evidence(batch)
        if evidence is not None:
            marked = torch.nn.functional.pad(evidence, (0, mass.shape[1]))[:, : mass.shape[1]]
            gold = unit_means(marked[..., None].float(), numbers, count)[0][..., 0] > 0
        target = gold.float()
        if teaching is not None:
            size = reader.compressor.segment_size
            candidates = Candidates(
                batch.context.ids, batch.context.mask, batch.query, "segments", size, lambda: teaching.tokenizer
            )
            target = teaching.scores(candidates)[:, :count].clamp(min=0)
        elif not bool(gold.any()):
            continue
        tokens = (numbers[0][:, None] == torch.arange(count)).sum(0)
        use = valid[0]
        target = target[0][use] / target[0][use].sum()
        rows.append(Units(features[0][use].float(), target.float(), gold[0][use], tokens[use]))
        print_progress(f"  {name}: {len(rows)} contexts read")
    handle.remove()
    return rows


def _teacher(reader: Reader, backbone: Any, layer: int | None) -> Attention:
    """The deeper layers' mean attention as a relevance."""
    deeper = Attention(layer=layer or len(reader.decoder) * 2 // 3)
    deeper.prepare(backbone, reader.decoder)
    return deeper


def _problems(cfg: DictConfig, examples: int, target: str) -> list[str]:
    """What prevents a fit."""
    problems = []
    if str(cfg.compressor.get("_target_", "")) != f"{AttentionSelection.__module__}.{AttentionSelection.__qualname__}":
        problems.append(f"compressor={cfg.reader}: has no read-out of heads to fit; set compressor=attention")
    elif cfg.compressor.heads != "linear":
        problems.append(f"compressor.heads={cfg.compressor.heads}: has nothing to fit; set compressor.heads=linear")
    if examples < 1:
        problems.append(f"--examples {examples}: must be at least 1, e.g. 80")
    if target not in TARGETS:
        problems.append(f"--target {target}: allowed are {', '.join(TARGETS)}")
    return problems


def _line(recalls: dict[int, float]) -> str:
    return " ".join(f"{value:.2f}" for value in recalls.values())
