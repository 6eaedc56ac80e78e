"""How a setting is written on a command line, for error messages: one shell word that Hydra reads as the value."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from breviary.runtime.checkout import ROOT

_BARE = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")  # text that Hydra reads as text without quotes
_KEYWORDS = re.compile(r"(?i)null|true|false|nan|inf")
_SAFE = re.compile(r"[A-Za-z0-9_./=,:@%+-]+")  # words that no shell changes
ESCAPES = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": "\\\\", "'": r"\'"}


def override(key: str, value: Any) -> str:
    """key=value as one word for bash and zsh, quoted where Hydra or the shell need it.

    A line break needs the quotes $'...': Hydra and other quotes keep a backslash and an n as two characters.
    """
    word = f"{key}={hydra_value(value)}"
    if _SAFE.fullmatch(word):
        return word
    if re.search(r"[\n\t\r]", word):
        return "$'" + "".join(ESCAPES.get(character, character) for character in word) + "'"
    return f'"{word}"' if not re.search(r'["$`\\!]', word) else "'" + word.replace("'", "'\\''") + "'"


def setting(key: str, value: Any) -> str:
    """key=value as a program passes it to Hydra: without the quotes that a shell needs."""
    return f"{key}={hydra_value(value)}"


def command(script: str, *words: Any, processes: int = 1) -> str:
    """`python SCRIPT WORD ...` as one line for bash and zsh, each word quoted where the shell needs it.

    script     path in the checkout; absolute in the line where the working folder is another one
    processes  more than one: started by torchrun on one machine
    """
    path = script if Path.cwd() == ROOT else str(ROOT / script)
    start = ["python"] if processes == 1 else ["torchrun", "--nproc_per_node", str(processes)]
    return shlex.join([*start, path, *map(str, words)])


def own_command() -> str:
    """The command line of this process, as `command` writes it; a script of the checkout without its folders."""
    script = Path(sys.argv[0]).resolve()
    inside = script.is_relative_to(ROOT) and script.suffix == ".py"
    return command(str(script.relative_to(ROOT)) if inside else sys.argv[0], *sys.argv[1:])


def next_line(*commands: str) -> str:
    """What a command prints last: the commands that are useful next, one line each."""
    return "next: " + "\n      ".join(commands)


def hydra_value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        if _BARE.fullmatch(value) and not _KEYWORDS.fullmatch(value):
            return value
        value = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", value)  # no interpolation
        quote = '"' if re.search(r"['\n\t\r]", value) else "'"  # the quotes that the shell's do not clash with
        # Backslashes count as escapes only before a quote, and at the end.
        return quote + re.sub(rf"(\\*)({quote}|$)", lambda m: m[1] * 2 + (m[2] and f"\\{m[2]}"), value) + quote
    if isinstance(value, Sequence):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    return str(value)


def escape_problems(key: str, text: str, example: Any) -> list[str]:
    r"""An error message where `text` holds a backslash and an n (or t, r) in place of the character.

    key      configuration key
    example  the value of the key with its characters
    LaTeX such as \text or \rho is no such escape: \t and \r count only where no lower-case letter follows.
    """
    found = re.search(r"\\(n|[tr](?![a-z]))", text)
    if not found:
        return []
    name = {"n": "a line break", "t": "a tab", "r": "a carriage return"}[found[1]]
    return [
        f"{key} holds a backslash and the letter {found[1]}, two characters, in {text!r}; for {name} write "
        f'{override(key, example)} in bash or zsh, or "\\{found[1]}" in double quotes in a YAML file'
    ]


def unescaped(text: str) -> str:
    r"""`text` with the line breaks, tabs and carriage returns for which \n, \t and \r stand."""
    return re.sub(r"\\(n|[tr](?![a-z]))", lambda match: {"n": "\n", "t": "\t", "r": "\r"}[match[1]], text)
