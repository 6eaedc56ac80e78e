"""Length and batch of a training: steps from epochs, accumulation from the global batch, intervals between checkpoints.

Two keys each replace another one: train.epochs replaces train.steps, train.global_batch replaces train.accumulation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from breviary.config.errors import raise_problems

REPLACED = {"epochs": "steps", "global_batch": "accumulation"}  # keys of section train


def choose_given(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Resolves, in place, the keys of REPLACED: of two such keys, the one on the command line is used.

    overrides  of the command line; train.steps there switches off the train.epochs of an experiment, for example
    Raises: ConfigError where the command line sets both.
    """
    given, problems = {override.lstrip("+").partition("=")[0] for override in overrides}, []
    for key, replaced in REPLACED.items():
        if OmegaConf.select(cfg, f"train.{key}") is None or f"train.{replaced}" not in given:
            continue
        if f"train.{key}" in given:
            problems.append(
                f"train.{key}={cfg.train[key]} and train.{replaced}={cfg.train[replaced]}: the first replaces the "
                f"second; set one of them, e.g. train.{key}={cfg.train[key]}"
            )
        cfg.train[key] = None
    raise_problems(problems)


def check_length(train: DictConfig) -> list[str]:
    """Error messages for train.epochs, train.global_batch, train.pack_tokens and train.save_every."""
    problems = []
    if train.epochs is not None and not 0 < train.epochs < math.inf:
        problems.append(f"train.epochs={train.epochs}: must be above 0, or null for train.steps, e.g. train.epochs=3")
    if train.global_batch is not None and train.global_batch < 1:
        problems.append(
            f"train.global_batch={train.global_batch}: must be at least 1, or null for "
            "train.batch_size x train.accumulation x processes, e.g. train.global_batch=16"
        )
    tokens = train.get("pack_tokens")
    if tokens is not None and tokens < 1:
        problems.append(
            f"train.pack_tokens={tokens}: must be at least 1 token, or null for no packs, e.g. train.pack_tokens=32768"
        )
    try:
        save_interval(train.save_every)
    except ValueError as error:
        problems.append(str(error))
    return problems


def save_interval(value: int | str) -> tuple[int, float]:
    """(steps, seconds) between checkpoints for a value of train.save_every; the one that is not meant is 0.

    Raises: ValueError unless the value is a number of steps or minutes, 0 or more.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)m", str(value).strip())
    if found:
        return 0, 60 * float(found[1])
    if isinstance(value, int) and value >= 0:
        return value, 0.0
    raise ValueError(
        f"train.save_every={value}: must be a number of steps, e.g. train.save_every=100, or minutes, "
        "e.g. train.save_every=15m; train.save_every=0 switches it off"
    )


# ------------------------------------------------------------------ batch


def examples_at_once(train: DictConfig, processes: int, ranks: int) -> int:
    """Examples of one micro-batch over all processes. ranks: engine.ranks, processes that share a batch."""
    return train.batch_size * max(processes // max(ranks, 1), 1)


def global_batch(train: DictConfig, processes: int, ranks: int) -> int:
    """Examples of an optimizer step over all processes."""
    return train.accumulation * examples_at_once(train, processes, ranks)


def derive_accumulation(train: DictConfig, processes: int, ranks: int) -> list[str]:
    """Sets train.accumulation, in place, such that an optimizer step has train.global_batch examples, if set.

    Returns an error message where no accumulation does.
    """
    wanted = train.global_batch
    if wanted is None or wanted < 1 or train.batch_size < 1:  # refused by the checks of section train
        return []
    at_once = examples_at_once(train, processes, ranks)
    if wanted % at_once == 0:
        train.accumulation = wanted // at_once
        return []
    readers, below = at_once // train.batch_size, wanted // at_once * at_once
    ways = [f"train.global_batch={value}" for value in (below, below + at_once) if value]
    if wanted % readers == 0:
        sizes = [size for size in range(1, wanted // readers + 1) if wanted // readers % size == 0]
        ways.append(f"train.batch_size={min(sizes, key=lambda size: abs(size - train.batch_size))}")
    words = "processes" if ranks <= 1 else "processes / engine.ranks"
    return [
        f"train.global_batch={wanted}: not a multiple of train.batch_size x {words} = {train.batch_size} x {readers} = "
        f"{at_once}; set {' or '.join(ways)}"
    ]


def derive_steps(train: DictConfig, examples: int, batch: int, packs: int | None = None) -> None:
    """Sets train.steps, in place, to train.epochs passes over the examples, where that is set, rounded up.

    packs  in these passes, with train.pack_tokens
    """
    if train.epochs is not None:
        train.steps = max(math.ceil((train.epochs * examples if packs is None else packs) / batch), 1)


def describe_batch(train: DictConfig, processes: int, ranks: int, examples: int) -> str:
    """One printed line: the global batch as processes x batch x accumulation, and the steps in epochs.

    examples  of the train split; its packs where train.pack_tokens is set
    """
    tokens = train.get("pack_tokens")
    unit = "examples" if tokens is None else f"packs of {tokens} tokens"
    batch = global_batch(train, processes, ranks)
    readers = f"{processes} process{'es' if processes > 1 else ''}"
    if ranks > 1:
        readers = f"{processes // ranks} pipelines of {ranks} processes"
    total = train.steps * batch
    return (
        f"global batch: {readers} x {train.batch_size} {unit} x {train.accumulation} accumulation = {batch}; "
        f"{train.steps} steps = {total} {unit.split()[0]} = {total / max(examples, 1):.4g} epochs"
    )
