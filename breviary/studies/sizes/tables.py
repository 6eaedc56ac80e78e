"""Tables of the sizes study: sizes.csv and swaps.csv."""

from __future__ import annotations

from typing import Any

from pandas import DataFrame

from breviary.studies.tables import mean_by_document, mean_columns, paired_difference

PAIR = ["encoder", "decoder", "rate"]
WHOLE_TEXT = 0  # the rate of the decoder that reads the whole text
METRICS = ("accuracy", "normalised_gain", "ce", "bits_per_byte", "free_accuracy", "bleu", "rouge_l", "edit_similarity")
# Metrics of swaps.csv. Between vocabularies only bits_per_byte and bleu can be compared.
SWAP_METRICS = ("accuracy", "normalised_gain", "bits_per_byte", "bleu")


def size_table(rows: DataFrame, times: DataFrame, written: int, resamples: int) -> DataFrame:
    """sizes.csv: one row per encoder, decoder and rate.

    metrics         means over documents and seeds, with 95% bootstrap intervals over documents
    slots           of memory, mean over documents
    *_ms            medians over rounds: time to the first token, and of one further token
    *_of_whole      times divided by those of the same decoder reading the whole text, medians of the ratios per round
    """
    first_phases = times.columns.intersection(["read_ms", "encode_ms", "compress_ms", "prefill_ms"])
    times = times.assign(first_ms=times[first_phases].sum(axis=1))  # tables of earlier versions have encode_ms
    table: list[dict[str, Any]] = []
    for pair, own in rows.groupby(PAIR, sort=False):
        row = {
            **dict(zip(PAIR, pair)),
            "seeds": own["seed"].nunique(),
            "n": own["doc_id"].nunique(),
            "slots": own["memory_slots"].mean(),
        }
        for metric in METRICS:
            row |= mean_columns(mean_by_document(own, metric), metric, resamples)
        table.append(row | time_columns(times, pair, written))
    return DataFrame(table)


def time_columns(times: DataFrame, pair: tuple[str, str, int], written: int) -> dict[str, float]:
    """Weights and times of one pair; `written` tokens were decoded in each round."""
    timed = times.set_index([*PAIR, "round"]).sort_index()
    own, whole = timed.loc[pair], timed.loc["", pair[1], WHOLE_TEXT]
    ratios = own / whole
    return {
        "weights": own["weights"].iloc[0],
        "first_token_ms": own["first_ms"].median(),
        "decode_ms": own["decode_ms"].median() / written,
        "first_token_of_whole": ratios["first_ms"].median(),
        "decode_of_whole": ratios["decode_ms"].median(),
    }


def swap_table(rows: DataFrame, sizes: list[str], resamples: int) -> DataFrame:
    """swaps.csv: paired differences over documents (means over seeds) from the pair of the first size.

    encoder, decoder       another size on this side minus the first size on both
    decoder minus encoder  which side should have the other size where only one can
    """
    first, table = sizes[0], []
    for rate, own in rows.groupby("rate", sort=False):
        pairs = dict(list(own.groupby(["encoder", "decoder"])))
        for other in sizes[1:]:
            for metric in SWAP_METRICS:
                both, encoder, decoder = (
                    mean_by_document(pairs[pair], metric) for pair in ((first, first), (other, first), (first, other))
                )
                for what, minuend, subtrahend in (
                    ("encoder", encoder, both),
                    ("decoder", decoder, both),
                    ("decoder minus encoder", decoder, encoder),
                ):
                    shared = {"rate": rate, "other": other, "metric": metric, "what": what}
                    table.append(shared | paired_difference(minuend, subtrahend, resamples))
    return DataFrame(table)
