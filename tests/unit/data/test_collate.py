"""Padding, masks from lengths, pieces of width 0; and `padded_left`, with which tests pad on the other side."""

import pytest
import torch

from breviary.backbones.tiny import tiny_tokenizer
from breviary.contract import Batch, Example
from data.collate import PIECES, Collator
from data.invented_facts import InventedFacts
from data.prompts import Prompt
from data.tokenised import tokenise_split
from tests.padding import padded_left

PAD = 9
SIDES = {"right": lambda batch: batch, "left": padded_left}


def item(context: list[int], evidence: list[bool] | None = None, prefix: tuple[int, ...] = (), **pieces) -> dict:
    return {
        "prefix": list(prefix),
        "context": context,
        "query": [3],
        "prompt": [4, 5],
        "answer": [6, PAD],
        "evidence": evidence,
        "starts": [2 * i for i in range(len(context))],
        "ends": [2 * i + 1 for i in range(len(context))],
        "example": Example(str(len(context)), "c", "q", ("a",)),
        **pieces,
    }


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[1, 2, 7], [8, PAD, PAD]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[1, 2, 7], [PAD, PAD, 8]], [[1, 1, 1], [0, 0, 1]]),
    ],
)
def test_padding_side(side, ids, mask):
    batch = SIDES[side](Collator(PAD)([item([1, 2, 7], [True, False, True]), item([8], [True])]))
    assert batch.context.ids.tolist() == ids and batch.context.ids.dtype == torch.int64
    assert batch.context.mask.tolist() == [[bool(m) for m in row] for row in mask]
    assert batch.context.mask.dtype == torch.bool and batch.context.lengths.tolist() == [3, 1]
    assert batch.evidence.tolist() == (
        [[True, False, True], [True, False, False]] if side == "right" else [[True, False, True], [False, False, True]]
    )


@pytest.mark.parametrize("side", ["right", "left"])
def test_masks_come_from_lengths_not_from_values(side):
    batch = SIDES[side](Collator(PAD)([item([PAD, PAD, PAD]), item([PAD])]))
    assert batch.context.mask.sum().item() == 4
    assert batch.answer.ids.tolist() == [[6, PAD]] * 2 and batch.answer.mask.all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_empty_pieces_have_width_zero(side):
    batch = SIDES[side](Collator(PAD)([item([]), item([])]))
    assert batch.prefix.ids.shape == batch.prefix.mask.shape == batch.context.ids.shape == (2, 0)
    assert batch.prefix.ids.dtype == torch.int64 and batch.prefix.mask.dtype == torch.bool


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_empty_row_beside_a_full_one(side):
    batch = SIDES[side](Collator(PAD)([item([]), item([1, 2], prefix=(5,))]))
    assert batch.context.ids.tolist() == [[PAD, PAD], [1, 2]] and batch.context.lengths.tolist() == [0, 2]
    assert batch.prefix.lengths.tolist() == [0, 1]


@pytest.mark.parametrize(("side", "second"), [("right", [[0, 1], [0, 0]]), ("left", [[0, 0], [0, 1]])])
def test_offsets_are_padded_as_their_tokens(side, second):
    batch = SIDES[side](Collator(PAD)([item([1, 2]), item([3])]))
    assert batch.offsets.tolist() == [[[0, 1], [2, 3]], second]
    assert batch.rows([1]).offsets.tolist() == [second]


def test_offsets_are_none_where_the_tokenizer_provides_none():
    assert Collator(PAD)([item([1, 2]), item([3], starts=None, ends=None)]).offsets is None


def test_evidence_is_none_only_where_no_row_has_it():
    collate = Collator(PAD)
    assert collate([item([1, 2]), item([3])]).evidence is None
    assert collate([item([1, 2]), item([3], [True])]).evidence.tolist() == [[False, False], [True, False]]


def test_evidence_of_another_length_is_an_assertion_error():
    with pytest.raises(AssertionError):
        Collator(PAD)([item([1, 2], [True])])


def test_rows_keep_their_order():
    batch = Collator(PAD)([item([1, 2]), item([3])])
    assert isinstance(batch, Batch) and len(batch) == 2 and [e.id for e in batch.examples] == ["2", "1"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_holds_every_token_of_every_item(side):
    tokenizer = tiny_tokenizer()
    data = tokenise_split(InventedFacts(facts=3, train_size=8).examples("train"), tokenizer, Prompt(), None, None)
    items = [data[i] for i in range(8)]
    batch = SIDES[side](Collator(tokenizer.pad_token_id)(items))
    for name in PIECES:
        tokens = getattr(batch, name)
        assert [tokens.ids[b][tokens.mask[b]].tolist() for b in range(8)] == [one[name] for one in items]
        assert tokens.ids.shape == tokens.mask.shape == (8, max(len(one[name]) for one in items))
    assert not (batch.evidence & ~batch.context.mask).any()
    assert [batch.evidence[b][batch.context.mask[b]].tolist() for b in range(8)] == [one["evidence"] for one in items]
