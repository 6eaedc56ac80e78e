"""Packs: every text once a pass, never split, within the size; the loss of a packed step is that of its examples."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from breviary.readers.chunked import ChunkedReader
from breviary.training.packing import PackedItems, Packing, PackSampler, collate_packs, pack_notes
from tests.tiny import disturb

LENGTHS = [7, 3, 12, 5, 5, 9, 1, 20, 4, 4, 8, 2]


def items_of(lengths):
    return SimpleNamespace(lengths=[n - 1 for n in lengths], other_lengths=[1] * len(lengths))


@pytest.mark.parametrize("reader", [ChunkedReader, object])
def test_a_pass_holds_every_text_once_within_the_size(reader):
    packing = Packing(20, reader)
    passes = [list(packing.packs(LENGTHS, seed=3, number=number)) for number in range(2)]
    for packs in passes:
        assert Counter(i for pack in packs for i in pack) == dict.fromkeys(range(len(LENGTHS)), 1)
        for pack in packs:
            sizes = [LENGTHS[i] for i in pack]
            assert (sum(sizes) if reader is ChunkedReader else max(sizes) * len(sizes)) <= 20
        if reader is ChunkedReader:  # greedy: the first text of a pack did not fit into the one before
            assert all(sum(LENGTHS[i] for i in a) + LENGTHS[b[0]] > 20 for a, b in zip(packs, packs[1:]))
    assert passes[0] != passes[1] and passes[0] == list(packing.packs(LENGTHS, seed=3, number=0))


def test_epochs_count_the_packs_of_their_passes():
    packing, items = Packing(20, ChunkedReader), items_of(LENGTHS)
    counts = [len(list(packing.packs(LENGTHS, 1, number))) for number in range(3)]
    assert packing.count(items, 1, 3) == sum(counts)
    assert packing.count(items, 1, 2.5) == counts[0] + counts[1] + -(-counts[2] // 2)
    sampled = list(PackSampler(packing, items, sum(counts) + 1, 1))
    assert len(sampled) == sum(counts) + 1 and sampled[: counts[0]] == list(packing.packs(LENGTHS, 1, 0))


def test_a_text_longer_than_a_pack_is_one_and_is_noted():
    [note] = pack_notes(items_of(LENGTHS), 11)
    assert "2 texts have more than train.pack_tokens=11 tokens, the longest 20: each is a pack of its own" in note
    assert pack_notes(items_of(LENGTHS), 20) == pack_notes(items_of(LENGTHS), None) == []
    packs = list(Packing(11, ChunkedReader).packs(LENGTHS, 0, 0))
    assert [2] in packs and [7] in packs


def test_texts_of_a_pack_do_not_see_each_other(build, ragged_examples, collate):
    reader = build(["compressor=comet", "compressor.strategy=fixed"])
    disturb(reader)
    items = PackedItems(ragged_examples)
    together = reader.loss(collate_packs(collate)([items[[3, 0]], items[[2, 4, 1]]]))
    alone = torch.stack([reader.loss(collate([ragged_examples[i]])).nll[0] for i in (3, 0, 2, 4, 1)])
    torch.testing.assert_close(together.nll, alone, rtol=1e-5, atol=1e-5)
