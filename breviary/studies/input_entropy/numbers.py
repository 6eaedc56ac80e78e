"""The input-entropy study's numbers as markdown, from its tables; means over seeds."""

from __future__ import annotations

from pathlib import Path

from pandas import DataFrame

from breviary.studies.entropy import LN2
from breviary.studies.input_entropy.tables import POOLED, WITHIN
from breviary.studies.markdown import markdown_table, rows_where, signed, unsigned
from breviary.studies.tables import read_table

SIDES = {"nll_enc": "encoder", "nll_dec": "decoder", "nll_ref": "SmolLM2"}
METRICS = {
    "neg_ce": "−CE",
    "gain": "gain",
    "normalised_gain": "norm. gain",
    "accuracy": "accuracy",
    "prefix_em": "prefix EM",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
}


def input_entropy_numbers(folder: Path) -> str:
    """All tables of the study as markdown."""
    corr = read_table(folder / "corr.csv")
    return "\n\n".join(
        [
            reconstruction(read_table(folder / "means.csv")),
            accuracy_correlations(corr),
            side_differences(read_table(folder / "regression.csv")),
            correlations_by_metric(corr),
            entropy_ladder(read_table(folder / "ladder.csv")),
        ]
    )


def by_setting(rows: DataFrame) -> dict[str, DataFrame]:
    """{setting such as 'formal → prose, full': its rows, one per seed}, trained decoders before frozen ones."""
    groups = {
        (mode == "frozen", pair != "prose>formal", f"{pair.replace('>', ' → ')}, {mode}"): own
        for (pair, mode), own in rows.groupby(["pair", "dec_mode"], sort=False)
    }
    return {key[-1]: groups[key] for key in sorted(groups)}


def is_frozen(setting: str) -> bool:
    """Whether the decoder of a setting is frozen: those autoencoders reconstruct nothing."""
    return setting.endswith(", frozen")


def mean(rows: DataFrame, name: str) -> float:
    """Mean over seeds; nan where a seed has no value (a quality that is equal for every document)."""
    return rows[name].mean(skipna=False)


def seed_range(rows: DataFrame, name: str) -> str:
    """'-.12 [-.20, -.03]': the mean over seeds, the lowest lower and the highest upper end of their intervals."""
    return f"{signed(mean(rows, name))} [{signed(rows[f'{name}_lo'].min())}, {signed(rows[f'{name}_hi'].max())}]"


def reconstruction(means: DataFrame) -> str:
    """Mean qualities of every setting."""
    pooled = rows_where(means, group=POOLED)
    qualities = ("accuracy", "free_accuracy", "prefix_em", "bleu", "rouge_l", "edit_similarity")
    body = [
        [
            setting,
            f"{mean(own, 'nll_dec') * LN2:.2f}",
            f"{mean(own, 'ce_unconditional'):.2f}",
            f"{mean(own, 'ce'):.2f}",
            signed(mean(own, "normalised_gain")),
            *(unsigned(mean(own, quality)) for quality in qualities),
        ]
        for setting, own in by_setting(pooled).items()
    ]
    heads = ["encoder → decoder, its training", "decoder alone", "+ instruction", "CE", "norm. gain"]
    heads += ["accuracy", "free accuracy", "prefix EM", "BLEU", "ROUGE-L", "edit"]
    first = pooled.iloc[0]
    return (
        f"**Reconstruction** of {first['n']} held-out documents at {first['rate']}x, means over documents and "
        f"{pooled['seed'].nunique()} seeds. CE in nats per token. 'decoder alone' and '+ instruction': CE of the "
        "decoder before training and without memory, without and with the instruction; gains are relative to the "
        f"latter.\n\n{markdown_table(heads, body)}"
    )


def accuracy_correlations(corr: DataFrame) -> str:
    """rho of accuracy with entropy under either side and under the reference model."""
    body = []
    for setting, own in by_setting(rows_where(corr, metric="accuracy")).items():
        for measure, side in SIDES.items():
            if measure == "nll_ref" and is_frozen(setting):
                continue
            pooled, within = (rows_where(own, group=group, measure=measure) for group in (POOLED, WITHIN))
            body.append(
                [
                    f"{setting}: {side}",
                    seed_range(pooled, "rho"),
                    seed_range(within, "rho"),
                    "" if measure == "nll_ref" else seed_range(within, "partial"),
                    f"{within['p_holm'].max():.1g}",
                    f"{within['p_equal'].max():.1g}",
                ]
            )
    heads = ["setting: entropy under", "ρ, domains pooled", "ρ within domains", "… given the other side's"]
    heads += ["p (Holm)", "p (equivalence)"]
    return (
        "**Spearman's ρ of token accuracy with entropy** (NLL, bits per token): mean over seeds [lowest lower, highest "
        "upper end of the seeds' 95% intervals]; p values are the largest over seeds. p (equivalence): test of "
        f"|ρ within domains| < .1; a small value means that there is no relevant correlation.\n\n"
        f"{markdown_table(heads, body)}"
    )


def side_differences(regression: DataFrame) -> str:
    """Williams' test, and the slopes of both entropies."""
    parts = []
    for setting, own in by_setting(rows_where(regression, metric="accuracy")).items():
        test = f"t {mean(own, 'williams_t'):+.1f} (largest p {own['williams_p'].max():.1g})"
        parts.append(f"{setting}: {test}, β {signed(mean(own, 'beta_enc'))} and {signed(mean(own, 'beta_dec'))}")
    return (
        "Williams' t of the difference between the encoder's and the decoder's Pearson correlation with accuracy "
        "(positive: the decoder's is more negative), and standardised slopes of both in one regression with domain "
        f"effects: {'; '.join(parts)}."
    )


def correlations_by_metric(corr: DataFrame) -> str:
    """rho within domains for each quality."""
    body = []
    for setting, own in by_setting(rows_where(corr, group=WITHIN)).items():
        if is_frozen(setting):
            continue
        for measure in ("nll_enc", "nll_dec"):
            values = [mean(rows_where(own, measure=measure, metric=metric), "rho") for metric in METRICS]
            body.append([f"{setting}: {SIDES[measure]}", *map(signed, values)])
    heads = ["setting: entropy under", *METRICS.values()]
    return f"**ρ within domains by quality**, means over seeds:\n\n{markdown_table(heads, body)}"


def entropy_ladder(ladder: DataFrame) -> str:
    """Accuracy on each rung of the entropy ladder."""
    rungs = list(ladder.sort_values("nll_enc")["transform"].unique())
    body = []
    for setting, own in by_setting(ladder).items():
        if is_frozen(setting):
            continue
        means = own.groupby("transform")[["value", "nll_enc"]].mean()
        body.append([setting, *(f"{unsigned(means.value[rung])} ({means.nll_enc[rung]:.1f})" for rung in rungs)])
    heads = ["setting", *(rung.replace("_", " ") for rung in rungs)]
    return (
        f"**The entropy ladder**, the same {ladder['n'].max()} documents on each rung: accuracy (entropy under the "
        f"encoder, bits per token), means over seeds:\n\n{markdown_table(heads, body)}"
    )
