"""What a row states beside its scores: how its weights were trained, on which backbone and data it was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from breviary.contract import Batch
from breviary.evaluation.results import source_of
from breviary.evaluation.selection import SELECTION
from breviary.runs.checkpoints import PROCESSES
from breviary.runs.dataset_names import dataset_label
from breviary.runs.folders import load_config
from breviary.runs.importing import RECORD
from breviary.runtime.files import read_object

SELECTOR = "selector.json"  # of a run of scripts/fit_selector.py
TRAINING = "training.json"  # of an exported folder, which has no trainer_state.json

UNTRAINED: dict[str, Any] = {"trained": False, "steps": None, "examples": None, "data": None, "init_from": None}

# Keys of "conditions" in results.json, as configured, for baselines too.
CONDITIONS = ("backbone", "compressor", "dataset", "split", *SELECTION, "prompt", "generation", "limits")

UNKNOWN = "unknown"


# ------------------------------------------------------------------ training


def training_record(run: str | Path | None, checkpoint: Path | None) -> dict[str, Any]:
    """{"trained", "steps", "examples", "data", "init_from"}, and "imported": true for weights of an authors' file,
    "fitted": true where scripts/fit_selector.py fitted the choice alone, on `examples`.

    trained    False without a checkpoint: pretrained backbone, weights of the method as initialised
    steps      optimizer steps up to the checkpoint; examples  steps times the global batch
    data       the training data, see `dataset_label`
    init_from  the run that these steps began from, EXPERIMENT/RUN
    None marks what the checkpoint does not state.
    """
    if checkpoint is None or run is None:
        return dict(UNTRAINED)
    if (checkpoint / TRAINING).is_file():
        return read_object(checkpoint / TRAINING)
    cfg = load_config(run)
    record: dict[str, Any] = {"trained": True, "steps": None, "examples": None, "data": None, "init_from": None}
    if (Path(run) / RECORD).is_file():
        return record | {"imported": True}
    start = cfg.get("init_from")
    record |= {"data": dataset_label(cfg.dataset, "train"), "init_from": start and "/".join(Path(start).parts[-2:])}
    if (Path(run) / SELECTOR).is_file():
        return record | {
            "fitted": True,
            "examples": read_object(Path(run) / SELECTOR, "examples", kind=int)["examples"],
        }
    state, processes = checkpoint / "trainer_state.json", checkpoint / PROCESSES
    if state.is_file():
        record["steps"] = read_object(state, "global_step", kind=int)["global_step"]
        if processes.is_file():
            batch = read_object(processes, "global_batch", kind=int)["global_batch"]
            record["examples"] = record["steps"] * batch
    return record


def stored_training(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of `training_record` in results; None where a version stored none for a trained reader."""
    return results.get("training", None if results.get("config") else UNTRAINED)


def training_text(records: Sequence[Mapping[str, Any] | None]) -> str:
    """One of "untrained", "400 steps, 3,200 examples", "200 to 400 steps, ...", "imported weights", "steps unknown".

    records  of the readers that one row, or one line of a figure, shows; None as of `stored_training`
    """
    known = [record for record in records if record is not None]
    if known and not any(record["trained"] for record in known):
        return "untrained"
    if any(record.get("imported") for record in known):
        return "imported weights"
    if known and len(known) == len(records) and all(record.get("fitted") for record in known):
        return f"choice fitted, {_span([record['examples'] for record in known], 'example')}{_after(known)}"
    if len(known) < len(records) or any(record["steps"] is None for record in known):
        return f"steps {UNKNOWN}"
    parts = [_span([record["steps"] for record in known], "step")]
    if all(record["examples"] is not None for record in known):
        parts.append(_span([record["examples"] for record in known], "example"))
    return ", ".join(parts) + _after(known)


def _after(records: Sequence[Mapping[str, Any]]) -> str:
    """ " after NAME" of the experiments from whose weights the records began."""
    starts = sorted({Path(record["init_from"]).parent.name for record in records if record["init_from"]})
    return f" after {' or '.join(starts)}" if starts else ""


def _span(numbers: Sequence[int], unit: str) -> str:
    """ "400 steps", "1 step", "200 to 400 steps"."""
    low, high = min(numbers), max(numbers)
    return (f"{low:,}" if low == high else f"{low:,} to {high:,}") + f" {unit}" + ("" if high == 1 else "s")


def with_training(name: str, training: str | None) -> str:
    """A reader's name with its training, e.g. "comi (400 steps, 3,200 examples)"; names that state it are unchanged."""
    return name if not training or f"({training})" in name else f"{name} ({training})"


# ------------------------------------------------------------------ prompt

SHOWN = 300  # characters of a prompt's beginning, and of its end


def prompt_record(cfg: Mapping[str, Any], batch: Batch, tokenizer: Any, items: Any) -> dict[str, Any]:
    """What the model was given, for results.json.

    batch  one example, as the reader's objective puts it; items  all examples as tokens
    Keys:
    example, first, last, characters  id of the example; its whole prompt's first and last SHOWN characters; their
                   number. A reader that compresses puts its memory in the place of the context
    sha256         of that prompt: equal for equal prompts
    tokens         {"prefix", "context", "question", "all"} of that prompt; question: template and answer prefix
    context_tokens, other_tokens  {"mean", "max"} over the examples, after truncation
    chat           whether the tokenizer's chat template stands around it
    truncation, max_context_tokens, truncated  which part of a long context is kept, from where on, and of how many
    stop, max_new_tokens, decoding  where answers end; greedy or sampled
    """
    parts = {"prefix": batch.prefix, "context": batch.context, "question": batch.prompt}
    ids = {name: part.ids[0][part.mask[0]].tolist() for name, part in parts.items()}
    text = tokenizer.decode([token for part in ids.values() for token in part])
    generation = cfg["generation"]
    return {
        "example": batch.examples[0].id,
        "first": text[:SHOWN],
        "last": text[-SHOWN:],
        "characters": len(text),
        "sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "tokens": {name: len(part) for name, part in ids.items()} | {"all": sum(map(len, ids.values()))},
        "context_tokens": _mean_and_max(items.lengths),
        "other_tokens": _mean_and_max(items.other_lengths),
        "chat": bool(cfg["prompt"]["chat"]),
        "truncation": cfg["limits"]["truncation"],
        "max_context_tokens": cfg["limits"]["max_context_tokens"],
        "truncated": items.num_truncated,
        "stop": list(generation["stop"]),
        "max_new_tokens": generation["max_new_tokens"],
        "decoding": f"sampled, temperature {generation['temperature']:g}" if generation["temperature"] else "greedy",
    }


def _mean_and_max(lengths: Sequence[int]) -> dict[str, float]:
    return {"mean": sum(lengths) / len(lengths), "max": max(lengths)}


# ------------------------------------------------------------------ conditions


def conditions_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """{key of CONDITIONS: value}, without those that the results do not state.

    Results of earlier versions state them in the configuration of a trained reader, and not for baselines.
    """
    stored = results.get("conditions") or results.get("config") or {}
    return {key: stored[key] for key in CONDITIONS if key in stored}


def dataset_name(results: Mapping[str, Any]) -> str:
    """The data set as in `dataset_label`, e.g. "nq_gold4", or "the validation split of nq_gold4".

    Where the results do not state it: the first digits of the data hash.
    """
    conditions = conditions_of(results)
    if not conditions.get("dataset"):
        return results["data_hash"][:12]
    split = conditions.get("split", "test")
    label = dataset_label(conditions["dataset"], split)
    return label if split == "test" else f"the {split} split of {label}"


def source_name(dataset: Mapping[str, Any], split: str) -> str:
    """The last two parts of each file of a split, or the name of the class that generates it."""
    return source_of(dataset, split, parts=2) if dataset.get(split) else dataset["_target_"].rpartition(".")[2]


def row_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """{"training", "backbone", "data", "trained_on"} of one row, as texts; None where untrained, or not stored."""
    record, conditions = stored_training(results), conditions_of(results)
    dataset = conditions.get("dataset")
    trained_on = (record or {}).get("data")
    if record is None and results["config"].get("dataset"):
        trained_on = dataset_label(results["config"]["dataset"], "train")
    return {
        "training": training_text([record]),
        "backbone": results.get("backbone"),
        "data": dataset_label(dataset, conditions.get("split", "test")) if dataset else None,
        "trained_on": trained_on,
    }


FACTS = {"backbone": "backbone", "data": "data", "n": "n", "trained_on": "trained on"}  # key of a row -> title


def mixed_facts(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of FACTS in which rows differ: each row must name them. Untrained rows have no training data."""
    rows = list(rows)
    return [key for key in FACTS if len({row.get(key) for row in rows if row.get(key) is not None}) > 1]


def shared_facts(rows: Iterable[Mapping[str, Any]]) -> str:
    """A caption with the facts that all rows share, e.g. "backbone: SmolLM2-135M; data: nq"; n is a column."""
    rows = list(rows)
    mixed = mixed_facts(rows)
    shared = {key: row[key] for row in rows for key in FACTS if row.get(key) is not None and key not in ("n", *mixed)}
    return "; ".join(f"{FACTS[key]}: {shared[key]}" for key in FACTS if key in shared)
