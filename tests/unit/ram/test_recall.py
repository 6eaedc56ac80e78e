"""Recall of gold segments: which segments count, and BM25 on the text of the segments."""

import pytest
import torch

from ram.recall import bm25_scores, segment_recall
from ram.segments import select_segments


def test_recall_is_the_share_of_gold_segments_kept():
    relevance, gold = torch.tensor([[0.9, 0.1, 0.8, 0.7]]), torch.tensor([[True, True, False, True]])
    lengths = torch.full((1, 4), 8)
    recall = segment_recall(relevance, gold, lengths, [1, 2, 9])
    assert recall == {1: 1.0, 2: pytest.approx(1 / 3), 9: pytest.approx(1 / 3)}
    assert select_segments(relevance, lengths, 4.0).tolist() == [[True, False, False, False]]


def test_bm25_ranks_the_segment_with_the_words_of_the_question_first(collate, ragged_examples):
    batch = collate([ragged_examples[0]])
    assert batch.evidence.any()
    scores = bm25_scores(batch, 8)
    assert len(scores) == -(-int(batch.context.mask.sum()) // 8)
    assert batch.evidence[0, 8 * scores.argmax() : 8 * scores.argmax() + 8].any()
