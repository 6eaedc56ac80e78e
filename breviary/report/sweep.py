"""Run folders as one table and one figure: score against achieved ratio.

Results that differ only in seeds become one row: mean and standard deviation over the seeds. All other differences
make separate rows, and the labels name them.
"""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from breviary.evaluation.facts import mixed_facts, row_facts, stored_training, training_text, with_training
from breviary.evaluation.results import read_results
from breviary.evaluation.table import COST_KEYS, FORMER_PHASE, PHASES, SCORES, table_row
from breviary.runs.dataset_names import dataset_label

# Configuration keys that differ between runs without changing what is measured.
IGNORED_KEYS = ("run", "variants", "compare", "baselines", "paths", "hydra", "resume", "sweep", "name", "reader")

# Sections of an untrained reader's conditions that make another row where they differ.
UNTRAINED_KEYS = ("compressor", "prompt", "generation")

RUN_ID = re.compile(r"\d{8}T\d{6}_[0-9a-f]{6}")

LEVELS = ("full_context", "no_context")  # drawn as horizontal lines, as is every reader without slots

AVERAGED = (*COST_KEYS, *PHASES, FORMER_PHASE)

MAX_NAMED_KEYS = 3

HEADLINE = "f1"  # where a data set names no metric


@dataclass
class Setting:
    """Results that differ only in seeds, and their label in the report."""

    reader: str
    keys: dict[str, Any]  # the flat configuration without seeds and IGNORED_KEYS; and "n"
    results: list[dict[str, Any]] = field(default_factory=list)
    label: str = ""

    @property
    def is_level(self) -> bool:
        """Whether the figure shows a horizontal line: the reader does not compress, or its ratio has no meaning."""
        return self.reader.split(" ")[0] in LEVELS or self.results[0]["effective_ratio"] is None

    @property
    def is_trained(self) -> bool:
        """Whether the weights come from a training run."""
        record = stored_training(self.results[0])
        return record is None or record["trained"]

    @property
    def budget(self) -> tuple[Any, ...]:
        """The requested memory size: (ratio, None), or (None, number of slots)."""
        ratio = self.results[0]["requested_ratio"]
        return (ratio, self.keys.get("compressor.slots") if ratio is None else None)


def load_results(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The results with their "file", and "identity": the flat configuration that determines the numbers, without seeds.

    An untrained reader has no configuration in its results; its identity is its backbone, its data, and those of
    UNTRAINED_KEYS that its results state.
    """
    results = [read_results(file) | {"file": str(file), "changed": file.stat().st_mtime} for file in files]
    datasets = {r["data_hash"]: r["config"].get("dataset") for r in results if r["config"]}
    for r in results:
        dataset = datasets.get(r["data_hash"], r["data_hash"][:8])
        config = r["config"] or {"backbone": r.get("backbone"), "dataset": dataset, **untrained_settings(r)}
        r["named"] = config
        r["identity"] = {
            key: value
            for key, value in flatten(config).items()
            if key.split(".")[0] not in IGNORED_KEYS and key.split(".")[-1] != "seed"
        } | {"n": r["n"]}
        r["seeds"] = tuple(value for key, value in flatten(r["config"] or {}).items() if key.split(".")[-1] == "seed")
    return results


def untrained_settings(results: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of UNTRAINED_KEYS; without the compressor's for LEVELS, whose keys change nothing."""
    is_level = results["reader"].split(" ")[0] in LEVELS
    conditions = results.get("conditions") or {}
    return {
        key: conditions[key] for key in UNTRAINED_KEYS if key in conditions and not (key == "compressor" and is_level)
    }


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; lists as JSON. Run ids inside a text become "RUN", as they differ in every run."""
    if isinstance(config, dict):
        flat: dict[str, Any] = {}
        for key, value in config.items():
            flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return flat
    if isinstance(config, (list, tuple)):
        config = json.dumps(config)
    return {prefix: RUN_ID.sub("RUN", config) if isinstance(config, str) else config}


# ---- grouping and labels ----


def group_results(results: list[dict[str, Any]], by: str | None = None) -> tuple[list[Setting], list[str]]:
    """The settings in the order of the report, with their labels, and notes for the caption.

    by  configuration key whose values each get a label; None = labels name only what distinguishes the settings
    Of several results with the same setting, seed and data, the newest run counts. Raises ValueError where no result
    has the key `by`.
    """
    settings: dict[str, Setting] = {}
    for r in sorted(results, key=lambda r: (Path(r["run"]).name, r["changed"])):
        key = json.dumps([r["reader"], r["requested_ratio"], sorted(r["identity"].items())])
        settings.setdefault(key, Setting(r["reader"], r["identity"])).results.append(r)
    notes, older = [], 0
    for setting in settings.values():
        newest = {(r["seeds"], r["data_hash"]): r for r in setting.results}
        older += sum(r["metrics"] != newest[r["seeds"], r["data_hash"]]["metrics"] for r in setting.results)
        setting.results = list(newest.values())
    if older:
        notes.append(f"{older} older results of the same setting and seed were left out")
    hashes = {r["data_hash"] for r in results}
    if len(hashes) > 1:
        notes.append(f"the rows were measured on {len(hashes)} different sets of examples")
    label_settings(list(settings.values()), by)
    return sorted(settings.values(), key=_row_order), notes


def _row_order(setting: Setting) -> tuple[Any, ...]:
    """Horizontal lines first, then by label and achieved ratio."""
    ratio = setting.results[0]["effective_ratio"]
    return (not setting.is_level, setting.label, ratio or 0)


def label_settings(settings: list[Setting], by: str | None) -> None:
    """Sets each label: the reader, "(untrained)" where it is, and the keys that distinguish settings of one reader."""
    if by and not any(_config_value(s, by) is not None for s in settings):
        known = sorted({key for s in settings for key in s.keys if s.results[0]["config"]})
        raise ValueError(f"--by {by}: no run has this configuration key; keys of the runs: {', '.join(known[:12])}")
    families: dict[str, list[Setting]] = defaultdict(list)
    for s in settings:
        s.label = s.reader if s.is_trained else with_training(s.reader, "untrained")
        if by and (value := _config_value(s, by)) is not None:
            name = _display_name(value)
            s.label = name if by == "compressor" else f"{s.label}, {by.split('.')[-1]}={name}"
        families[s.label].append(s)
    for family in families.values():
        keys = distinguishing_keys(family)[:MAX_NAMED_KEYS]
        for s in family:
            s.label += "".join(f", {key.split('.')[-1]}={_display_name(_config_value(s, key))}" for key in keys)


def distinguishing_keys(family: list[Setting]) -> list[str]:
    """Keys in which settings of the same label and budget differ.

    Where the names of a configuration group differ, the key is the group: `dataset` rather than its three files,
    `backbone` rather than its path.
    """
    by_budget: dict[tuple[Any, ...], list[Setting]] = defaultdict(list)
    for s in family:
        by_budget[s.budget].append(s)
    keys: dict[str, None] = {}
    for same in by_budget.values():
        for key in dict.fromkeys(key for s in same for key in s.keys):
            if len({json.dumps(s.keys.get(key)) for s in same}) > 1:
                top = key.split(".")[0]
                names = {json.dumps(_display_name(_config_value(s, top))) for s in same}
                keys[top if len(names) > 1 else key] = None
    return list(keys)


def _config_value(setting: Setting, key: str) -> Any:
    """The value or section of a dotted key; None where the setting has none."""
    if key == "n":
        return setting.keys["n"]
    value: Any = setting.results[0]["named"]
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _display_name(value: Any) -> str:
    """A scalar as YAML writes it; a configuration group by its name, model, data folder or class."""
    if not isinstance(value, dict):
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
    if value.get("test") or str(value.get("_target_", "")).startswith("data."):
        return dataset_label(value, "test")
    for key in ("name", "path"):
        if isinstance(value.get(key), str):
            return Path(value[key]).name
    return str(value.get("_target_", "")).rsplit(".", 1)[-1]


# ---- rows and points ----


def headline(settings: Sequence[Setting]) -> str:
    """The metric that ranks settings on one data set: the first that the data set names, else HEADLINE.

    Where no result has it, the first metric of the results.
    """
    results = settings[0].results[0]
    names = results.get("scoring", {}).get("names") or SCORES
    name = HEADLINE if tuple(names) == SCORES else names[0]
    return name if any(name in r["metrics"] for s in settings for r in s.results) else next(iter(results["metrics"]))


def setting_row(setting: Setting) -> dict[str, Any]:
    """A row as of `table_row`, with the additional keys seeds, runs and NAME_std of each metric.

    Over several seeds a metric is the mean and NAME_std the sample standard deviation. NAME_low and NAME_high are then
    None, because an interval over examples does not describe the variation over seeds.
    """
    rows = [table_row(r) for r in setting.results]
    merged = rows[0] | {"reader": setting.label, "seeds": len(rows), "runs": sorted({r["run"] for r in rows})}
    merged["training"] = training_text([stored_training(r) for r in setting.results])
    for name in [key.removesuffix("_low") for key in rows[0] if key.endswith("_low")]:
        values: list[Any] = [r.get(name) for r in rows]
        several = len(rows) > 1 and None not in values
        merged[f"{name}_std"] = statistics.stdev(values) if several else None
        if several:
            merged |= {name: statistics.fmean(values), f"{name}_low": None, f"{name}_high": None}
    for name in AVERAGED:
        values = [r[name] for r in rows]
        merged[name] = None if None in values else statistics.fmean(values)
    merged["truncated"] = max(r["truncated"] for r in rows)
    return merged


def figure_points(settings: list[Setting], metric: str) -> list[dict[str, Any]]:
    """The points of the figure: line, kind ("line" or "level"), effective_ratio, value, low, high, seeds.

    line is the text of the legend, see `legend_texts`.

    low and high are the 95% interval over examples for one seed, and the mean minus and plus one standard deviation
    for several. A level is a horizontal line: a reader in LEVELS, or one without slots.
    """
    points, legend = [], legend_texts(settings)
    for setting in settings:
        flat = setting_row(setting)
        if flat.get(metric) is None:
            continue
        low, high, spread = flat[f"{metric}_low"], flat[f"{metric}_high"], flat[f"{metric}_std"]
        if spread is not None:
            low, high = flat[metric] - spread, flat[metric] + spread
        points.append(
            {
                "line": legend[setting.label],
                "kind": "level" if setting.is_level else "line",
                "effective_ratio": flat["effective_ratio"],
                "value": flat[metric],
                "low": low,
                "high": high,
                "seeds": flat["seeds"],
            }
        )
    return points


def legend_texts(settings: list[Setting]) -> dict[str, str]:
    """{label: text in the legend}: the label, its training, and the facts in which lines differ (`mixed_facts`).

    Settings of one label, such as several ratios, are one line; its training then spans those of all its settings.
    """
    rows = [table_row(r) for s in settings for r in s.results]
    mixed = [key for key in mixed_facts(rows) if key != "n"]
    texts = {}
    for label in dict.fromkeys(s.label for s in settings):
        results = [r for s in settings if s.label == label for r in s.results]
        facts = {key: {row_facts(r)[key] for r in results} - {None} for key in mixed}
        named = [
            f"trained on {value}" if key == "trained_on" else value
            for key, values in facts.items()
            for value in sorted(values)
            if f"={value}" not in label
        ]
        texts[label] = ", ".join([with_training(label, training_text([stored_training(r) for r in results])), *named])
    return texts


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV; the elements of a list are joined by spaces."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: " ".join(map(str, v)) if isinstance(v, list) else v for key, v in r.items()} for r in rows)
    return out.getvalue()


# ---- title and caption ----


def report_caption(settings: list[Setting]) -> str:
    """The number of examples, and the meaning of the intervals in table and figure."""

    def span(numbers: list[int]) -> str:
        return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"

    seeds = [len(s.results) for s in settings]
    parts = [f"{span([s.keys['n'] for s in settings])} examples"]
    if min(seeds) == 1:
        parts.append("95% intervals of one seed, over examples, or over contexts where questions share them")
    if max(seeds) > 1:
        parts.append(f"of {span([n for n in seeds if n > 1])} seeds: mean ± standard deviation")
    return "; ".join(parts) + "."


def report_title(settings: list[Setting]) -> str:
    """The dataset and the backbone, each where all settings share it."""
    datasets = {_display_name(_config_value(s, "dataset")) for s in settings if s.results[0]["config"]}
    backbones = {r["backbone"] for s in settings for r in s.results if r.get("backbone")}
    parts = [next(iter(names)) for names in (datasets, backbones) if len(names) == 1]
    return ", ".join(parts) or "Report"
