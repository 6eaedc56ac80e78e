"""Notes about the train split, printed before training: what validation shares with it, too few for a batch."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from breviary.contract import Example


def overlap_notes(train: Sequence[Example], validation: Sequence[Example]) -> list[str]:
    """Notes where validation examples are trained on, or have contexts that are; prepared data have none of either."""
    pairs = {(example.context, example.question) for example in train}
    contexts = {context for context, _ in pairs}
    same = sum((example.context, example.question) in pairs for example in validation)
    shared = sum(example.context in contexts for example in validation)
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
