"""Tables and figure of the sizes study. No entry point of its own; see study_sizes.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display
import numpy as np
from matplotlib import pyplot

from breviary.evaluation.statistics import paired_bootstrap
from scripts.study_parts import mean_by_document

SETTING = ("encoder", "decoder", "rate", "seed")
KIND = SETTING[:3]
TOLD = ("accuracy", "normalised_gain", "ce", "bits_per_byte", "free_accuracy", "bleu", "rouge_l", "edit_similarity")
COMPARED = ("accuracy", "normalised_gain", "bits_per_byte", "bleu")  # of other vocabularies the last two alone
DRAWN = "bits_per_byte"
Row = dict[str, Any]


def by_kind(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """{(encoder, decoder, rate): its rows}, in the order of the rows."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in KIND), []).append(row)
    return found


def size_table(rows: Sequence[Row], times: Sequence[Row], written: int, resamples: int) -> list[Row]:
    """sizes.csv: a row for each encoder, decoder and rate: means over documents and seeds with 95% bootstrap intervals
    over documents, slots (of the encoder's tokens), weights, milliseconds (medians over rounds), and times over the whole
    text's (medians of the ratios within rounds): first_token for reading, compressing and the decoder's first step,
    decode for a token written."""
    timed = {tuple(row[key] for key in ("encoder", "decoder", "rate", "round")): row for row in times}
    table = []
    for (encoder, decoder, rate), own in by_kind(rows).items():
        told = {
            "encoder": encoder,
            "decoder": decoder,
            "rate": rate,
            "seeds": len({row["seed"] for row in own}),
            "n": len({row["doc_id"] for row in own}),
            "slots": statistics.fmean(row["memory_slots"] for row in own),
        }
        for metric in TOLD:
            about = paired_bootstrap(np.array(list(mean_by_document(own, metric).values())), resamples, 0)
            told |= {metric: about["value"], f"{metric}_lo": about["low"], f"{metric}_hi": about["high"]}
        rounds = [
            (row, timed[None, decoder, 0, row["round"]])
            for row in times
            if tuple(row[key] for key in KIND) == (encoder, decoder, rate)
        ]
        first, step = zip(
            *((first_ms(one) / first_ms(whole), one["decode_ms"] / whole["decode_ms"]) for one, whole in rounds)
        )
        table.append(
            told
            | {
                "weights": rounds[0][0]["weights"],
                "first_token_ms": statistics.median(first_ms(one) for one, _ in rounds),
                "decode_ms": statistics.median(one["decode_ms"] for one, _ in rounds) / written,
                "first_token_of_whole": statistics.median(first),
                "decode_of_whole": statistics.median(step),
            }
        )
    return table


def first_ms(row: Row) -> float:
    """Milliseconds until the first token can be written."""
    return row["encode_ms"] + row["compress_ms"] + row["prefill_ms"]


def swaps(rows: Sequence[Row], sizes: Sequence[str], resamples: int) -> Iterator[Row]:
    """swaps.csv: paired differences over documents (means over seeds) between pairs of one rate.

    From the first size on both sides: what another encoder gives, what another decoder gives, and the second minus the
    first: on which of the two sides the other size should be used where only one can be.
    """
    kinds = by_kind(rows)
    first = sizes[0]
    for rate in dict.fromkeys(row["rate"] for row in rows):
        for other in sizes[1:]:
            for metric in COMPARED:
                both, encoder, decoder = (
                    mean_by_document(kinds[(*pair, rate)], metric)
                    for pair in ((first, first), (other, first), (first, other))
                )
                for what, high, low in (
                    ("encoder", encoder, both),
                    ("decoder", decoder, both),
                    ("decoder minus encoder", decoder, encoder),
                ):
                    differences = np.array([high[doc] - low[doc] for doc in sorted(both)])
                    yield {
                        "rate": rate,
                        "other": other,
                        "metric": metric,
                        "what": what,
                        "n": len(differences),
                        **paired_bootstrap(differences, resamples, 0),
                    }


def pareto(folder: Path, table: Sequence[Row]) -> None:
    """Bits a byte, which tokenizers can be compared by, against the time to the first token; a line a pair, rates named."""
    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, pair in enumerate(dict.fromkeys((row["encoder"], row["decoder"]) for row in table)):
        own = [row for row in table if (row["encoder"], row["decoder"]) == pair]
        x, y = [row["first_token_ms"] for row in own], np.array([row[DRAWN] for row in own])
        spread = np.array([[row[DRAWN] - row[f"{DRAWN}_lo"], row[f"{DRAWN}_hi"] - row[DRAWN]] for row in own]).T
        axis.errorbar(x, y, spread, marker="o", ms=4, lw=1, color=f"C{number}", label=f"{pair[0]} → {pair[1]}")
        for row in own:
            axis.annotate(
                f"{row['rate']:g}x",
                (row["first_token_ms"], row[DRAWN]),
                fontsize=7,
                xytext=(4, 4),
                textcoords="offset points",
            )
    axis.set(
        xlabel="milliseconds to the first token, a batch of long documents",
        ylabel="bits a byte (teacher-forced; better upwards)",
    )
    axis.invert_yaxis()
    axis.legend(title="encoder → decoder", fontsize=8, title_fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(folder / "pareto.png", dpi=110)
    pyplot.close(figure)
