"""How well a text was written down again from its memory (reconstruction); one implementation for every reader.

Teacher-forced: what the decoder spends on each token of the text, given the true ones before it. Free-running: what it
writes by itself, greedily. The end token counts in neither, and is told apart.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu
from rouge_score import rouge_scorer

BIN = 32  # positions told together
TINY = 1e-30  # nltk counts an order without agreement as the smallest float, not as 0
_SMOOTHING = SmoothingFunction().method3  # NIST's, as sacrebleu's default: the k-th empty precision counts 1 / 2^k
_ROUGE = rouge_scorer.RougeScorer(["rouge1", "rouge2"], use_stemmer=True)  # as data.metrics' ROUGE-L
_WORD = re.compile(r"\w+|[^\w\s]")


def prefix_exact_match(ids: Sequence[int], target: Sequence[int]) -> float:
    """Leading tokens that agree / length of the target: 128 right ones of 512 are .25 (ICAE's EM, GMSA's metric, B5).

    1 where both are empty, 0 where only the target is.
    """
    if not target:
        return float(not ids)
    wrong = (n for n, (own, right) in enumerate(zip(ids, target)) if own != right)
    return next(wrong, min(len(ids), len(target))) / len(target)


def edit_similarity(text: str, target: str) -> float:
    """1 - Levenshtein distance in characters / length of the longer; 1 where both are empty. O(|text|) numpy rows."""
    longest = max(len(text), len(target))
    if not longest:
        return 1.0
    target_codes = np.array([ord(letter) for letter in target])
    columns = np.arange(len(target) + 1)
    distances = columns
    for row, letter in enumerate(text, start=1):
        exchanged = distances[:-1] + (target_codes != ord(letter))
        best = np.concatenate([[row], np.minimum(exchanged, distances[1:] + 1)])
        # Letters of the target that are put in: each costs 1 over the best entry to its left.
        distances = np.minimum.accumulate(best - columns) + columns
    return 1 - float(distances[-1]) / longest


def words(text: str) -> list[str]:
    """Words and punctuation marks, case kept: what BLEU counts."""
    return _WORD.findall(text)


def bleu(text: str, target: str) -> float:
    """Sentence BLEU (Papineni et al. 2002) in [0, 1], up to 4-grams, of shorter texts up to their length.

    Smoothed as sacrebleu does. 1 where both are empty, 0 where one is or no word agrees.
    """
    own, right = words(text), words(target)
    if not own or not right:
        return float(own == right)
    order = min(4, len(own), len(right))
    return float(sentence_bleu([right], own, [1 / order] * order, smoothing_function=_SMOOTHING))


def rouge_n(text: str, target: str) -> dict[str, float]:
    """rouge_1 and rouge_2: F-measures of stemmed words and word pairs (Lin 2004)."""
    found = _ROUGE.score(target, text)
    return {"rouge_1": found["rouge1"].fmeasure, "rouge_2": found["rouge2"].fmeasure}


class Restoration:
    """What one example's reconstruction is worth, as a part of its line in predictions.jsonl, and of all together.

    scores       means over the examples: prefix_em, sequence_em (token by token), bleu, rouge_1, rouge_2,
                 edit_similarity, end_rate (the text was ended by an end token), accuracy_macro, end_accuracy
    ratios       sums over sums, {name: [sum, sum]}:
                 accuracy          teacher-forced: tokens that were the likeliest, of all
                 ce                nats a token
                 bits_per_byte     of the text in UTF-8: comparable between tokenizers
                 ce_unconditional  nats a token that the decoder spent before training and without memory
                 gain              ce_unconditional - ce: information that the memory gave, nats a token
                 normalised_gain   1 - ce / ce_unconditional: 0 = memory is of no use, 1 = lossless
                 ce_other          nats a token with the memory of another text
                 own_gain          ce_other - ce: what was kept of this very text; the rest of gain any memory gives, as a
                                   learned prompt would
                 free_accuracy     free-running: right tokens at their places, of all
                 length_ratio      tokens written, of all
    by_position  {"0-31": [right tokens, tokens], ...}: free_accuracy along the text
    """

    def __call__(
        self,
        text: str,
        ids: Sequence[int],
        is_ended: bool,
        target: str,
        target_ids: Sequence[int],
        nll: Sequence[float] | None,
        hits: Sequence[bool] | None,
        unconditional: float | None,
        other: float | None = None,
    ) -> dict[str, Any]:
        """One example's parts.

        text, ids, is_ended  what was written; ids without the end token
        target, target_ids   what is right; ids without the end token
        nll, hits            of target_ids and then the end token; None where the reader does not tell
        unconditional        nats on target_ids without memory and before training; None where nobody asked
        other                nats on target_ids with the memory of another text; None where nobody asked
        """
        n = len(target_ids)
        right = [own == true for own, true in zip(ids, target_ids)]
        scores = {
            "prefix_em": prefix_exact_match(ids, target_ids),
            "sequence_em": float(list(ids) == list(target_ids)),
            "bleu": bleu(text, target),
            **rouge_n(text, target),
            "edit_similarity": edit_similarity(text, target),
            "end_rate": float(is_ended),
        }
        ratios = {"free_accuracy": [sum(right), n], "length_ratio": [len(ids), n]}
        if nll is not None:
            spent = sum(nll[:n])
            scores |= {"accuracy_macro": sum(hits[:n]) / n if n else 1.0, "end_accuracy": float(hits[n])}
            ratios |= {
                "accuracy": [sum(hits[:n]), n],
                "ce": [spent, n],
                "bits_per_byte": [spent / math.log(2), len(target.encode())],
            }
            if unconditional is not None:
                ratios |= {
                    "ce_unconditional": [unconditional, n],
                    "gain": [unconditional - spent, n],
                    "normalised_gain": [unconditional - spent, unconditional],
                }
            if other is not None:
                ratios |= {"ce_other": [other, n], "own_gain": [other - spent, n]}
        bins = {
            f"{start}-{start + BIN - 1}": [sum(right[start : start + BIN]), min(BIN, n - start)]
            for start in range(0, n, BIN)
        }
        return {"scores": scores, "ratios": ratios, "by_position": bins}

    def corpus(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Corpus BLEU of all rows in [0, 1], without smoothing and without an interval: n-grams are counted over all."""
        own = [words(row["prediction"]) for row in rows]
        right = [[words(row["references"][0])] for row in rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that no n-gram of some order agrees: the value says that too
            found = float(corpus_bleu(right, own))
        return {"corpus_bleu": found if found > TINY else 0.0}
