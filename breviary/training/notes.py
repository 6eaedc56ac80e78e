"""Notes about the train split, printed before training: what validation shares with it, too few for a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig


def overlap_notes(train: Any, validation: Any) -> list[str]:
    """Notes where validation examples, or their contexts, also occur in the train split; prepared data have neither.

    train, validation  stored examples with `context_keys` and `pair_keys`
    """
    same = _count_shared(train.pair_keys, validation.pair_keys)
    shared = _count_shared(train.context_keys, validation.context_keys)
    notes = []
    if same:
        notes.append(
            f"{same} of {len(validation)} examples are in the train split too (same context and question): their "
            "scores show what was memorised"
        )
    if shared > same:
        notes.append(
            f"{shared} of {len(validation)} examples have a context of the train split: their scores do not show how "
            "the reader does on new contexts"
        )
    return notes


def _count_shared(train: Iterable[int], validation: Iterable[int]) -> int:
    """Number of `validation` keys that occur in `train`. No set of `train` is built, to save memory."""
    keys = list(validation)
    found = set(keys).intersection(train)
    return sum(key in found for key in keys)


def batch_notes(examples: int, batch: int, train: DictConfig) -> list[str]:
    """A note where the train split has fewer examples than an optimizer step.

    batch  examples of an optimizer step over all processes
    """
    if examples >= batch:
        return []
    readers = batch // (train.batch_size * train.accumulation)
    size = min(train.batch_size, max(examples // readers, 1))
    steps = max(examples // (size * readers), 1)
    rest = (
        f"train.accumulation={steps}" if train.global_batch is None else f"train.global_batch={steps * size * readers}"
    )
    return [
        f"{examples} examples are fewer than the global batch of {batch}: every optimizer step repeats some of them; "
        f"set a smaller batch, e.g. train.batch_size={size} {rest}, or add data"
    ]
