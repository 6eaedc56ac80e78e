"""Readers that answered the same questions, the first minus each other one, question by question.

    python scripts/compare.py EVALUATION EVALUATION [EVALUATION ...] [--pairs] [--output FILE.json]

EVALUATION is a reader's folder that eval.py wrote (outputs/NAME/RUN/eval/DATA/READER), or one above it that holds no
other. Differences of every score and of the answer's likelihood, with 95% bootstrap intervals over the questions: an
interval without 0 tells the two apart. Evaluations on several data sets may be given: those on one are compared with
one another. With --pairs every reader is compared with every later one, not only the first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

from rich.console import Console

from breviary.evaluation.comparison import EvaluatedReader, data_name, differences, load_evaluations
from breviary.evaluation.table import METRICS, NOTHING, RESTORED, TITLES, WIDE, print_block, score_cell
from breviary.runtime.files import write_json


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; a wrong one ends with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", metavar="EVALUATION", help="folders; at least two")
    parser.add_argument("--pairs", action="store_true", help="every reader minus every later one")
    parser.add_argument("--output", metavar="FILE", help="JSON file")
    given = parser.parse_args(arguments)
    try:
        if len(given.evaluations) < 2:
            raise ValueError("a comparison takes at least two evaluations")
        groups = load_evaluations(given.evaluations)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    rows = [row for group in groups for row in compared(group, given.pairs)]
    show(rows)
    if given.output:
        write_json(given.output, {"schema": 1, "rows": rows})


def compared(group: list[EvaluatedReader], every_pair: bool) -> list[dict[str, Any]]:
    """A row for each pair: {"dataset", "n", "reader", "minus", "metrics": {metric: {"value", "low", "high"}}}."""
    pairs = combinations(group, 2) if every_pair else ((group[0], other) for other in group[1:])
    data = data_name(group[0].results)
    return [
        {
            "dataset": data,
            "n": len(one.rows),
            "reader": one.name,
            "minus": other.name,
            "metrics": differences(one, other),
        }
        for one, other in pairs
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the differences, a block for each reader that others are taken from."""
    names = [name for name in (*METRICS, *RESTORED) if any(name in row["metrics"] for row in rows)]
    for (data, reader, n), block in groupby(rows, key=lambda row: (row["dataset"], row["reader"], row["n"])):
        print(f"\n{reader}, {n} questions of {data}, minus\n")
        print_block(
            Console(width=WIDE),
            ["", *(TITLES[name] for name in names)],
            [[row["minus"], *(cell(row["metrics"].get(name)) for name in names)] for row in block],
        )


def cell(metric: dict[str, float] | None) -> str:
    """ "+.07 [.01, .13]"."""
    if metric is None:
        return NOTHING
    sign = "+" if metric["value"] > 0 else ""
    return sign + score_cell({"m": metric["value"], "m_low": metric["low"], "m_high": metric["high"]}, "m")


if __name__ == "__main__":
    main()
