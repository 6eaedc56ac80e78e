"""Tables of studies as files: CSV with six significant digits, parquet with one row per document and setting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from breviary.evaluation.statistics import paired_bootstrap


def write_table(file: Path, table: DataFrame) -> None:
    """Writes .csv or .parquet, by the name's suffix; nan is an empty cell of CSV."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        table.to_parquet(file, index=False)
    else:
        table.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")


def read_table(file: Path) -> DataFrame:
    """The table of `write_table`; empty cells of CSV are nan."""
    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    return pd.read_csv(file, keep_default_na=False, na_values=[""])


def mean_by_document(rows: DataFrame, metric: str) -> Series:
    """The metric's mean over the rows of each document, in order of appearance: over seeds, for rows of one setting."""
    return rows.groupby("doc_id", sort=False)[metric].mean()


def mean_columns(values: Series | np.ndarray, metric: str, resamples: int) -> dict[str, float]:
    """{metric, metric_lo, metric_hi}: the mean with its 95% bootstrap interval."""
    result = paired_bootstrap(np.asarray(values, dtype=float), resamples, 0)
    return {metric: result["value"], f"{metric}_lo": result["low"], f"{metric}_hi": result["high"]}


def paired_difference(minuend: Series, subtrahend: Series, resamples: int) -> dict[str, float]:
    """{n, value, low, high}: mean of minuend - subtrahend over shared documents, with its 95% bootstrap interval.

    minuend, subtrahend  one value per document, indexed by doc_id
    """
    minuend, subtrahend = minuend.align(subtrahend, join="inner")
    differences = (minuend - subtrahend).sort_index().to_numpy()
    return {"n": len(differences), **paired_bootstrap(differences, resamples, 0)}
