"""Writes every number of docs/autoencoder_study.md out of the committed tables, between its two marks.

    python scripts/study_numbers.py [--check]

--check only says whether the document is up to date (exit code 1 where not). A test does the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from breviary.results import write_text
from scripts.study_correlations import POOLED, SETTING, WITHIN
from scripts.study_parts import read_csv

DOCUMENT, TABLES = ROOT / "docs" / "autoencoder_study.md", ROOT / "results" / "autoencoder_study"
BEGIN, END = "<!-- numbers: written by scripts/study_numbers.py -->", "<!-- end of numbers -->"
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where numbers differ")
    given = parser.parse_args(arguments)
    text = DOCUMENT.read_text(encoding="utf-8")
    wanted = with_numbers(text, numbers(TABLES))
    if given.check and text != wanted:
        print(f"error: {DOCUMENT.name} is not what the tables say; run python scripts/study_numbers.py", file=sys.stderr)
        sys.exit(1)
    if not given.check:
        write_text(DOCUMENT, wanted)


def with_numbers(text: str, block: str) -> str:
    """The document with `block` between the marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def numbers(folder: Path) -> str:
    """All tables, as markdown."""
    corr = read_csv(folder / "corr.csv")
    return "\n\n".join([restored(read_csv(folder / "means.csv")), correlated(corr), by_metric(corr),
                        rungs(read_csv(folder / "ladder.csv")), gap(folder / "gap_smoke")])


def signed(value: float | None) -> str:
    """-.12, +.30; a dash for what could not be told."""
    return "–" if value is None else f"{value:+.2f}".replace("0.", ".")


def share(value: float) -> str:
    """.30"""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def between(row: Row, name: str, low: str, high: str) -> str:
    """-.12 [-.20, -.03]"""
    return f"{signed(row[name])} [{signed(row[low])}, {signed(row[high])}]"


def setting(row: Row) -> str:
    """formal → prose, full"""
    return f"{row['pair'].replace('>', ' → ')}, {row['dec_mode']}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def restored(rows: Sequence[Row]) -> str:
    """What each autoencoder restores of the held-out documents."""
    pooled = [row for row in rows if row["group"] == POOLED]
    body = [[setting(r), f"{r['ce_unconditional']:.2f}", f"{r['ce']:.2f}", f"{r['normalised_gain']:+.2f}".replace("0.", "."),
             share(r["accuracy"]), share(r["prefix_em"]), share(r["bleu"]), share(r["rouge_l"]), share(r["edit_similarity"])]
            for r in pooled]
    head = f"Restored ({pooled[0]['n']:.0f} held-out documents, means; CE in nats a token; {pooled[0]['rate']:.0f}x):"
    return f"{head}\n\n" + table(["encoder → decoder, decoder's training", "CE before, no memory", "CE", "normalised gain", "accuracy",
                                  "prefix EM", "BLEU", "ROUGE-L", "edit"], body)


def one(corr: Sequence[Row], key: Row, group: str, measure: str, metric: str) -> Row:
    """The only row of corr.csv with these."""
    [row] = [c for c in corr if all(c[k] == key[k] for k in SETTING)
             and (c["group"], c["measure"], c["metric"]) == (group, measure, metric)]
    return row


def keys_of(corr: Sequence[Row]) -> list[Row]:
    """Settings, each as the four keys."""
    return [dict(zip(SETTING, key)) for key in dict.fromkeys(tuple(c[k] for k in SETTING) for c in corr)]


def correlated(corr: Sequence[Row]) -> str:
    """rho of accuracy with entropy under either side."""
    body = []
    for key in keys_of(corr):
        for measure, side in (("nll_enc", "encoder"), ("nll_dec", "decoder")):
            pooled, within = (one(corr, key, group, measure, "accuracy") for group in (POOLED, WITHIN))
            body.append([f"{setting(key)}: {side}", between(pooled, "rho", "rho_lo", "rho_hi"),
                         f"[{signed(pooled['rho_lo_source'])}, {signed(pooled['rho_hi_source'])}]",
                         between(within, "rho", "rho_lo", "rho_hi"), between(within, "partial", "partial_lo", "partial_hi"),
                         f"{within['p_holm']:.1g}", f"{within['p_equal']:.1g}"])
    return ("Spearman's ρ of accuracy with the entropy (NLL, bits a token) under encoder and decoder. Within: domain effects taken "
            "out; beside: moreover the other side's entropy; p equal: of |ρ| < .1 (small = no correlation worth the name):\n\n"
            + table(["setting: side", "ρ pooled", "by sources", "ρ within", "ρ beside the other", "p (Holm)", "p equal"], body))


def by_metric(corr: Sequence[Row]) -> str:
    """The same within domains for other qualities: what the sign depends on."""
    metrics = {"neg_ce": "−CE", "gain": "gain", "normalised_gain": "norm. gain", "accuracy": "accuracy", "prefix_em": "prefix EM",
               "bleu": "BLEU", "rouge_l": "ROUGE-L"}
    body = [[f"{setting(key)}: {side}", *(signed(one(corr, key, WITHIN, measure, metric)["rho"]) for metric in metrics)]
            for key in keys_of(corr) for measure, side in (("nll_enc", "encoder"), ("nll_dec", "decoder"))]
    return "ρ within domains for each quality:\n\n" + table(["setting: side", *metrics.values()], body)


def rungs(rows: Sequence[Row]) -> str:
    """Accuracy along the ladder."""
    keys = [dict(zip(SETTING, key)) for key in dict.fromkeys(tuple(row[k] for k in SETTING) for row in rows)]
    names = [row["transform"] for row in rows if all(row[k] == keys[0][k] for k in SETTING)]
    body = []
    for key in keys:
        own = {row["transform"]: row for row in rows if all(row[k] == key[k] for k in SETTING)}
        body.append([setting(key), *(f"{share(own[name]['value'])} ({own[name]['nll_enc']:.1f})" for name in names)])
    n = max(row["n"] for row in rows)
    return (f"The ladder, {n:.0f} documents a rung: accuracy (entropy under the encoder, bits a token):\n\n"
            + table(["setting", *(name.replace("_", " ") for name in names)], body))


def gap(folder: Path) -> str:
    """The smoke form's cells that answer the question if the models were large: means over seeds."""
    rows = [row for row in read_csv(folder / "gap.csv") if row["part"] == "all"]
    first, last = "D1", max(row["encoder"] for row in rows)

    def mean(encoder: str, decoder: str, mitigation: str = "none") -> float:
        own = [row["gain"] for row in rows if (row["encoder"], row["decoder"], row["mitigation"]) == (encoder, decoder, mitigation)]
        return sum(own) / len(own)

    cells = {f"{first}/{first}": (first, first), f"{last}/{last}": (last, last), f"{first}/{last}": (first, last),
             f"{last}/{first}": (last, first), f"{first}/random": (first, "random")}
    mended = sorted({row["mitigation"] for row in rows} - {"none"})
    body = [[f"{mean(*cell):.3f}" for cell in cells.values()] + [f"{mean(first, last, name):.3f}" for name in mended]]
    seeds = len({row["seed"] for row in rows})
    regression = [row for row in read_csv(folder / "gap_regression.csv") if (row["part"], row["metric"]) == ("all", "gain")]
    slopes = "; ".join(f"{row['gap'].replace('_', ' ')} {signed(row['rho'])} (p {row['p_holm']:.1g})" for row in regression)
    return (f"Data gap, smoke form: information gain, nats a token, mean of {seeds} seeds, encoder/decoder "
            f"(mitigations of {first}/{last}):\n\n" + table([*cells, *(name.replace("_", " ") for name in mended)], body)
            + f"\n\nρ of the gain lost against the matched pair with each gap ({regression[0]['n']:.0f} cells, Holm): {slopes}.")


if __name__ == "__main__":
    main()
