"""The YAML files of configs/: config groups, their choices, and which file has which key."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from breviary.runtime.checkout import ROOT

CONFIGS = ROOT / "configs"


def config_groups() -> list[str]:
    """The config groups: folders of configs/."""
    return sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())


def group_choices(group: str) -> list[str]:
    """The choices of a config group; FOLDER/NAME for those of a folder in it."""
    home = CONFIGS / group
    return sorted(file.relative_to(home).with_suffix("").as_posix() for file in home.rglob("*.yaml"))


def configurations(beside: str) -> list[str]:
    """The configurations that a command can be called with, --config-name NAME, in the folder of `beside`."""
    files = sorted((CONFIGS / beside).parent.glob("*.yaml"))
    return [str(file.relative_to(CONFIGS))[:-5] for file in files if "defaults" in content(file)]


def choices_with(key: str) -> list[str]:
    """GROUP=CHOICE for each choice of a config group that has a key GROUP.NAME, at most three of them."""
    group, _, name = key.partition(".")
    if not name or not (CONFIGS / group).is_dir():
        return []
    files = {choice: config_files(CONFIGS / group / f"{choice}.yaml") for choice in group_choices(group)}
    return [f"{group}={choice}" for choice, parts in files.items() if any(name in content(part) for part in parts)][:3]


@functools.cache
def content(file: Path) -> Mapping[str, Any]:
    """A YAML file as it stands; faster than OmegaConf for many files."""
    return yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def choice_words(words: Iterable[str]) -> list[str]:
    """The words of a command line that choose YAML files: group=choice, and where choices are searched."""
    return [
        word
        for word in words
        if word.startswith("hydra.searchpath=") or ("=" in word and word.partition("=")[0] in config_groups())
    ]


def config_files(file: Path) -> list[Path]:
    """A YAML file and those of its folder that its defaults list names, in the order in which they are merged.

    Entries NAME@SECTION, which fill a section, are left out.
    """
    names = [name for name in content(file).get("defaults", []) if isinstance(name, str) and "@" not in name]
    names += [] if "_self_" in names else ["_self_"]
    parts = [[file] if name == "_self_" else config_files(_choice_file(file, name)) for name in names]
    return [part for files in parts for part in files]


def _choice_file(file: Path, name: str) -> Path:
    """The YAML that the defaults list of `file` names: in its folder, or /GROUP/NAME."""
    return CONFIGS / f"{name.lstrip('/')}.yaml" if name.startswith("/") else file.with_name(f"{name}.yaml")


def package_of(file: Path) -> str:
    """The section that a YAML of a primary configuration fills, as the prefix of its keys: "" or "NAME."."""
    package = re.match(r"# @package (\w+)", file.read_text(encoding="utf-8"))
    return f"{package[1]}." if package and package[1] != "_global_" else ""
