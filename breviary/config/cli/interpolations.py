"""What is wrong with a value that OmegaConf cannot resolve, such as ${key} or ???."""

from __future__ import annotations

import re
import sys

from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from breviary.runtime.spelling import override


def value_message(error: OmegaConfBaseException, key: str | None = None) -> str:
    """The error message for a value that cannot be read.

    key  the value's key where the error does not state it
    """
    text = str(error).splitlines()[0]
    full = re.search(r"full_key: (\S+)", str(error))
    key = full[1] if full else error.full_key or key
    if isinstance(error, MissingMandatoryValue):
        return f"{key}=???: a value is missing; write {key}=VALUE"
    name = re.fullmatch(r"Interpolation key '([^']*)' not found", text)
    function = re.fullmatch(r"Unsupported interpolation type (.*)", text)
    variable = re.search(r"Environment variable '([^']*)' not found", text)
    is_circle = text.startswith("Recursive interpolation")
    part = next((f"${{{match[1]}" for match in (name, function) if match), "${" if is_circle else None)
    key, typed = _typed(key, part or (variable and variable[1]))
    if is_circle:
        text = f"{key}={typed}: the value refers to itself; write another one"
    elif variable:
        text = f"the environment variable {variable[1]} is not set"
    elif name or function:
        what = f"${{{name[1]}}} names no key" if name else f"${{{function[1]}:...}} is no function" if function else ""
        text = (
            f"{key}: {what} of the configuration; as a text it is written {override(key or 'KEY', typed or '${...}')}"
        )
    return text if key is None or re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", text) else f"{key}: {text}"


def _typed(key: str | None, part: str | None) -> tuple[str | None, str | None]:
    """(key, value) of the command line's word that sets `key`, or whose value holds `part`; (key, None) for none."""
    for word in reversed(sys.argv[1:]):
        name, _, value = word.lstrip("+").partition("=")
        if name == key or (key is None and part is not None and part in value):
            return name, value
    return key, None
