"""Paired differences of every reader to one of them on the same questions, with Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from breviary.evaluation.results import contexts_of, resampled_units
from breviary.evaluation.statistics import cluster_codes, difference, holm_correction, paired_p
from breviary.evaluation.table import format_number
from breviary.report.page.measured_rows import Group, Measured, Pair

REFERENCE = "full_context"  # compared with where --against names no other

SEED, RESAMPLES, SWAPS = 0, 2000, 4999

LEVEL = 0.05  # of Holm's p below which a row is marked


def reference_of(group: Group, against: str | None) -> Measured:
    """The reader that the others are compared with: `against` where the group has it, else full context, else the best.

    against  a reader's name, or its label in the table
    """
    for name in filter(None, [against, REFERENCE]):
        if named := _named(group, name):
            return named[0]
    return group.rows[0]


def check_reference(groups: Sequence[Group], against: str | None) -> None:
    """Raises ValueError where no group has a reader of the name `against`."""
    if against and not any(_named(group, against) for group in groups):
        known = dict.fromkeys(f"{one.row['reader']!r}" for group in groups for one in group.rows)
        raise ValueError(f"--against {against}: no reader has this name; there are: {', '.join(known)}")


def _named(group: Group, name: str) -> list[Measured]:
    """The rows of this name: as stored or in the table, then those whose name begins with it as a word."""
    exact = [one for one in group.rows if name in (one.setting.reader, one.row["reader"], one.label)]
    return exact or [one for one in group.rows if one.row["reader"].split(" ")[0] == name]


def compare(group: Group, against: str | None = None) -> dict[str, Any]:
    """The comparisons of a group.

    {"minus", "n", "resampled", "rows": [{"reader", "number", "value", "low", "high", "p", "p_holm", "verdict"}],
    "left_out": readers without predictions of the same questions}; rows best first.
    p as of `paired_p`; p_holm corrected over the rows, which are one family of tests.
    """
    reference = reference_of(group, against)
    theirs = reference.pairs(group.metric)
    others = [one for one in group.rows if one is not reference]
    compared = [one for one in others if theirs and one.ids == reference.ids]
    rows = [_comparison(one, group.metric, theirs, reference.predictions) for one in compared]
    for row, p in zip(rows, holm_correction([row["p"] for row in rows])):
        row["p_holm"] = p
        row["verdict"] = "no difference shown" if not p < LEVEL else "higher" if row["value"] > 0 else "lower"
    units = resampled_units(reference.predictions[0].values()) if reference.predictions else None
    return {
        "minus": reference.label,
        "n": len(theirs),
        "resampled": units and units["resampled"],
        "rows": rows,
        "left_out": [one.label for one in others if one not in compared],
    }


def _comparison(
    one: Measured, metric: str, theirs: Mapping[str, Pair], reference: Sequence[dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """One row of `compare`, without Holm's correction."""
    pairs = one.pairs(metric)
    keys = [key for key in pairs if key in theirs]
    contexts = contexts_of([{**reference[0][key], **one.predictions[0][key]} for key in keys])
    codes = cluster_codes(contexts)
    ours, other = (np.array([side[key] for key in keys], dtype=np.float64).T for side in (pairs, theirs))
    sides = (ours[0], ours[1]), (other[0], other[1])
    found = difference(*sides, SEED, RESAMPLES, codes)
    sign = "+" if found["value"] > 0 else ""
    return {
        "reader": one.label,
        "number": one.number,
        **found,
        "p": paired_p(*sides, SEED, SWAPS, codes),
        "text": sign + format_number(found["value"]),
        "spread": f"[{format_number(found['low'])}, {format_number(found['high'])}]",
    }


def difference_rows(group: Group, comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of differences.csv."""
    return [
        {
            "data": group.name,
            "metric": group.metric,
            "reader": row["reader"],
            "minus": comparison["minus"],
            "n": comparison["n"],
            **{key: row[key] for key in ("value", "low", "high", "p", "p_holm")},
        }
        for row in comparison["rows"]
    ]
