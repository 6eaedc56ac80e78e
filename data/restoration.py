"""Metrics of reconstruction: how well a text is reproduced from its memory.

Teacher-forced metrics use the decoder's loss on each token of the text, given the true tokens before it. Free-running
metrics use the text that it decodes greedily. The end token counts in neither and is reported separately.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import BLEU

from data.metrics import rouge, separate

POSITIONS_PER_BIN = 32
MAX_ORDER = 4  # longest n-grams of BLEU, in words
_WORD = re.compile(r"\w+|[^\w\s]")


def prefix_exact_match(ids: Sequence[int], target: Sequence[int]) -> float:
    """Leading tokens that agree / length of the target: 128 of 512 are .25 (ICAE's EM; GMSA's metric, appendix B5).

    1 where both are empty, 0 where only the target is.
    """
    if not target:
        return float(not ids)
    mismatches = (n for n, (own, true) in enumerate(zip(ids, target)) if own != true)
    return next(mismatches, min(len(ids), len(target))) / len(target)


def edit_similarity(text: str, target: str) -> float:
    """1 - Levenshtein distance in characters / length of the longer text; 1 where both are empty."""
    return Levenshtein.normalized_similarity(text, target)


def words(text: str) -> list[str]:
    """Words and punctuation marks, case kept: the units of BLEU.

    A character is a word in scripts that are written without spaces.
    """
    return _WORD.findall(separate(text))


def bleu(text: str, target: str) -> float:
    """Sentence BLEU (Papineni et al. 2002) in [0, 1], sacrebleu's with exponential smoothing.

    n-grams of up to MAX_ORDER words, of fewer where a text has fewer. 1 where both texts are empty, 0 where one is or
    no word agrees.
    """
    own, true = words(text), words(target)
    if not own or not true:
        return float(own == true)
    metric = _bleu(min(MAX_ORDER, len(own), len(true)), "exp")
    return min(metric.sentence_score(" ".join(own), [" ".join(true)]).score / 100, 1.0)  # rounding can exceed 100


def corpus_bleu(texts: Sequence[str], targets: Sequence[str]) -> float:
    """Corpus BLEU in [0, 1]: n-grams are counted over all texts, without smoothing.

    A text of fewer than n words counts as one wrong n-gram (nltk's rule); sacrebleu does not count it.
    """
    own = [words(text) for text in texts]
    statistics = _bleu(MAX_ORDER, "none").corpus_score(
        [" ".join(text) for text in own], [[" ".join(words(target)) for target in targets]]
    )
    totals = [total + sum(len(text) < n for text in own) for n, total in enumerate(statistics.totals, 1)]
    return min(BLEU.compute_bleu(statistics.counts, totals, statistics.sys_len, statistics.ref_len).score / 100, 1.0)


@functools.cache
def _bleu(order: int, smoothing: str) -> BLEU:
    """BLEU of texts whose words are separated by spaces. `force` and `effective_order` silence warnings only."""
    return BLEU(
        tokenize="none", smooth_method=smoothing, max_ngram_order=order, effective_order=smoothing != "none", force=True
    )


def rouge_n(text: str, target: str) -> dict[str, float]:
    """rouge_1 and rouge_2: F-measures of stemmed words and word pairs (Lin 2004), as ROUGE-L in data.metrics."""
    found = rouge(text, target, ("rouge1", "rouge2"))
    return {"rouge_1": found["rouge1"], "rouge_2": found["rouge2"]}


class Restoration:
    """Reconstruction metrics of one example, as part of its line in predictions.jsonl, and of all examples.

    scores       averaged over the examples: prefix_em, sequence_em (all tokens agree), bleu, rouge_1, rouge_2,
                 edit_similarity, end_rate (the decoded text has an end token), accuracy_macro, end_accuracy
    ratios       {name: [numerator, denominator]}, each summed over the examples before dividing:
                 accuracy          teacher-forced: share of tokens that are the most likely
                 ce                nats per token
                 bits_per_byte     of the text in UTF-8: comparable between tokenizers
                 ce_unconditional  nats per token of the decoder before training and without memory
                 gain              ce_unconditional - ce: information provided by the memory, nats per token
                 normalised_gain   1 - ce / ce_unconditional: 0 = the memory is useless, 1 = lossless
                 ce_other          nats per token with the memory of another text
                 own_gain          ce_other - ce: the part of `gain` specific to this text; the rest, any memory
                                   provides, as a learned prompt does
                 free_accuracy     free-running: share of the target's tokens decoded at their position
                 length_ratio      tokens decoded / tokens of the target
    by_position  {"0-31": [correct tokens, tokens], ...}: free_accuracy along the text
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
        unconditional_nll: float | None,
        shuffled_nll: float | None = None,
    ) -> dict[str, Any]:
        """{"scores", "ratios", "by_position"} of one example.

        text, ids, is_ended  the decoded text; ids without the end token
        target, target_ids   the true text; ids without the end token
        nll, hits            nats of each of target_ids and the end token, and whether it was the most likely; None
                             where the reader does not report them
        unconditional_nll    nats of target_ids without memory, before training; None where it is not measured
        shuffled_nll         nats of target_ids with the memory of another text; None where it is not measured
        """
        n = len(target_ids)
        correct = [own == true for own, true in zip(ids, target_ids)]
        scores = {
            "prefix_em": prefix_exact_match(ids, target_ids),
            "sequence_em": float(list(ids) == list(target_ids)),
            "bleu": bleu(text, target),
            **rouge_n(text, target),
            "edit_similarity": edit_similarity(text, target),
            "end_rate": float(is_ended),
        }
        ratios: dict[str, list[float]] = {"free_accuracy": [sum(correct), n], "length_ratio": [len(ids), n]}
        if nll is not None and hits is not None:
            nats = sum(nll[:n])
            scores |= {"accuracy_macro": sum(hits[:n]) / n if n else 1.0, "end_accuracy": float(hits[n])}
            ratios |= {
                "accuracy": [sum(hits[:n]), n],
                "ce": [nats, n],
                "bits_per_byte": [nats / math.log(2), len(target.encode())],
            }
            if unconditional_nll is not None:
                ratios |= {
                    "ce_unconditional": [unconditional_nll, n],
                    "gain": [unconditional_nll - nats, n],
                    "normalised_gain": [unconditional_nll - nats, unconditional_nll],
                }
            if shuffled_nll is not None:
                ratios |= {"ce_other": [shuffled_nll, n], "own_gain": [shuffled_nll - nats, n]}
        size = POSITIONS_PER_BIN
        by_position = {
            f"{start}-{start + size - 1}": [sum(correct[start : start + size]), min(size, n - start)]
            for start in range(0, n, size)
        }
        return {"scores": scores, "ratios": ratios, "by_position": by_position}

    def corpus(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Metrics over all rows of predictions.jsonl, without an interval."""
        texts, targets = [row["prediction"] for row in rows], [row["references"][0] for row in rows]
        return {"corpus_bleu": corpus_bleu(texts, targets)}
