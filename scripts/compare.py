"""Compares readers that answered the same questions: the first minus each other one, question by question.

    python scripts/compare.py outputs/comi_facts outputs/mean_pool_facts
    python scripts/compare.py latest outputs/comi_facts outputs/ram_facts --pairs --output differences.json
    python scripts/compare.py latest outputs/full_context_nq_small --shares
    python scripts/compare.py latest outputs/comi_facts/RUN/eval/HASH/full_context

A is a RUN: its reader's evaluation on the questions that the others answer. Or it is a reader's folder that eval.py
wrote (outputs/NAME/RUN/eval/HASH/READER), or a folder above it that holds no other evaluation. The output is the
difference of every score and of the NLL per token, with 95% intervals over the questions, or over their contexts where
questions share them. Where an interval excludes 0, the two readers differ.
Evaluations of several datasets may be given; only those of the same questions are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

from rich.console import Console

from breviary.config.cli.run_names import FORMS
from breviary.config.errors import cli_errors
from breviary.evaluation.comparison import comparison_rows, load_evaluations
from breviary.evaluation.facts import FACTS, mixed_facts, shared_facts, with_training
from breviary.evaluation.table import (
    METRICS,
    MISSING,
    RECONSTRUCTION_METRICS,
    TABLE_WIDTH,
    format_score,
    metric_title,
    print_block,
)
from breviary.runtime.files import write_json
from breviary.runtime.spelling import command, next_line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", metavar="A", help=f"at least two: a RUN or an evaluation; {FORMS}")
    parser.add_argument("--pairs", action="store_true", help="compare every reader with every later one")
    parser.add_argument("--shares", action="store_true", help="also print the first scores as a share of the others")
    parser.add_argument("--output", metavar="FILE", help="JSON file for the differences")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    args = build_parser().parse_args(arguments)
    with cli_errors():
        if len(args.evaluations) < 2:
            raise ValueError("a comparison needs at least two evaluations, e.g. outputs/comi_facts outputs/ram_facts")
        groups = load_evaluations(args.evaluations)
    rows = [row for group in groups for row in comparison_rows(group, args.pairs)]
    print_rows(rows)
    if args.shares:
        print_shares(rows)
    if args.output:
        write_json(args.output, {"schema": 1, "rows": rows})
    print(next_line(command("scripts/report.py", *args.evaluations)))


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Prints the differences, one block per dataset and first reader."""
    known = (*(name for row in rows for name in row["shown"]), *METRICS, *RECONSTRUCTION_METRICS)
    names = [name for name in dict.fromkeys(known) if any(name in row["metrics"] for row in rows)]
    for (dataset, reader), group in groupby(rows, key=lambda row: (row["dataset"], row["reader"])):
        block = list(group)
        n, contexts = block[0]["n"], block[0]["intervals"]["contexts"]
        shared = f" on {contexts} context{'s' * (contexts > 1)}" if contexts < n else ""
        name = with_training(reader, block[0]["facts"][0]["training"])
        print(f"\n{name}, {n} questions{shared} of {dataset}, minus\n")
        print_block(
            Console(width=TABLE_WIDTH),
            ["", *map(metric_title, names)],
            [
                [
                    with_training(row["minus"], row["facts"][1]["training"]),
                    *(format_difference(row["metrics"].get(name)) for name in names),
                ]
                for row in block
            ],
        )
        print_facts(block)


def print_shares(rows: list[dict[str, Any]]) -> None:
    """Prints each first reader's F1, or the scores that the data set names, as a share of the other's."""
    for row in rows:
        names = [name for name in row["shown"] or ("f1",) if name in row["shares"]]
        for name in names:
            share = {
                f"m{end}": row["shares"][name][key] for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
            print(f"{metric_title(name)} of {row['reader']} / {row['minus']}: {format_score(share, 'm')}")


def print_facts(block: list[dict[str, Any]]) -> None:
    """Prints backbone and training data: once where all readers share them, else of each reader."""
    readers = [(block[0]["reader"], block[0]["facts"][0]), *((row["minus"], row["facts"][1]) for row in block)]
    compared = [{key: facts[key] for key in ("backbone", "trained_on")} for _, facts in readers]
    if shared := shared_facts(compared):
        print(shared)
    for key in mixed_facts(compared):
        print(f"{FACTS[key]}: " + ", ".join(f"{facts[key] or MISSING} ({name})" for name, facts in readers))


def format_difference(metric: dict[str, float] | None) -> str:
    """ "+.07 [.01, .13]"; "-" for None."""
    if metric is None:
        return MISSING
    sign = "+" if metric["value"] > 0 else ""
    return sign + format_score({"m": metric["value"], "m_low": metric["low"], "m_high": metric["high"]}, "m")


if __name__ == "__main__":
    main()
