"""Measurements for benchmarks: time and peak memory of repeated calls, readers and random batches to call.

Shape letters: B examples, T context tokens, Q question tokens, A answer tokens.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from breviary.config.build import build_backbone, build_reader
from breviary.config.compose import compose_config
from breviary.config.errors import ConfigError
from breviary.contract import Batch, Example, Reader, Tokens
from breviary.runtime.device import synchronise

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass
class CallMeasurements:
    """One value per timed run, in order.

    seconds     wall time, with the accelerator synchronised before and after
    peak_bytes  peak resident memory above the resident memory before the call; empty where memory is not measured
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    @property
    def median_seconds(self) -> float:
        """Median of `seconds`."""
        return statistics.median(self.seconds)

    @property
    def median_peak_bytes(self) -> float:
        """Median of `peak_bytes`."""
        return statistics.median(self.peak_bytes)


def measure_alternating(
    calls: Mapping[str, Callable[[], Any]], runs: int, memory: bool = False
) -> dict[str, CallMeasurements]:
    """Measures every call `runs` times, alternating between the calls; each is called once before, as a warm-up.

    memory  also measures peak resident memory (Linux only)
    """
    for call in calls.values():
        call()
    measured = {name: CallMeasurements() for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            before = reset_peak_memory() if memory else 0
            synchronise()
            start = time.perf_counter()
            result = call()
            synchronise()
            measured[name].seconds.append(time.perf_counter() - start)
            if memory:
                measured[name].peak_bytes.append(peak_resident_bytes() - before)
            del result  # alive until the peak is read: it counts as memory of the call
    return measured


def measure_in_turns(
    floor: Callable[[], T], calls: Mapping[K, Callable[[], T]], runs: int, samples: Mapping[K, list[tuple[T, T]]]
) -> Iterator[K]:
    """Appends (result of the floor, result of the call) to each call's samples until it has `runs`; yields its key.

    samples  earlier samples included. Each turn runs the floor, then the calls that still need a sample, so that both
             results of a sample are measured under the same load
    """
    for turn in range(runs):
        missing = [key for key in calls if len(samples[key]) <= turn]
        if missing:
            low = floor()
            for key in missing:
                samples[key].append((low, calls[key]()))
                yield key


def seconds_of(call: Callable[[], Any]) -> float:
    """Wall time of a call, with the accelerator synchronised before and after."""
    synchronise()
    start = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - start


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios within each run. More robust than the ratio of medians when the machine's speed drifts."""
    return statistics.median(a / b for a, b in zip(numerators, denominators))


def reset_peak_memory() -> int:
    """Returns freed memory to the system and starts a new peak. Returns the resident bytes. Linux only."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _process_status("VmRSS")


def peak_resident_bytes() -> int:
    """Peak resident memory of this process since `reset_peak_memory`, in bytes. Linux only."""
    return _process_status("VmHWM")


def _process_status(field_name: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field_name + ":"))
    return int(line.split()[1]) * 1024


def reader_from_overrides(*overrides: str) -> Reader:
    """The reader that `python train.py *overrides` would train, before its first step.

    Raises: ConfigError where the backbone cannot be loaded.
    """
    cfg = compose_config("train", overrides)
    backbone = build_backbone(cfg)
    problems = backbone.problems()
    if problems:
        raise ConfigError(problems)
    return build_reader(cfg, backbone, backbone.tokenizer())


def random_batch(
    reader: Reader, length: int, question: int, answer: int = 0, evidence: int = 0, rows: int = 1
) -> Batch:
    """Random tokens: context, question and answer have `length` tokens together; the prefix is empty.

    question, answer  Q and A
    evidence          number of context tokens, from the first, that are marked as gold
    rows              B
    """
    generator = torch.Generator().manual_seed(0)

    def tokens(width: int) -> Tokens:
        ids = torch.randint(10, reader.decoder.config.vocab_size, (rows, width), generator=generator)
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    query, context = tokens(question), tokens(length - question - answer)
    gold = torch.arange(context.ids.shape[1]).expand_as(context.ids) < evidence
    return Batch(tokens(0), context, query, query, tokens(answer), gold, None, [Example("", "", "", ())] * rows)
