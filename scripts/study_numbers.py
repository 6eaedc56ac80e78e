"""Writes the studies' numbers out of the committed tables into docs/, between two marks: every number of
autoencoder_study.md, and of guidelines.md the part about sizes.

    python scripts/study_numbers.py [--check]

--check only says whether the documents are up to date (exit code 1 where not). A test does the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from breviary.runtime.files import write_text
from breviary.studies.entropy import LN2
from scripts.gap_tables import RANDOM
from scripts.study_correlations import POOLED, WITHIN
from scripts.study_parts import read_csv

DOCUMENT, GUIDELINES = ROOT / "docs" / "autoencoder_study.md", ROOT / "docs" / "guidelines.md"
TABLES = ROOT / "results" / "autoencoder_study"
BEGIN, END = "<!-- numbers: written by scripts/study_numbers.py -->", "<!-- end of numbers -->"
FROZEN = ", frozen"  # the settings that restore nothing: told where that is the point
SIDES = {"nll_enc": "encoder", "nll_dec": "decoder", "nll_ref": "SmolLM2"}
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where numbers differ")
    given = parser.parse_args(arguments)
    for document, block in ((DOCUMENT, numbers(TABLES)), (GUIDELINES, size_numbers(TABLES))):
        text = document.read_text(encoding="utf-8")
        wanted = with_numbers(text, block)
        if given.check and text != wanted:
            print(
                f"error: {document.name} is not what the tables say; run python scripts/study_numbers.py",
                file=sys.stderr,
            )
            sys.exit(1)
        if not given.check:
            write_text(document, wanted)


def with_numbers(text: str, block: str) -> str:
    """The document with `block` between the marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def numbers(folder: Path) -> str:
    """All tables, as markdown."""
    corr = read_csv(folder / "corr.csv")
    return "\n\n".join(
        [
            restored(read_csv(folder / "means.csv")),
            correlated(corr),
            sides_differ(read_csv(folder / "regression.csv")),
            by_metric(corr),
            rungs(read_csv(folder / "ladder.csv")),
            gap(folder / "gap_small"),
            gap_correlations(folder / "gap_small"),
            gap(folder / "gap_small_longer"),
            mended(folder / "gap_small"),
        ]
    )


def signed(value: float | None) -> str:
    """-.12, +.30; a dash for what could not be told."""
    return "–" if value is None else f"{value:+.2f}".replace("0.", ".", 1)


def share(value: float) -> str:
    """.30"""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def over_seeds(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """{"formal → prose, full": its rows, one a seed}, full decoders first."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["dec_mode"] == "frozen", row["pair"] != "prose>formal")):
        found.setdefault(f"{row['pair'].replace('>', ' → ')}, {row['dec_mode']}", []).append(row)
    return found


def mean(rows: Sequence[Row], name: str) -> float | None:
    """Over seeds; None where some seed has no value (a quality that is the same for every document)."""
    values = [row[name] for row in rows]
    return None if None in values else sum(values) / len(values)


def between(rows: Sequence[Row], name: str, low: str, high: str) -> str:
    """-.12 [-.20, -.03]: the mean over seeds, the lowest lower and the highest upper end."""
    ends = min(row[low] for row in rows), max(row[high] for row in rows)
    return f"{signed(mean(rows, name))} [{signed(ends[0])}, {signed(ends[1])}]"


def restored(rows: Sequence[Row]) -> str:
    """What the autoencoders restore of the held-out documents."""
    pooled = [row for row in rows if row["group"] == POOLED]
    shown = ("accuracy", "free_accuracy", "prefix_em", "bleu", "rouge_l", "edit_similarity")
    body = [
        [
            name,
            f"{mean(own, 'nll_dec') * LN2:.2f}",
            f"{mean(own, 'ce_unconditional'):.2f}",
            f"{mean(own, 'ce'):.2f}",
            signed(mean(own, "normalised_gain")),
            *(share(mean(own, key)) for key in shown),
        ]
        for name, own in over_seeds(pooled).items()
    ]
    seeds = len({row["seed"] for row in pooled})
    heads = [
        "encoder → decoder, its training",
        "decoder alone",
        "+ instruction",
        "CE",
        "norm. gain",
        "accuracy",
        "free accuracy",
        "prefix EM",
        "BLEU",
        "ROUGE-L",
        "edit",
    ]
    return (
        f"**Restored**, {pooled[0]['n']:.0f} held-out documents at {pooled[0]['rate']:.0f}x, means over documents "
        f"and seeds ({seeds}); CE in nats a token, also of the decoder before training and without memory, alone and "
        f"after the instruction (what gains are measured against):\n\n{table(heads, body)}"
    )


def chosen(corr: Sequence[Row], group: str, measure: str, metric: str) -> dict[str, list[Row]]:
    """The rows of corr.csv with these, by setting."""
    key = (group, measure, metric)
    return over_seeds([row for row in corr if (row["group"], row["measure"], row["metric"]) == key])


def correlated(corr: Sequence[Row]) -> str:
    """rho of accuracy with entropy under either side, and under the outside reader."""
    body = []
    for name in over_seeds(corr):
        for measure, side in SIDES.items():
            if measure == "nll_ref" and name.endswith(FROZEN):
                continue
            pooled, within = (chosen(corr, group, measure, "accuracy")[name] for group in (POOLED, WITHIN))
            beside = "" if measure == "nll_ref" else between(within, "partial", "partial_lo", "partial_hi")
            body.append(
                [
                    f"{name}: {side}",
                    between(pooled, "rho", "rho_lo", "rho_hi"),
                    between(within, "rho", "rho_lo", "rho_hi"),
                    beside,
                    f"{max(row['p_holm'] for row in within):.1g}",
                    f"{max(row['p_equal'] for row in within):.1g}",
                ]
            )
    heads = [
        "setting: entropy under",
        "ρ, domains pooled",
        "ρ within domains",
        "… beside the other side's",
        "p (Holm)",
        "p of no ρ",
    ]
    return (
        "**Spearman's ρ of token accuracy with entropy** (NLL, bits a token): mean over seeds [lowest lower, "
        "highest upper end of the seeds' 95% intervals]; p: the largest; p of no ρ: equivalence test of ρ within "
        f"domains to |ρ| < .1, small = none worth the name:\n\n{table(heads, body)}"
    )


def sides_differ(rows: Sequence[Row]) -> str:
    """Williams' test, and the two betas of the regression."""
    told = []
    for name, own in over_seeds([row for row in rows if row["metric"] == "accuracy"]).items():
        tests = f"t {mean(own, 'williams_t'):+.1f} (largest p {max(row['williams_p'] for row in own):.1g})"
        told.append(f"{name}: {tests}, β {signed(mean(own, 'beta_enc'))} and {signed(mean(own, 'beta_dec'))}")
    return (
        "Williams' t that encoder's and decoder's Pearson correlations with accuracy differ (positive: the decoder's is "
        "the more negative), and standardised slopes of both together with domain effects: " + "; ".join(told) + "."
    )


def by_metric(corr: Sequence[Row]) -> str:
    """rho within domains for each quality: what the sign depends on."""
    metrics = {
        "neg_ce": "−CE",
        "gain": "gain",
        "normalised_gain": "norm. gain",
        "accuracy": "accuracy",
        "prefix_em": "prefix EM",
        "bleu": "BLEU",
        "rouge_l": "ROUGE-L",
    }
    body = [
        [
            f"{name}: {SIDES[measure]}",
            *(signed(mean(chosen(corr, WITHIN, measure, metric)[name], "rho")) for metric in metrics),
        ]
        for name in over_seeds(corr)
        if not name.endswith(FROZEN)
        for measure in ("nll_enc", "nll_dec")
    ]
    heads = ["setting: entropy under", *metrics.values()]
    return f"**ρ within domains by quality**, mean over seeds:\n\n{table(heads, body)}"


def rungs(rows: Sequence[Row]) -> str:
    """Accuracy along the ladder."""
    body, names = [], list(dict.fromkeys(row["transform"] for row in sorted(rows, key=lambda row: row["nll_enc"])))
    for setting, own in over_seeds(rows).items():
        if setting.endswith(FROZEN):
            continue
        by_rung = {name: [row for row in own if row["transform"] == name] for name in names}
        body.append(
            [
                setting,
                *(f"{share(mean(by_rung[name], 'value'))} ({mean(by_rung[name], 'nll_enc'):.1f})" for name in names),
            ]
        )
    heads = ["setting", *(name.replace("_", " ") for name in names)]
    return (
        f"**The ladder**, the same {max(row['n'] for row in rows):.0f} documents a rung: accuracy (entropy under "
        f"the encoder, bits a token), means over seeds:\n\n{table(heads, body)}"
    )


def gap(folder: Path) -> str:
    """Matched pairs of mixes, all others, a decoder of random tokens, and what a swap of either side costs; the whole grid is
    heatmap.csv."""
    steps = next(
        word
        for word in json.loads((folder / "data_gap.json").read_text())["config"]["autoencoder"]
        if word.startswith("train.steps=")
    )
    rows = [row for row in read_csv(folder / "gap.csv") if (row["part"], row["mitigation"]) == ("all", "none")]
    kinds: dict[str, list[float]] = {f"{name}/{name}": [] for name in sorted({row["encoder"] for row in rows})}
    kinds |= {"all other pairs": [], f"D1/{RANDOM} tokens": []}
    for row in rows:
        pair = f"{row['encoder']}/{row['decoder']}"
        kinds[
            f"D1/{RANDOM} tokens" if row["decoder"] == RANDOM else pair if pair in kinds else "all other pairs"
        ].append(row["accuracy"])
    told = [
        f"{kind} {share(sum(own) / len(own))} [{share(min(own))}, {share(max(own))}]" for kind, own in kinds.items()
    ]
    found = {
        row["what"]: interval(row)
        for row in read_csv(folder / "asymmetry.csv")
        if (row["part"], row["metric"], row["mix"]) == ("all", "accuracy", "D6")
    }
    return (
        f"**Data gap**, {steps.partition('=')[2]} steps, {rows[0]['n']:.0f} held-out documents, half prose, half formal: token accuracy of "
        f"encoder/decoder, means over {len({row['seed'] for row in rows})} seeds [lowest, highest]: {', '.join(told)}. Lost against D1/D1 "
        f"by D6 as decoder {found['decoder swapped']}, as encoder {found['encoder swapped']}, difference {found['difference']}."
    )


def gap_correlations(folder: Path) -> str:
    """Spearman's ρ of the loss against the decoder's matched pair with each gap."""
    found = read_csv(folder / "gap_regression.csv")
    told = [
        f"{metric} {', '.join(gaps)}"
        for metric in ("accuracy", "gain")
        for gaps in [
            [
                f"{row['gap'].replace('_', ' ')} {signed(row['rho'])} (p {row['p_holm']:.1g})"
                for row in found
                if (row["part"], row["metric"]) == ("all", metric)
            ]
        ]
    ]
    return (
        f"ρ of what is lost against the decoder's matched pair with the gap between the models, {found[0]['n']:.0f} cells, p after "
        f"Holm: {'; '.join(told)}."
    )


def mended(folder: Path) -> str:
    """What every mitigation adds to the unmatched pair."""
    found = [row for row in read_csv(folder / "mitigation.csv") if (row["part"], row["metric"]) == ("all", "accuracy")]
    told = [f"{row['mitigation'].replace('_', ' ')} {interval(row)}" for row in found]
    first = found[0]
    lost = {"value": first["matched_minus_unmended"], "low": first["matched_lo"], "high": first["matched_hi"]}
    return (
        f"**Mending** {first['pair'].replace('>', '/')}, accuracy added: {'; '.join(told)}; its decoder's matched pair has "
        f"{interval(lost)} more."
    )


def interval(row: Row) -> str:
    """+.12 [+.03, +.20] of a row with value, low and high."""
    return f"{signed(row['value'])} [{signed(row['low'])}, {signed(row['high'])}]"


def size_numbers(folder: Path) -> str:
    """What scripts/study_sizes.py measured, as markdown: all pairs, one learning rate for all, other tokenizers."""
    return "\n\n".join(
        [
            sizes(folder / "sizes"),
            swapped("One learning rate for both sizes", folder / "sizes_equal_rate"),
            tokenizers(folder / "tokenizers"),
        ]
    )


def held(row: Row, name: str, write: Callable[[float], str] = signed) -> str:
    """.49 [.48, .51] of a table with NAME_lo and NAME_hi."""
    return f"{write(row[name])} [{write(row[name + '_lo'])}, {write(row[name + '_hi'])}]"


def sizes(folder: Path) -> str:
    """Quality and time of every pair at every rate."""
    rows = read_csv(folder / "sizes.csv")
    body = [
        [
            f"{row['encoder']} → {row['decoder']}, {row['rate']:.0f}x",
            f"{row['weights'] / 1e6:.2f} M",
            held(row, "accuracy", share),
            share(row["bleu"]),
            held(row, "bits_per_byte", share),
            f"{row['first_token_ms']:.0f} ms",
            f"{share(row['first_token_of_whole'])}x",
            f"{share(row['decode_of_whole'])}x",
        ]
        for row in sorted(rows, key=lambda row: (row["rate"], row["weights"]))
    ]
    heads = [
        "encoder → decoder, rate",
        "weights",
        "accuracy",
        "BLEU",
        "bits a byte",
        "first token",
        "… of whole text's",
        "token of whole text's",
    ]
    return (
        f"{rows[0]['n']:.0f} held-out documents, {rows[0]['seeds']:.0f} seed; whole text: the same decoder reading "
        f"it.\n\n{table(heads, body)}\n\n{swapped('Paired', folder)}"
    )


def swapped(told: str, folder: Path) -> str:
    """What another encoder and another decoder give, paired over documents."""
    found = []
    for row in read_csv(folder / "swaps.csv"):
        if row["metric"] == "bits_per_byte" and row["what"] != "decoder minus encoder":
            found.append(f"the {row['what']} {row['other']} instead, {row['rate']:.0f}x: {interval(row)}")
    return f"{told}, bits a byte (less is better): {'; '.join(found)}."


def tokenizers(folder: Path) -> str:
    """Every pair of two tokenizers, in measures that do not depend on one."""
    body = [
        [
            f"{row['encoder']} → {row['decoder']}",
            f"{row['slots']:.1f}",
            held(row, "bits_per_byte", share),
            *(held(row, name, share) for name in ("bleu", "rouge_l", "edit_similarity")),
        ]
        for row in read_csv(folder / "sizes.csv")
    ]
    heads = ["encoder → decoder", "slots", "bits a byte", "BLEU", "ROUGE-L", "edit"]
    return (
        "Tokenizers of 512 (small) and 1,024 entries (other), the shape being equal, 4 tokens of the encoder's a "
        f"slot:\n\n{table(heads, body)}"
    )


if __name__ == "__main__":
    main()
