"""The sizes study's numbers as markdown, from its tables."""

from __future__ import annotations

from pathlib import Path

from breviary.studies.markdown import interval, interval_of, markdown_table, rows_where, unsigned
from breviary.studies.tables import read_table


def size_numbers(folder: Path) -> str:
    """All pairs, one learning rate for all sizes, and other tokenizers: the study's three runs below `folder`."""
    return "\n\n".join(
        [
            all_pairs(folder / "sizes"),
            swap_effects("One learning rate for both sizes", folder / "sizes_equal_rate"),
            tokenizer_pairs(folder / "tokenizers"),
        ]
    )


def all_pairs(folder: Path) -> str:
    """Quality and time of every pair at every rate."""
    table = read_table(folder / "sizes.csv").sort_values(["rate", "weights"], kind="stable")
    body = [
        [
            f"{row['encoder']} → {row['decoder']}, {row['rate']}x",
            f"{row['weights'] / 1e6:.2f} M",
            interval_of(row, "accuracy"),
            unsigned(row["bleu"]),
            interval_of(row, "bits_per_byte"),
            f"{row['first_token_ms']:.0f} ms",
            f"{unsigned(row['first_token_of_whole'])}x",
            f"{unsigned(row['decode_of_whole'])}x",
        ]
        for _, row in table.iterrows()
    ]
    heads = ["encoder → decoder, rate", "weights", "accuracy", "BLEU", "bits per byte", "first token"]
    heads += ["… / whole text", "further token / whole text"]
    first = table.iloc[0]
    return (
        f"{first['n']} held-out documents, {first['seeds']} seed. '/ whole text': time divided by that of the same "
        f"decoder reading the whole text.\n\n{markdown_table(heads, body)}\n\n{swap_effects('Paired', folder)}"
    )


def swap_effects(title: str, folder: Path) -> str:
    """What another encoder and another decoder change, paired over documents."""
    swaps = rows_where(read_table(folder / "swaps.csv"), metric="bits_per_byte")
    effects = [
        f"{row['other']} {row['what']} at {row['rate']}x: {interval(row)}"
        for _, row in swaps[swaps["what"] != "decoder minus encoder"].iterrows()
    ]
    return f"{title}, change in bits per byte (less is better): {'; '.join(effects)}."


def tokenizer_pairs(folder: Path) -> str:
    """Every pair of two tokenizers, in measures that do not depend on the tokenizer."""
    body = [
        [
            f"{row['encoder']} → {row['decoder']}",
            f"{row['slots']:.1f}",
            *(interval_of(row, name) for name in ("bits_per_byte", "bleu", "rouge_l", "edit_similarity")),
        ]
        for _, row in read_table(folder / "sizes.csv").iterrows()
    ]
    heads = ["encoder → decoder", "slots", "bits per byte", "BLEU", "ROUGE-L", "edit"]
    return (
        "Tokenizers of 512 (small) and 1,024 entries (other), models of one shape, 4 tokens of the encoder per slot:"
        f"\n\n{markdown_table(heads, body)}"
    )
