"""Fits the read-out of attention heads that chooses what a reader keeps, on a frozen decoder, in about a minute.

Reading by attention with heads: linear has one weight for each head's mean and largest attention mass
(selection/head_scores.py). Alone they are a small convex problem over features that are computed once.

Shape letters: N contexts, U units of a context (right-padded), F features of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import pad
from transformers import TrainerState

from breviary.config.errors import raise_problems
from breviary.config.text_pipeline import TextPipeline
from breviary.contract import Batch, Question, Reader
from breviary.evaluation.facts import SELECTOR
from breviary.memory.assembly import Layout
from breviary.readers.attention_selection import AttentionSelection
from breviary.runs.checkpoints import save_trained
from breviary.runs.folders import finish_run
from breviary.runtime.distributed import print_progress, print_rank0
from breviary.runtime.files import write_json
from breviary.selection.attention import Attention
from breviary.selection.head_scores import unit_features, unit_means
from breviary.selection.relevance import Candidates
from breviary.training.session import TrainingSession

TARGETS = ("evidence", "attention")
RATIOS = (2, 4, 8, 16)
L1 = 1e-3  # weight of the sum of absolute weights
RATE, STEPS = 0.02, 400  # of Adam, on all examples at once


@dataclass
class Units:
    """The units of N contexts.

    features  (N, U, F); valid (N, U)
    target    (N, U), sums to 1, 0 on padding: the share of the attention that each unit shall have
    gold      (N, U) bool, holds a token of marked evidence
    """

    features: Tensor
    valid: Tensor
    target: Tensor
    gold: Tensor

    @classmethod
    def stack(cls, rows: Sequence[Units]) -> Units:
        """Several batches as one."""
        width = max((row.valid.shape[1] for row in rows), default=0)
        parts = zip(
            *([pad(x, (0, 0) * (x.dim() - 2) + (0, width - x.shape[1])) for x in vars(r).values()] for r in rows)
        )
        return cls(*(torch.cat(part) for part in parts))

    def __len__(self) -> int:
        return len(self.valid)


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
    if train is None:
        raise ValueError(f"{cfg.reader}: no training example marks evidence; give documents with is_gold, or --target")
    heldout = session.splits.get("validation", [])
    heldout = _collect(reader, heldout, len(heldout), collate, teaching, "validation")
    scores = reader.compressor.head_scores
    initial = scores.readout.detach().clone()
    scores.readout.data = fit(initial, train, target == "evidence").to(initial.dtype)
    record = {"schema": 1, "target": target, "examples": len(train), "steps": STEPS, "l1": L1, "rate": RATE}
    for name, units in (("train", train), ("validation", heldout)):
        if units is None or not bool(units.gold.any()):
            continue
        before, after = (mean_recall(readout, units) for readout in (initial, scores.readout))
        record[name] = {"n": len(units), "recall_before": before, "recall": after}
        print_rank0(f"{name}, {len(units)} questions: gold units kept at 1/2, 1/4, 1/8, 1/16")
        print_rank0(f"  before {_line(before)}, fitted {_line(after)}")
    checkpoint = folder / "checkpoints" / "checkpoint-0"
    save_trained(checkpoint, reader, session.backbone.fingerprint)
    TrainerState().save_to_json(str(checkpoint / "trainer_state.json"))
    write_json(folder / SELECTOR, record)
    finish_run(folder)
    return folder


def fit(readout: Tensor, units: Units, hard: bool) -> Tensor:
    """The read-out (F,) that minimises the mean `target_loss`, plus L1."""
    weights = readout.clone().float().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (target_loss(units.features @ weights, units, hard).mean() + L1 * weights.abs().sum()).backward()
        optimizer.step()
    return weights.detach()


def target_loss(scores: Tensor, units: Units, hard: bool) -> Tensor:
    """The loss of each context, (N,), from log scores (N, U).

    hard  True: the mean over gold units of -log of the unit's share among itself and the units that are not gold, so
          that one gold unit does not satisfy the loss | False: cross-entropy with the targets
    """
    if not hard:
        return -(units.target * scores.masked_fill(~units.valid, -1e9).log_softmax(1)).sum(1)
    others = scores.masked_fill(units.gold | ~units.valid, -1e9).logsumexp(1, keepdim=True)
    losses = (torch.logaddexp(scores, others) - scores).masked_fill(~units.gold, 0)
    return losses.sum(1) / units.gold.sum(1).clamp(min=1)


def mean_recall(readout: Tensor, units: Units) -> dict[int, float]:
    """Mean share of the gold units among the floor(U / ratio) best, at least one, for each ratio."""
    marked = units.gold.any(1)
    scores = (units.features @ readout.detach().float()).masked_fill(~units.valid, -torch.inf)[marked]
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
    gold, count = units.gold[marked], units.valid[marked].sum(1)
    recalls = {}
    for ratio in RATIOS:
        kept = rank < (count // ratio).clamp(min=1)[:, None]
        recalls[ratio] = float(((kept & gold).sum(1) / gold.sum(1)).mean())
    return recalls


@torch.no_grad()
def _collect(
    reader: Reader, items: Any, examples: int, collate: Any, teaching: Attention | None, name: str
) -> Units | None:
    """Features and targets of those of the first examples that have any, one context at a time; None = no example."""
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
            marked = pad(evidence, (0, mass.shape[1]))[:, : mass.shape[1]]
            gold = unit_means(marked[..., None].float(), numbers, count)[0][..., 0] > 0
        target = gold.float() if teaching is None else _taught(teaching, batch, reader.compressor.segment_size, count)
        if not bool((target > 0).any()):
            continue
        rows.append(Units(features.float(), valid, target / target.sum(1, keepdim=True), gold))
        print_progress(f"  {name}: {len(rows)} contexts read")
    handle.remove()
    return Units.stack(rows) if rows else None


def _taught(teaching: Attention, batch: Batch, size: int, count: int) -> Tensor:
    """Attention mass of each unit in the deeper layers, (1, count)."""
    layout = Layout.of([batch.context.mask], round_to=1)
    ids, question = layout.pack([batch.context.ids]), Question(batch.query.ids, batch.query.mask, None, None)
    candidates = Candidates(ids, layout.mask, question, "segments", size, lambda: teaching.tokenizer)
    return pad(teaching.scores(candidates), (0, count))[:, :count]


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
