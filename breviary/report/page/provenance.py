"""What made each row's numbers: prompt, truncation, stop rule, command, commit, hardware, versions of the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from breviary.evaluation.facts import conditions_of, dataset_name
from breviary.evaluation.identity import read_identity
from breviary.evaluation.results import source_of
from breviary.evaluation.table import format_bytes
from breviary.report.page.measured_rows import Measured
from breviary.runtime.spelling import hydra_value

NOT_RECORDED = "not recorded"

Facts = list[tuple[str, str]]


def provenance(one: Measured) -> list[Facts]:
    """(name, text) for each seed of a row; "not recorded" where an earlier version did not state it."""
    return [_facts(results) for results in one.setting.results]


def _facts(results: Mapping[str, Any]) -> Facts:
    conditions = conditions_of(results)
    generation, prompt = conditions.get("generation"), conditions.get("prompt")
    return [
        ("Data", _data(results, conditions)),
        ("Reader", _settings(conditions.get("compressor"))),
        ("Backbone", str(results.get("backbone") or NOT_RECORDED)),
        ("Prompt", _settings(prompt)),
        ("Chat format", NOT_RECORDED if not prompt or "chat" not in prompt else "yes" if prompt["chat"] else "no"),
        *_example(results),
        ("Truncation", _truncation(results, conditions)),
        ("Stop rule", _settings(generation and {k: generation.get(k) for k in ("stop", "max_new_tokens")})),
        ("Decoding", _settings(generation)),
        ("Metric versions", _metrics(results)),
        ("Command", str(results.get("command") or NOT_RECORDED)),
        ("Commit", _commit(results)),
        ("Hardware", _hardware(results)),
        ("Versions", _settings(results.get("versions"))),
        ("Folder", str(Path(results["file"]).parent)),
    ]


def _settings(section: Mapping[str, Any] | None) -> str:
    """ "key: value" lines; texts as Python writes them, so that line breaks and spaces are seen."""
    if not section:
        return NOT_RECORDED
    return "\n".join(f"{key}: {_value(value)}" for key, value in section.items())


def _value(value: Any) -> str:
    """A value as YAML has it; texts quoted."""
    return repr(value) if isinstance(value, (str, list)) else hydra_value(value)


def _data(results: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    parts = [dataset_name(results), f"{results['n']:,} examples"]
    dataset, split = conditions.get("dataset"), conditions.get("split", "test")
    if dataset:
        parts.append(source_of(dataset, split))
    return ", ".join([*parts, f"hash {results['data_hash'][:12]}"])


def _example(results: Mapping[str, Any]) -> Facts:
    """The first prompt as the model saw it: its beginning, its end, and its tokens (`facts.prompt_record`)."""
    record = results.get("prompt")
    if not record:
        return [("Example prompt", NOT_RECORDED)]
    cut = record["characters"] > len(record["first"])
    shown = record["first"] + (f"\n[...]\n{record['last']}" if cut else "")
    tokens = ", ".join(f"{name} {count:,}" for name, count in record["tokens"].items())
    context = record["context_tokens"]
    return [
        (f"Prompt of {record['example']}", shown),
        ("Its tokens", f"{tokens}; of the contexts {context['mean']:,.0f} on average, {context['max']:,} at most"),
        ("Its sha256", record["sha256"]),
    ]


def _truncation(results: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    """How many prompts were cut, and by which rule; evaluations of earlier versions state the rule in identity.json."""
    limits = conditions.get("limits")
    if limits is None:
        identity = read_identity(Path(results["file"]).parent) or {}
        limits = identity.get("identity", {}).get("settings", {}).get("limits")
    counted = f"{results['truncated']} of {results['n']} prompts cut"
    return counted + "\n" + (_settings(limits) if limits else f"rule {NOT_RECORDED}")


def _metrics(results: Mapping[str, Any]) -> str:
    """Rule, version and library of each metric, and how its interval is made."""
    lines = [f"{key}: {results[key]}" for key in ("metrics_version", "normalisation") if results.get(key) is not None]
    for name, detail in results.get("scoring", {}).get("details", {}).items():
        lines.append(f"{name}: {', '.join(f'{key} {value}' for key, value in detail.items())}")
    intervals = results.get("intervals")
    if intervals:
        lines.append(f"intervals: {intervals['level']:.0%}, {intervals['clusters']} {intervals['resampled']} resampled")
    return "\n".join(lines) or NOT_RECORDED


def _commit(results: Mapping[str, Any]) -> str:
    if not results.get("commit"):
        return NOT_RECORDED
    changes = {True: ", with uncommitted changes", False: ", no uncommitted changes", None: ""}
    return f"{results['commit']}{changes[results.get('dirty')]}"


def _hardware(results: Mapping[str, Any]) -> str:
    hardware = results.get("hardware") or {}
    if not hardware:
        return NOT_RECORDED
    gpus = hardware.get("gpus") or []
    parts = [f"{hardware.get('cpu')}, cores: {hardware.get('cores')}, threads: {hardware.get('threads')}"]
    parts += [", ".join(gpus)] if gpus else ["no GPU"]
    parts.append(f"{format_bytes(hardware.get('memory_bytes'))} of memory")
    return ", ".join([*parts, f"peak {format_bytes(results.get('peak_memory_bytes'))}"])
