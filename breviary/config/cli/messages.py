"""Error messages for words of a command line, each with the right shell word."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from breviary.config.cli.aliases import alias_of, plain_name
from breviary.config.cli.choices import group_choices
from breviary.config.cli.run_names import FORMS, LATEST
from breviary.runtime.spelling import override

SETTINGS = "settings are written key=value, e.g. train.steps=100"

CLOSING = {"[": "]", "{": "}", "(": ")"}
QUOTES = "\"'"

NAMED_GROUPS = ("dataset", "experiment", "compressor", "backbone", "objective", "engine")


class WordMessages:
    """Messages for words that are no settings.

    known      every key of the command, and the config groups
    takes_run  whether it takes a RUN
    """

    def __init__(self, known: Sequence[str], takes_run: bool):
        self.known, self.takes_run = known, takes_run

    def right_key(self, name: str) -> str | None:
        """The key that a name means: itself, the one it is another name of, or one of that name in a section."""
        plain, alias = name.replace("-", "_"), alias_of(name)
        near = [plain] if plain in self.known else [alias] if alias in self.known else []
        return next(iter(near + [key for key in self.known if key.endswith(f".{plain}")]), None)

    def dashed(self, word: str) -> str:
        """For --key or --key=value."""
        name, equals, value = word.lstrip("-").partition("=")
        key = self.right_key(name) if name else None
        option = word.partition("=")[0]
        if key is None:
            return f"{option}: unknown option; {SETTINGS}, without dashes; --help lists the keys"
        return f"{option}: settings have no dashes; write {spelled(key, value) if equals else f'{key}=VALUE'}"

    def spaced(self, written: str, meant: str) -> str:
        """For key = value."""
        name, _, value = meant.partition("=")
        return f"{written}: no spaces around the equals sign; write {spelled(self.right_key(name) or name, value)}"

    def bare(self, words: Sequence[tuple[str, str | None]]) -> list[str]:
        """For words without `=`, each with the setting before it. A value that the shell split gets one message."""
        problems, split = [], set()
        for word, before in words:
            message = self._name(word)
            if before in split:
                continue
            if message is None and before is not None:
                split.add(before)
                name, _, start = before.partition("=")
                rest = [one for one, setting_before in words if setting_before == before]
                whole = spelled(name, " ".join([start, *rest]).strip())
                message = f"{word}: no setting; if it belongs to the value of {name}, quote the whole setting: {whole}"
            nothing = f"no such folder; {FORMS}" if self.takes_run else f"no setting; {SETTINGS}"
            problems.append(message or f"{word}: {nothing}")
        return problems

    def _name(self, word: str) -> str | None:
        """For a RUN of a command that takes none, a choice without its group, or a key without a value."""
        if word == LATEST or Path(word).is_dir():
            start, again = override("init_from", word), override("resume", word)
            return f"{word}: this command takes no RUN; {start} starts from that run's weights, {again} continues it"
        name = plain_name(word)
        group = next((g for g in NAMED_GROUPS if g in self.known and name in group_choices(g)), None)
        if group is not None:
            return f"{word}: {SETTINGS}; write {group}={name}"
        key = self.right_key(word)
        return None if key is None else f"{word}: no value; write {key}=VALUE"


# ------------------------------------------------------------------ settings


def sweep_without_m(word: str) -> str:
    """For several values without -m."""
    key, _, value = word.partition("=")
    return (
        f"{word}: several values are a sweep, a run for each, which needs -m: -m {shlex.quote(word)}; "
        f"one text with commas is written {override(key, value)}, a list {spelled(key, f'[{value}]')}"
    )


def several_runs(runs: Sequence[str]) -> str:
    """For more than one RUN."""
    further = override("compare", list(runs[1:] or runs))
    return f"{', '.join(runs)}: give one RUN, once; {further} adds rows to its table"


def unreadable(word: str) -> str:
    """For a setting that Hydra cannot read."""
    name, _, value = word.partition("=")
    if not re.fullmatch(r"(\+\+|\+|~)?[A-Za-z_]([\w./@$-]*\w)?", name):
        return f"{word}: {name!r} is no key; {SETTINGS}"
    return f"{word}: cannot be read ({_reason(value)}); write {spelled(name, value)}"


def spelled(key: str, value: str) -> str:
    """The word for bash and zsh that sets `key` to what a user typed as `value`.

    A list or section stays one, with missing brackets added; anything else that Hydra cannot read becomes text.
    """
    if _is_single(f"{key}={value}"):
        return shlex.quote(f"{key}={value}")
    if value[:1] in ("[", "{"):
        closed = f"{key}={_closed(value)}"
        if _is_single(closed):
            return shlex.quote(closed)
    return override(key, value)


def _is_single(word: str) -> bool:
    """Whether Hydra reads the word as one value."""
    try:
        return not OverridesParser.create().parse_override(word).is_sweep_override()
    except HydraException:
        return False


def _brackets(value: str) -> tuple[list[str], str | None]:
    """Brackets and quotes that are open at the end, innermost last; and the first closing one that opens nowhere."""
    open_ones: list[str] = []
    for character in value:
        quoted = bool(open_ones) and open_ones[-1] in QUOTES
        if quoted and character == open_ones[-1]:
            open_ones.pop()
        elif not quoted and (character in CLOSING or character in QUOTES):
            open_ones.append(character)
        elif not quoted and character in CLOSING.values():
            if not open_ones or CLOSING[open_ones[-1]] != character:
                return open_ones, character
            open_ones.pop()
    return open_ones, None


def _closed(value: str) -> str:
    """The value with the brackets and quotes that are missing at its end."""
    return value + "".join(CLOSING.get(character, character) for character in reversed(_brackets(value)[0]))


def _reason(value: str) -> str:
    """Why Hydra cannot read the value."""
    open_ones, stray = _brackets(value)
    if stray is not None:
        return f"the {stray} closes nothing"
    if open_ones:
        return f"the {open_ones[-1]} is not closed"
    special = sorted(set(re.findall(r"[=:,{}\[\]()&;#\"'<>!`^~$]", value)))
    signs = " ".join(special) or "these characters"
    return f"a text with {signs} needs quotes for Hydra inside those of the shell"
