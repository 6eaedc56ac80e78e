"""What fits a device: the table of scripts/plan_memory.py, and the estimate and memory check of train.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig

from breviary.backbones.shape import BackboneShape, known_shape
from breviary.config.build import ReaderSpec, build_backbone
from breviary.contract import Batch
from breviary.training.cost.devices import Device, device_memory
from breviary.training.cost.estimate import Estimate, estimate_training
from breviary.training.cost.memory import COMPONENTS, Moment
from breviary.training.cost.parts import TextLengths

MOST = 2**27  # upper end of the search for batch and length
CHECK = "train.check_memory"
# Suggested changes, tried in this order, alone and then together.
CHANGES = ("eval_batch_size=1", "train.gradient_checkpointing=true", "train.batch_size=1")
SHARD = "choose an engine that shards or offloads, e.g. engine=zero3_offload, or a shorter limits.max_context_tokens"


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of a training run on `processes` devices of `memory` bytes each."""

    cfg: DictConfig
    shape: BackboneShape
    processes: int
    memory: float

    @classmethod
    def of(cls, cfg: DictConfig, gpus: int, memory: float) -> MemoryPlan:
        """From a composed configuration. Raises: ValueError where engine.ranks does not divide the number of GPUs."""
        ranks, processes = cfg.engine.ranks, 1 if cfg.engine.kind == "single" else gpus
        if processes % ranks:
            raise ValueError(f"engine.ranks={ranks}: must divide the GPUs of gpus={gpus}x{memory / 1e9:g}GB")
        return cls(cfg, backbone_shape(cfg), processes, memory)

    @property
    def copies_context(self) -> bool:
        """Whether the answer is the context itself (an autoencoder)."""
        return ReaderSpec.of(self.cfg).objective.is_autoencoder

    def estimate(self, lengths: TextLengths, *changes: str) -> Estimate:
        """The estimate, with settings `key=value` changed."""
        cfg = self.cfg
        if changes:
            cfg = cfg.copy()
            cfg.merge_with_dotlist(list(changes))
        return estimate_training(cfg, self.shape, lengths, self.processes)

    def fits(self, estimate: Estimate) -> bool:
        """Whether the peak is at most the memory of a device."""
        return estimate.bytes <= self.memory

    def largest_batch(self, lengths: TextLengths) -> int:
        """Examples of a micro-batch that fit; 0 = not one."""
        return _largest(lambda size: self.fits(self.estimate(lengths, f"train.batch_size={size}")))

    def longest_context(self, lengths: TextLengths) -> int:
        """Context tokens that fit at the configured batch; 0 = none. An autoencoder's answer grows with its context."""

        def fits(context: int) -> bool:
            answer = context if self.copies_context else lengths.answer
            return self.fits(self.estimate(replace(lengths, context=context, answer=answer)))

        return _largest(fits)


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number for which `fits` holds, by doubling and bisection; MOST at most, 0 = none."""
    low, high = 0, 1
    while high < MOST and fits(high):
        low, high = high, 2 * high
    while high - low > max(low // 1000, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def backbone_shape(cfg: DictConfig) -> BackboneShape:
    """Sizes of the configured backbone; nothing is downloaded. Raises: ValueError where they are not known."""
    if "path" in cfg.backbone:
        return known_shape(str(cfg.backbone.path))
    return BackboneShape.from_config(build_backbone(cfg).config)


# ------------------------------------------------------------------ scripts/plan_memory.py

COLUMNS = ("tokens", "moment", *COMPONENTS, "total", "")


def plan_rows(plan: MemoryPlan, lengths: TextLengths) -> list[list[str]]:
    """One row per moment of a step at these lengths, in GB; the peak is marked."""
    memory = plan.estimate(lengths).memory
    rows = []
    for moment in memory.moments:
        sizes = [f"{getattr(moment, name) / 1e9:.1f}" for name in (*COMPONENTS, "total")]
        mark = "" if moment is not memory.peak else "peak" if moment.total <= plan.memory else "peak, does NOT fit"
        rows.append([f"{lengths.context:,}", moment.name, *sizes, mark])
    return rows


def plan_lines(plan: MemoryPlan, lengths: TextLengths, device: Device) -> list[str]:
    """Lines about the largest batch and context, host memory, and hours."""
    estimate, batch, longest = plan.estimate(lengths), plan.largest_batch(lengths), plan.longest_context(lengths)
    size = plan.cfg.train.batch_size
    lines = [
        f"{lengths.context:,} tokens: largest train.batch_size {batch or 'none: not even 1'}; "
        f"longest context at train.batch_size={size}: {_most(longest)} tokens"
    ]
    if estimate.memory.host:
        lines.append(f"  and {estimate.memory.host / 1e9:.0f} GB of host memory per process")
    hours, steps = estimate.flops / estimate.processes / device.flops / 3600, plan.cfg.train.steps
    lines.append(
        f"  {estimate.flops / steps:.1e} FLOPs per step, {steps:,} steps: {hours:,.1f} hours on {estimate.processes} x "
        f"{device.title} at {device.flops / 1e12:.0f} TFLOP/s"
    )
    return lines


def _most(count: int) -> str:
    return f"more than {count:,}" if 2 * count >= MOST else f"{count:,}"


# ------------------------------------------------------------------ train.py


def batch_lengths(spec: ReaderSpec, batch: Batch) -> TextLengths:
    """Widths of a batch as the objective supervises it."""
    plain = {key: value for key, value in spec.objective_settings.items() if not isinstance(value, dict)}
    main = spec.objective(**plain).primary(batch)
    widths = [part.ids.shape[1] for part in (main.context, main.prefix, main.prompt, main.answer)]
    return TextLengths(widths[0], widths[1] + widths[2], widths[3])


def split_lengths(
    spec: ReaderSpec, items: Any, collate: Callable[[list[Any]], Batch], train: DictConfig
) -> tuple[TextLengths, TextLengths]:
    """(lengths of the median example, lengths of the longest batch) of a tokenised split.

    With train.pack_tokens both are those of a full pack, with the median example's shares of context and answer.
    """
    sizes = [length + other for length, other in zip(items.lengths, items.other_lengths)]
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    typical = batch_lengths(spec, collate([items[order[len(order) // 2]]]))
    if train.get("pack_tokens"):
        share = train.pack_tokens / max(typical.context + typical.question + typical.answer, 1)
        packed = TextLengths(*(round(share * getattr(typical, name)) for name in ("context", "question", "answer")))
        return packed, packed
    return typical, batch_lengths(spec, collate([items[i] for i in order[-train.batch_size :]]))


def estimate_line(estimate: Estimate, memory: float, name: str) -> str:
    """The estimate of a run on the device of this process, on one line."""
    peak = estimate.memory.peak
    return (
        f"estimate: {_size(peak.total)} of the {_size(memory)} of {name} at the peak ({peak.name}: {_parts(peak)}), "
        f"{estimate.flops:.1e} FLOPs"
    )


@dataclass(frozen=True)
class RunCost:
    """The estimate of a run before its weights are loaded. name: of this process's device."""

    plan: MemoryPlan
    typical: TextLengths
    longest: TextLengths
    name: str

    @classmethod
    def of(
        cls,
        cfg: DictConfig,
        shape: BackboneShape,
        device: torch.device,
        lengths: tuple[TextLengths, TextLengths],
        processes: int,
    ) -> RunCost:
        """lengths: the result of `split_lengths`."""
        cfg, (memory, name) = cfg.copy(), device_memory(device)
        cfg.backbone.device = device.type
        return cls(MemoryPlan(cfg, shape, processes, memory), lengths[0], lengths[1], name)

    def line(self) -> str:
        """The estimate on one line."""
        plan = self.plan
        estimate = estimate_training(plan.cfg, plan.shape, self.typical, plan.processes, self.longest)
        return estimate_line(estimate, plan.memory, self.name)

    def problems(self) -> list[str]:
        """An error message with settings that fit, where this run does not; empty with train.check_memory=false."""
        plan, peak = self.plan, self.plan.estimate(self.longest).memory.peak
        if peak.total <= plan.memory or not plan.cfg.train.check_memory:
            return []
        sets = [*((word,) for word in CHANGES), CHANGES[1:], CHANGES]
        helps = next((words for words in sets if plan.fits(plan.estimate(self.longest, *words))), None)
        advice = f"set {' '.join(helps)}" if helps else SHARD
        return [
            f"the estimated {_size(peak.total)} at the peak ({peak.name}: {_parts(peak)}) do not fit the "
            f"{_size(plan.memory)} of {self.name}: {advice}, or {CHECK}=false to skip this check"
        ]


def _parts(moment: Moment) -> str:
    """The components above 2% of the total: "weights 1.2 GB, activations 3.4 GB"."""
    found = [(getattr(moment, name), name) for name in COMPONENTS]
    shown: Sequence[tuple[float, str]] = [pair for pair in found if pair[0] >= moment.total / 50]
    return ", ".join(f"{name} {_size(amount)}" for amount, name in shown)


def _size(amount: float) -> str:
    unit, name = (1e9, "GB") if amount >= 1e9 else (1e6, "MB")
    return f"{amount / unit:.1f} {name}"
