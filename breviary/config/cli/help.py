"""What --help of a Hydra command prints: usage, examples, config groups with their choices, commented keys."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from breviary.config.cli.choices import CONFIGS, choice_words, config_files, configurations, group_choices, package_of
from breviary.runtime.spelling import override

WIDTH = 118
KEY_WIDTH = 42

FLAGS = """Flags:
  -m                        a sweep: a run for each of several values, e.g. -m compressor.ratio=2,4,8
  --config-name NAME        another configuration of configs/
  --cfg job                 prints the composed configuration and ends
  --hydra-help              the flags of Hydra"""


def help_text(doc: str, config: str, words: Sequence[str], has_flags: bool = True) -> str:
    """The help of a command.

    doc        its docstring: usage and examples
    config     name of its configuration in configs/
    words      its command line; the config groups' choices among them decide whose keys are listed
    has_flags  whether it takes Hydra's flags
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(config, choice_words(words), return_hydra_config=True)
    choices = {group: choice for group, choice in cfg.hydra.runtime.choices.items() if (CONFIGS / group).is_dir()}
    parts = [doc.strip()]
    if len(choices) > 1:
        parts.append("Config groups, GROUP=CHOICE:\n" + "\n".join(_group_lines(choices)))
    else:
        parts.append(_filled("Configurations, --config-name NAME: ", ", ".join(configurations(config))))
    comments = _comments(config, choices)
    listed = " ".join(f"{group}={choice}" for group, choice in choices.items() if choice)
    lines = [_key_line(cfg, key, comment) for key, comment in comments.items() if _section_of(cfg, key) is not None]
    parts.append(_filled("Keys, KEY=VALUE, with their values under ", listed + ":") + "\n" + "\n".join(lines))
    return "\n\n".join([*parts, FLAGS] if has_flags else parts)


def _group_lines(choices: dict[str, str | None]) -> Iterator[str]:
    """One entry per config group: its choices, the present one first."""
    for group, chosen in choices.items():
        names = group_choices(group)
        shown = [f"{chosen} (now)", *(name for name in names if name != chosen)] if chosen else names
        yield _filled(f"  {group:<12}", ", ".join(shown))


def _filled(start: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * min(len(start), 14))


def _comments(config: str, choices: dict[str, str | None]) -> dict[str, str]:
    """{key: comment} of the configuration and of the chosen YAML of each config group; the command's own keys first."""
    found: dict[str, str] = {}
    for file in reversed(config_files(CONFIGS / f"{config}.yaml")):
        for key, comment in commented_keys(file, package_of(file)):
            found.setdefault(key, comment)
    for group, choice in choices.items():
        if choice and group != "experiment":
            for file in reversed(config_files(CONFIGS / group / f"{choice}.yaml")):
                for key, comment in commented_keys(file, f"{group}."):
                    found.setdefault(key, comment)
    return found


def commented_keys(file: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, comment at the end of its line) of a YAML file's values, in order; sections have no entry of their own."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()

    def walk(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, str]]:
        for name, value in node.value:
            if name.value in ("defaults", "hydra", "_target_"):
                continue
            if isinstance(value, yaml.MappingNode) and value.value:
                yield from walk(value, f"{prefix}{name.value}.")
            else:
                line = lines[name.start_mark.line]
                comment = re.search(r"\s#\s+(.*)$", line[name.end_mark.column :])
                yield f"{prefix}{name.value}", comment[1] if comment else ""

    yield from walk(yaml.compose(text), prefix)


def _key_line(cfg: DictConfig, key: str, comment: str) -> str:
    """One key with its value, as it is written on the command line, and its comment."""
    value = _raw(cfg, key)
    word = f"{key}={value}" if "${" in str(value) else override(key, value)
    return f"  {word:<{KEY_WIDTH}}  {comment}".rstrip()


def _section_of(cfg: DictConfig, key: str) -> DictConfig | None:
    """The section that holds a key; None where the configuration has null in its place."""
    section = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
    return section if OmegaConf.is_dict(section) else None


def _raw(cfg: DictConfig, key: str) -> Any:
    """The value of a key with its interpolations unresolved."""
    section = _section_of(cfg, key)
    node = None if section is None else section._get_node(key.rpartition(".")[2])
    if node is None:
        return None
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node._value()
