"""Names of data sets as their users write them: `dataset=NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from breviary.config.cli.choices import CONFIGS, config_files, content, group_choices

SPLITS = ("train", "validation", "test")

# Keys that do not make another data set: how many examples (n is stated), which draw, and how answers end.
IGNORED = {"seed", "max_new_tokens", "stop", "metrics", "counter", "note", "tasks", *SPLITS}
IGNORED |= {"instruction", "template", "chat", "truncation"}  # defaults of other sections, which state them
IGNORED |= {f"{split}_{key}" for split in SPLITS for key in ("limit", "size")}


def dataset_label(dataset: Mapping[str, Any], split: str) -> str:
    """The name of a data set, as in `dataset=NAME`, e.g. "nq_gold4" or "invented_facts", or of a file, "mine.jsonl".

    Settings that differ from those of configs/dataset/NAME.yaml follow it: "nq_gold4 (max_documents=3)". Of several
    YAML files the one with the fewest such settings is taken. A note of the data set stands before them. Without a YAML
    file: files that are named by their split have the name of their folder, several files are listed, and generated
    examples have the name of their module.
    """
    found = []
    for name in group_choices("dataset"):
        known = _content(name)
        is_same = known["_target_"] == dataset.get("_target_") and _ends(known.get(split)) == _ends(dataset.get(split))
        is_named = dataset.get(split) or not set(SPLITS) & set(known)  # by its files, or generated: not a missing split
        if is_same and is_named:
            compared = [key for key in known if key in dataset and key not in IGNORED]
            keys = [key for key in compared if _differs(known[key], dataset[key])]
            found.append((len(keys), name, keys))
    if not found:
        return _file_label(dataset, split)
    _, name, keys = min(found)
    note = str(dataset.get("note") or "")
    parts = [note] if note else []
    parts += [text for key in keys if (text := f"{key}={_value(dataset[key])}") not in note]
    return name + (f" ({', '.join(parts)})" if parts else "")


def _content(name: str) -> dict[str, Any]:
    """configs/dataset/NAME.yaml with those that its defaults list names; of the parts of a mixture the names alone."""
    files = [content(file) for file in config_files(CONFIGS / "dataset" / f"{name}.yaml")]
    found = {key: value for file in files for key, value in file.items() if key != "defaults"}
    names = [name for file in files for name in file.get("defaults", []) if "@parts." in name]
    return found | ({"parts": {name.partition("@parts.")[2]: {} for name in names}} if names else {})


def _differs(known: Any, value: Any) -> bool:
    """Whether a value is not that of the YAML file, whose ${paths.data} is any folder."""
    if _are_parts(known) and isinstance(value, Mapping):
        return set(known) != set(value)
    if isinstance(known, str) and known.startswith("${paths.") and isinstance(value, str):
        own = Path(known).parts[1:]
        return Path(value).parts[-len(own) :] != own
    return value != known


def _file_label(dataset: Mapping[str, Any], split: str) -> str:
    files = dataset.get(split)
    if not files:
        return dataset["_target_"].split(".")[-2:][0]
    paths = [Path(file) for file in ([files] if isinstance(files, str) else files)]
    names = [path.parent.name if path.name.split(".")[0] == split and path.parent.name else path.name for path in paths]
    return ", ".join(names)


def _ends(files: Any) -> list[tuple[str, ...]]:
    """The last two parts of each file: the folder paths.data differs between machines."""
    return [Path(file).parts[-2:] for file in ([files] if isinstance(files, str) else files or [])]


def _are_parts(value: Any) -> bool:
    """Whether it is {name: data set} of a mixture."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(part, Mapping) for part in value.values())


def _value(value: Any) -> str:
    """As a command line writes it; long texts and lists shortened, parts of a mixture by name."""
    value = "+".join(value) if _are_parts(value) else value
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
