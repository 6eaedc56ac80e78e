"""Files of an evaluation: predictions and their summary.

`predictions.jsonl` grows during an evaluation, so that a killed one can continue. `results.json` is written once,
atomically, when all predictions are complete.
"""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from breviary.evaluation.statistics import LEVEL, cluster_codes, derived_metrics, interval, uses_wilson
from breviary.runs.environment import environment
from breviary.runs.sweeps import with_listed_runs
from breviary.runtime.files import append_text, parse_json, write_json, write_text

SCHEMA = 3  # 3: phase "read" in place of "encode"; peak memory of one reader, the largest of the processes
FORMER_SCHEMAS = (1, 2)
FORMER_KEYS = {"asked_ratio": "requested_ratio"}  # of schema 1

PROVENANCE = ("commit", "dirty", "versions", "hardware")

PREDICTIONS = "predictions.jsonl"

RESULTS = "results.json"

PREDICTION_KEYS = frozenset(
    {
        "id",
        "question",
        "prediction",
        "references",
        "scores",
        "nll",
        "answer_tokens",
        "context_tokens",
        "memory_slots",
        "memory_bytes",
        "context_reused",
        "truncated",
        "times",
    }
)

RESULT_KEYS = frozenset(
    {
        "schema",
        "reader",
        "n",
        "data_hash",
        "metrics",
        "requested_ratio",
        "effective_ratio",
        "memory_slots",
        "memory_bytes",
        "times",
        "truncated",
        "peak_memory_bytes",
        "commit",
        "dirty",
        "hardware",
        "config",
        "run",
    }
)


TOKEN_SHARES = frozenset({"accuracy", "free_accuracy"})  # "ratios" in [0, 1] by definition


def _line(row: dict[str, Any]) -> str:
    missing = sorted(PREDICTION_KEYS - row.keys())
    assert not missing, f"a prediction lacks {missing}; it has {sorted(row)}"
    if not math.isfinite(row["nll"]):
        raise ValueError(
            f"nll of example {row['id']!r} is {row['nll']}: the reader's logits are not finite "
            "(a diverged run, or a dtype too narrow for this backbone: see backbone.dtype)"
        )
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


# ------------------------------------------------------------------ predictions.jsonl


class Predictions:
    """Predictions in a file, one JSON object per line; continues the file of a killed process.

    rows  every prediction of the file, in file order
    done  their ids
    An incomplete last line (the process was killed while writing) is removed from the file.
    Raises: ValueError where any other line is not JSON.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            self._load()
        self._done = {row["id"] for row in self.rows}

    @property
    def done(self) -> set[str]:
        """Ids of the examples that have a prediction."""
        return self._done

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends predictions of examples that are not `done`; they are handed to the operating system on return."""
        rows = list(rows)
        text = "".join(_line(row) for row in rows)
        for row in rows:
            assert row["id"] not in self._done, f"example {row['id']!r} is already in {self.path}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_text(self.path, text)
        self._done.update(row["id"] for row in rows)
        self.rows += rows

    def _load(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                self.rows.append(parse_json(line))
            except ValueError as error:
                raise ValueError(
                    f"{self.path}, line {number}: not JSON ({error}); delete the line to have its "
                    "example answered again"
                ) from error


def merge_ranks(folder: str | Path, order: list[str]) -> list[dict[str, Any]]:
    """Merges `predictions.rank*.jsonl` and `predictions.jsonl` of `folder` into the latter, in the order of the data.

    order  the id of every example of the data. Predictions may be missing, so this also prepares an evaluation that
           continues with another number of processes
    Returns the merged predictions and removes the files of the ranks. Only one process may call this, while no other
    process reads or writes. Raises: ValueError on a repeated id and on a prediction of other data.
    """
    folder = Path(folder)
    place = {example: i for i, example in enumerate(order)}
    if len(place) < len(order):
        repeated = next(example for i, example in enumerate(order) if place[example] != i)
        raise ValueError(f"example id {repeated!r} occurs more than once in the data; ids must be unique")
    rank_files = sorted(folder.glob("predictions.rank*.jsonl"))
    rows: dict[str, dict[str, Any]] = {}
    for path in [folder / PREDICTIONS, *rank_files]:
        for row in Predictions(path).rows:
            rows.setdefault(row["id"], row)  # repeated only after a kill between the last two steps below
    foreign = sorted(rows.keys() - place.keys())
    if foreign:
        raise ValueError(
            f"{folder} holds predictions of examples that are not in the data: {foreign[:3]}; "
            "evaluate other data in a folder of its own"
        )
    merged = sorted(rows.values(), key=lambda row: place[row["id"]])
    write_text(folder / PREDICTIONS, "".join(_line(row) for row in merged))
    for path in rank_files:
        path.unlink()
    return merged


def require_complete(folder: Path, rows: list[dict[str, Any]], order: list[str]) -> None:
    """Raises ValueError, naming what is missing, where an example of `order` has no prediction in `rows`."""
    answered = {row["id"] for row in rows}
    missing = [example for example in order if example not in answered]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{folder}: {len(missing)} of {len(order)} examples have no prediction: "
            f"{', '.join(map(repr, missing[:3]))}{more}; no results were written. A process ended early, or its "
            "predictions were lost; the same command answers what is missing"
        )


def summarise(
    rows: list[dict[str, Any]],
    requested_ratio: float | None,
    seed: int = 0,
    resamples: int = 2000,
    aggregates: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Summary of predictions, in the form that `write_results` expects.

    metrics          {name: {"value", "low", "high"}} with 95% intervals (breviary.evaluation.statistics): every score
                     of the rows (a mean), each of their "ratios" ({name: [numerator, denominator]}, a ratio of sums)
                     and "nll" (nats per token, a ratio of sums); `derived_metrics` of `aggregates` ({name: scores})
    intervals        {"level", "resampled": "contexts" or "questions", "clusters": number of those, "contexts": number
                     of distinct contexts, "wilson": names of the metrics with Wilson's interval}. Questions that share
                     a "context_id" are one cluster; rows without one have a context each
    by_position      likewise for "by_position" of the rows, over rows that are long enough; absent where there is none
    n                number of examples;   truncated  number of examples whose prompt was cut
    ended            number of answers that an end token ended within the limit; None of an earlier version's rows
    contexts_read    number of contexts encoded: questions on one context share its encoding
    requested_ratio  as passed in;         effective_ratio  context tokens / slots, None without slots
    memory_slots     mean per example;     memory_bytes  mean per example
    document_bytes   held for further questions on a context (Footprint), mean per example; None where a row lacks it
    times            {phase: median over the examples, milliseconds}; read_ms (encode_ms of schema 2) over examples
                     whose context was newly read; see runtime.timing for the phases
    Raises: ValueError where `rows` is empty.
    """
    if not rows:
        raise ValueError("no predictions to summarise: the data has no example, or its limit is 0")

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=np.float64)

    tokens, slots = column("answer_tokens"), column("memory_slots")
    assert tokens.min() > 0, f"an answer of {tokens.min():.0f} tokens; the end token counts, so at least 1"
    columns = {name: _Column(rows, [(row["scores"][name], 1) for row in rows]) for name in rows[0]["scores"]}
    columns |= _ratio_columns(rows, "ratios", TOKEN_SHARES)
    columns["nll"] = _Column(rows, [(row["nll"], row["answer_tokens"]) for row in rows])
    metrics = {name: column.interval(seed, resamples) for name, column in columns.items()}
    scores = {name: columns[name].numerator for parts in (aggregates or {}).values() for name in parts}
    metrics |= derived_metrics(scores, metrics, aggregates or {}, seed, resamples, cluster_codes(contexts_of(rows)))
    by_position = _ratio_columns(rows, "by_position")
    positions = {name: column.interval(seed, resamples) for name, column in by_position.items()}
    return {
        "n": len(rows),
        "metrics": metrics,
        "intervals": {
            **resampled_units(rows),
            "wilson": [name for name, column in columns.items() if column.uses_wilson()],
        },
        "requested_ratio": requested_ratio,
        "effective_ratio": float(column("context_tokens").sum() / slots.sum()) if slots.sum() else None,
        "memory_slots": float(slots.mean()),
        "memory_bytes": float(column("memory_bytes").mean()),
        "document_bytes": float(column("document_bytes").mean()) if all(map(_holds_document, rows)) else None,
        "times": {phase: _median_time(rows, phase) for phase in rows[0]["times"]},
        "truncated": sum(bool(row["truncated"]) for row in rows),
        "ended": sum(row["ended"] for row in rows) if all("ended" in row for row in rows) else None,
        "contexts_read": sum(not row["context_reused"] for row in rows),
        **({"by_position": positions} if positions else {}),
    }


def _holds_document(row: Mapping[str, Any]) -> bool:
    """Whether the prediction has document_bytes; those of earlier versions and without a context cache lack it."""
    return row.get("document_bytes") is not None


class _Column:
    """The values of one metric: numerator and denominator of each row, and the row's context.

    token_share  the numerator counts some of the denominator's tokens
    """

    def __init__(self, rows: list[dict[str, Any]], pairs: Sequence[Sequence[float]], token_share: bool = False) -> None:
        self.numerator, self.denominator = np.array(pairs, dtype=np.float64).T
        self.codes, self.token_share = cluster_codes(contexts_of(rows)), token_share

    def interval(self, seed: int, resamples: int) -> dict[str, float]:
        """{"value", "low", "high"}."""
        return interval(self.numerator, self.denominator, seed, resamples, self.codes, self.token_share)

    def uses_wilson(self) -> bool:
        """Whether the interval is Wilson's."""
        return uses_wilson(self.numerator, self.denominator, self.codes, self.token_share)


def _ratio_columns(
    rows: list[dict[str, Any]], key: str, token_shares: frozenset[str] | None = None
) -> dict[str, _Column]:
    """{name: column} of the pairs in row[key], each over the rows whose denominator is not zero.

    token_shares  names of pairs that are shares of tokens; None = all
    """
    own: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for name, pair in row.get(key, {}).items():
            own.setdefault(name, []).extend([row] if pair[1] else [])
    return {
        name: _Column(used, [row[key][name] for row in used], token_shares is None or name in token_shares)
        for name, used in own.items()
        if used
    }


def contexts_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The context of each prediction; rows of earlier versions lack "context_id" and have a context each."""
    return [row.get("context_id", row["id"]) for row in rows]


def resampled_units(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the intervals of predictions resample: {"level", "resampled", "clusters", "contexts"}, see `summarise`."""
    contexts = contexts_of(rows)
    codes, distinct = cluster_codes(contexts), len(set(contexts))
    return {
        "level": LEVEL,
        "resampled": "questions" if codes is None else "contexts",
        "clusters": len(contexts) if codes is None else distinct,
        "contexts": distinct,
    }


def _median_time(rows: list[dict[str, Any]], phase: str) -> float:
    counted = [row for row in rows if phase not in ("read_ms", "encode_ms") or not row["context_reused"]]
    return float(np.median([row["times"][phase] for row in counted or rows]))


# ------------------------------------------------------------------ results.json


def write_results(folder: str | Path, reader: str, metrics: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Writes `results.json` of one reader into `folder`, atomically; returns its content.

    metrics  from `summarise`
    extra    data_hash, peak_memory_bytes, run (the run's folder), config (resolved configuration of a trained reader;
             None for an untouched baseline, which has no run), and PROVENANCE of the start where it is not that of
             this process; further keys are stored as well
    """
    started = {key: extra[key] for key in PROVENANCE if key in extra} or environment()
    results = {"schema": SCHEMA, "reader": reader, **metrics, **{key: started[key] for key in PROVENANCE}, **extra}
    missing = sorted(RESULT_KEYS - results.keys())
    assert not missing, f"results lack {missing}; they have {sorted(results)}"
    write_json(Path(folder) / RESULTS, results)
    return results


def read_results(folder: str | Path) -> dict[str, Any]:
    """Results of one reader, from its folder or from the file itself; earlier schemas are upgraded.

    Raises: ValueError where there is no such file, it is not JSON, or its schema is unknown.
    """
    path = Path(folder)
    path = path / RESULTS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"no results at {path}: the evaluation is not finished, or this is not a reader's folder")
    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(results, dict) and results.get("schema") in FORMER_SCHEMAS:
        results = {FORMER_KEYS.get(key, key): value for key, value in results.items()} | {"schema": SCHEMA}
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        found = results.get("schema") if isinstance(results, dict) else type(results).__name__
        raise ValueError(f"{path} has schema {found!r}; this version reads {SCHEMA}")
    missing = sorted(RESULT_KEYS - results.keys())
    if missing:
        raise ValueError(f"{path} lacks {missing}")
    return results


def find_results(runs: Iterable[str]) -> list[Path]:
    """Every results.json below the folders `runs` (run folders, their parents, sweeps, or globs of these), sorted.

    Raises: ValueError where a name matches nothing or a folder holds no results.
    """
    found: dict[Path, Path] = {}
    for name in runs:
        matches = [Path(name)] if Path(name).exists() else [Path(match) for match in sorted(glob.glob(str(name)))]
        folders = [folder for match in matches for folder in with_listed_runs(match)]
        if not folders:
            raise ValueError(
                f"RUN {name}: no such folder; give run folders that train.py or eval.py printed, "
                "a folder of runs such as outputs/comi_nq, or a glob in quotes"
            )
        files = [file for folder in folders for file in ([folder] if folder.is_file() else folder.rglob(RESULTS))]
        if not files:
            raise ValueError(f"RUN {name}: no {RESULTS} below it; evaluate first, python eval.py run={folders[0]}")
        found |= {file.resolve(): file for file in files}
    return sorted(found.values())


def source_of(dataset: Mapping[str, Any], split: str, parts: int = 0) -> str:
    """Source of a split's examples: its files (`parts` last parts of each path, 0 = all), or the generating class."""
    files = dataset.get(split)
    if not files:
        return dataset["_target_"]
    return ", ".join(
        "/".join(Path(file).parts[-parts:]) if parts else file
        for file in ([files] if isinstance(files, str) else files)
    )
