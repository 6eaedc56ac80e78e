"""The data-gap study's numbers as markdown, from its tables; all parts of the documents together."""

from __future__ import annotations

import json
from pathlib import Path

from pandas import Series

from breviary.studies.data_gap.tables import RANDOM
from breviary.studies.markdown import interval, rows_where, signed, unsigned
from breviary.studies.tables import read_table

OTHER_PAIRS, RANDOM_DECODER = "all other pairs", "D1/random tokens"


def pair_accuracies(folder: Path) -> str:
    """Accuracy of matched pairs of mixes, all others and a decoder of random tokens, and the costs of a swap.

    The whole grid is heatmap.csv.
    """
    overrides = json.loads((folder / "data_gap.json").read_text())["config"]["autoencoder"]
    steps = next(word.partition("=")[2] for word in overrides if word.startswith("train.steps="))
    cells = rows_where(read_table(folder / "gap.csv"), part="all", mitigation="none")
    matched = [f"{name}/{name}" for name in sorted(cells["encoder"].unique())]
    pairs = cells["encoder"] + "/" + cells["decoder"]
    kinds = pairs.where(pairs.isin(matched), OTHER_PAIRS).mask(cells["decoder"] == RANDOM, RANDOM_DECODER)
    groups = cells["accuracy"].groupby(kinds)
    accuracies = [f"{kind} {seed_spread(groups.get_group(kind))}" for kind in (*matched, OTHER_PAIRS, RANDOM_DECODER)]
    asymmetry = rows_where(read_table(folder / "asymmetry.csv"), part="all", metric="accuracy", mix="D6")
    cost = {row["what"]: interval(row) for _, row in asymmetry.iterrows()}
    return (
        f"**Data gap**, {steps} steps, {cells['n'].iloc[0]} held-out documents, half prose, half formal text: token "
        f"accuracy of encoder/decoder, means over {cells['seed'].nunique()} seeds [lowest, highest]: "
        f"{', '.join(accuracies)}. Loss against D1/D1 with D6 as decoder {cost['decoder swapped']}, as encoder "
        f"{cost['encoder swapped']}, difference {cost['difference']}."
    )


def seed_spread(values: Series) -> str:
    """'.39 [.38, .40]': mean, lowest and highest value."""
    return f"{unsigned(values.mean())} [{unsigned(values.min())}, {unsigned(values.max())}]"


def gap_correlations(folder: Path) -> str:
    """Spearman's rho of the loss against the decoder's matched pair with each gap."""
    regression = rows_where(read_table(folder / "gap_regression.csv"), part="all")
    parts = []
    for metric in ("accuracy", "gain"):
        rows = rows_where(regression, metric=metric)
        gaps = [
            f"{gap.replace('_', ' ')} {signed(rho)} (p {p:.1g})"
            for gap, rho, p in zip(rows["gap"], rows["rho"], rows["p_holm"])
        ]
        parts.append(f"{metric}: {', '.join(gaps)}")
    return (
        "ρ of the loss against the decoder's matched pair with the gap between the models, "
        f"{regression['n'].iloc[0]} cells, p after Holm's correction: {'; '.join(parts)}."
    )


def mitigation_numbers(folder: Path) -> str:
    """Accuracy that every mitigation adds to the unmatched pair."""
    rows = rows_where(read_table(folder / "mitigation.csv"), part="all", metric="accuracy")
    added = [f"{row['mitigation'].replace('_', ' ')} {interval(row)}" for _, row in rows.iterrows()]
    first = rows.iloc[0]
    lost = {"value": first["matched_minus_unmended"], "low": first["matched_lo"], "high": first["matched_hi"]}
    return (
        f"**Mitigations** of the gap of {first['pair'].replace('>', '/')}, accuracy added: {'; '.join(added)}. Its "
        f"decoder's matched pair is better by {interval(lost)}."
    )
