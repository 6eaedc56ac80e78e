"""What is wrong with a command line that Hydra cannot compose."""

from __future__ import annotations

import re
import shlex
import sys

from hydra.errors import ConfigCompositionException

from breviary.config.cli.aliases import nearest_choice
from breviary.config.keys import known_keys, suggest
from breviary.config.launchers import LAUNCHERS, launcher_message


def composition_messages(error: ConfigCompositionException, config: str | None) -> list[str]:
    """Messages for unknown keys and unknown configuration files, each with the nearest known name.

    config  name of the configuration whose keys are suggested; None = none are
    """
    text = str(error)
    if unknown := re.search(r"Could not override '([^']*)'", text):
        # For section={key: value} only the error's cause names the key within.
        within = re.search(r"full_key: (\S+)", str(error.__cause__))
        return _unknown_keys(within[1] if within else unknown[1], config)
    if missing := re.search(r"Could not find '([^']+)'", text):
        options = [line.strip() for line in text.partition("Available options in")[2].splitlines()[1:] if line.strip()]
        options = options[: next((i for i, option in enumerate(options) if " " in option), len(options))]
        return [_unknown_choice(missing[1], options)]
    if exists := re.search(r"An item is already at '([^']+)'", text):
        return [f"+{exists[1]}: this key exists; write {exists[1]}=VALUE"]
    if chosen := re.search(r"Multiple values for (\S+)\.", text):
        return [f"+{chosen[1]}: a choice exists; write {chosen[1]}=CHOICE"]
    if absent := re.search(r"Could not delete(?: from config\.)? '([^']+)'", text):
        return [f"~{absent[1]}: unknown key{suggest(absent[1], known_keys(config) if config else [])}"]
    if merging := re.search(r"Error merging override (.+)", text):
        return [_wrong_kind(merging[1])]
    return [" ".join(text.split())]


def _wrong_kind(word: str) -> str:
    """For a section {...} in place of a list: Hydra's own line does not say what is wrong."""
    key, _, value = word.lstrip("+").partition("=")
    spaced = re.sub(r":(?=\S)", ": ", value)
    listed = f"{key}=[{spaced}]" if key == "variants" else f"{key}=[]"
    return f"{word}: must be a list, e.g. {shlex.quote(listed)}"


def _unknown_keys(named: str, config: str | None) -> list[str]:
    """Every unknown key of the command line: Hydra names the first one only."""
    known = known_keys(config) if config else []
    keys = [word.partition("=")[0] for word in sys.argv[1:] if "=" in word and word[0] not in "+~-"]
    wrong = [
        key
        for key in keys
        if key not in known and not key.startswith("hydra.") and not any(name.startswith(f"{key}.") for name in known)
    ]
    return [f"{key}: unknown key{suggest(key, known)}" for key in wrong or [named]]


def _unknown_choice(name: str, options: list[str]) -> str:
    """For GROUP/CHOICE without a file."""
    if name.startswith(LAUNCHERS):
        return launcher_message(name.removeprefix(LAUNCHERS))
    near = nearest_choice(name.partition("/")[2], options)
    nearest = f"; the nearest right one is {near}" if near else ""
    return f"no such configuration {name}{nearest}; there are: {', '.join(options)}"
