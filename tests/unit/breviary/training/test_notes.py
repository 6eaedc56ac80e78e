"""Notes before a training: what validation shares with the train split, and fewer examples than a batch."""

import pytest
from omegaconf import OmegaConf

from breviary.config.training_length import derive_accumulation
from breviary.contract import Example
from breviary.training.notes import batch_notes, overlap_notes
from data.store.examples import store_examples


def example(context, question):
    return Example("id", context, question, ("A",))


TRAIN = [example(f"context {i}", "Q?") for i in range(5)]


@pytest.mark.parametrize(
    "validation, starts",
    [
        ([("another", "Q?")], []),
        ([("context 0", "Q?"), ("another", "Q?")], ["1 of 2 examples are in the train split too"]),
        ([("context 0", "R?"), ("another", "Q?")], ["1 of 2 examples have a context of the train split"]),
        (
            [("context 0", "Q?"), ("context 1", "R?")],
            ["1 of 2 examples are in the train split too", "2 of 2 examples have a context of the train split"],
        ),
    ],
)
def test_validation_examples_and_contexts_that_are_trained_on(validation, starts):
    notes = overlap_notes(*(store_examples(rows, None) for rows in (TRAIN, [example(*pair) for pair in validation])))
    assert len(notes) == len(starts) and all(note.startswith(start) for note, start in zip(notes, starts))


@pytest.mark.parametrize(
    "examples, batch, accumulation, processes, way",
    [
        (16, 4, 2, 2, None),
        (15, 4, 2, 2, "train.batch_size=4 train.accumulation=1"),
        (7, 4, 2, 2, "train.batch_size=3 train.accumulation=1"),
        (7, 2, 4, 1, "train.batch_size=2 train.accumulation=3"),
    ],
)
@pytest.mark.parametrize("is_fixed", [False, True])
def test_fewer_examples_than_a_global_batch(examples, batch, accumulation, processes, way, is_fixed):
    total = batch * accumulation * processes
    train = OmegaConf.create({"batch_size": batch, "accumulation": accumulation, "global_batch": None})
    train.global_batch = total if is_fixed else None
    notes = batch_notes(examples, total, train)
    if way is None:
        assert notes == []
        return
    [note] = notes
    assert note.startswith(f"{examples} examples are fewer than the global batch of {total}: ")
    words = dict(word.rstrip(",").split("=") for word in note.split() if "=" in word)
    fixed = OmegaConf.create({key.removeprefix("train."): int(value) for key, value in words.items()})
    if is_fixed:
        assert derive_accumulation(fixed, processes, 1) == []
    else:
        assert way in note
    assert 0 < fixed.batch_size * fixed.accumulation * processes <= examples
