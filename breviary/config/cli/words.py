"""The words of a Hydra command line: flags, RUN and settings key=value, checked before Hydra sees them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from breviary.config.cli.choices import CONFIGS, config_files, config_groups, configurations, content, group_choices
from breviary.config.cli.messages import WordMessages, several_runs, sweep_without_m, unreadable
from breviary.config.cli.run_names import CHECKPOINTS, FORMS, LATEST, OUTPUTS, find_run
from breviary.config.keys import allow_run_keys, known_keys, read_value
from breviary.runtime.spelling import setting

# Hydra's own flags (hydra/_internal/utils.py): those without a value, and those whose next word is their value.
SWITCHES = {"--multirun", "-m", "--run", "-r", "--resolve", "--hydra-help", "--version", "--shell-completion", "-sc"}
OPTIONS = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
OPTIONS |= {"--info", "-i", "--experimental-rerun"}

MULTIRUN = ("--multirun", "-m")

RUN_KEYS = ("run", "init_from", "compare", "resume")  # their values are RUNs


@dataclass
class Words:
    """A command line's words by kind.

    flags     Hydra's flags with their values
    settings  key=value, ~key
    bare      other words, each with the setting before it, or None
    foreign   words that begin with a dash and are none of Hydra's flags; a value after one is joined with `=`
    spaced    key=value that was written with spaces around `=`, as (what was written, what it means)
    """

    flags: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    bare: list[tuple[str, str | None]] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    spaced: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_multirun(self) -> bool:
        """Whether the call is a sweep."""
        return any(flag in MULTIRUN for flag in self.flags) or any("hydra.mode=" in word for word in self.settings)


def sort_words(words: Sequence[str], has_flags: bool = True) -> Words:
    """The words by kind; they may come in any order. has_flags  whether Hydra's flags are known."""
    found, rest, before = Words(), list(words), None
    flags = (SWITCHES | OPTIONS) if has_flags else set()
    while rest:
        word = rest.pop(0)
        if word.partition("=")[0] in flags:
            found.flags.append(word)
            if word in OPTIONS and rest and not rest[0].startswith("-"):
                found.flags.append(rest.pop(0))
        elif word.startswith("-"):
            has_value = "=" not in word and rest and not _is_setting(rest[0]) and not rest[0].startswith("-")
            found.foreign.append(f"{word}={rest.pop(0)}" if has_value else word)
        elif _is_setting(word):
            found.settings.append(word)
            before = word
        elif rest and rest[0].startswith("=") and "=" not in word:
            value = rest.pop(0)[1:] or (rest.pop(0) if rest else "")
            found.spaced.append((f"{word} = {value}", f"{word}={value}"))
        else:
            found.bare.append((word, before))
    return found


def config_name(words: Sequence[str], default: str) -> str:
    """The configuration that --config-name chooses, else `default`, also for one of another folder (--config-dir).

    Raises: ValueError where there is none of this name.
    """
    name = default
    for word, after in zip(words, [*words[1:], ""]):
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd", "--config-path", "-cp"):
            return default
        if flag in ("--config-name", "-cn"):
            name = (value if equals else after).removesuffix(".yaml")
    if not (CONFIGS / f"{name}.yaml").is_file():
        names = configurations(default)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        nearest = f"; the nearest right one is {near[0]}" if near else ""
        raise ValueError(f"--config-name {name}: no such configuration{nearest}; there are: {', '.join(names)}")
    return name


def check_words(words: Sequence[str], config: str, has_flags: bool = True) -> tuple[list[str], list[str]]:
    """The words as Hydra takes them, flags first and RUN as run=FOLDER, and an error message for each wrong word.

    config     name of the composed configuration; a key `run` in it makes RUN a positional argument
    has_flags  whether the command takes Hydra's flags
    """
    sorted_words = sort_words(words, has_flags)
    takes_run = any("run" in content(file) for file in config_files(CONFIGS / f"{config}.yaml"))
    runs = [word for word, _ in sorted_words.bare if takes_run and _names_folder(word)]
    unclear = [(word, before) for word, before in sorted_words.bare if word not in runs]
    problems: list[str] = []
    if unclear or sorted_words.foreign or sorted_words.spaced:
        messages = WordMessages(known_keys(config, words), takes_run)
        problems += [messages.dashed(word) for word in sorted_words.foreign]
        problems += [messages.spaced(*pair) for pair in sorted_words.spaced]
        problems += messages.bare(unclear)
    settings = [word for word in sorted_words.settings if word not in {before for _, before in unclear}]
    if len(runs) + any(word.lstrip("+").startswith("run=") for word in settings) > 1:
        problems.append(several_runs(runs))
    elif runs:
        settings.insert(0, setting("run", runs[0]))
    settings, found = check_settings(settings, sorted_words.is_multirun)
    return [*sorted_words.flags, *allow_run_keys(settings)], problems + found


def runs_and_settings(words: Iterable[str], needs_run: bool = True) -> tuple[list[str], list[str], list[str]]:
    """Run folders, settings key=value, and error messages, of a script that takes RUN [RUN ...] [key=value ...]."""
    sorted_words = sort_words(list(words))
    settings, problems = check_settings(sorted_words.settings, is_multirun=False)
    runs = []
    for word, _ in sorted_words.bare:
        try:
            runs.append(str(find_run(word, _outputs(settings))))
        except ValueError as error:
            problems.append(str(error))
    missing = [f"no RUN given; {FORMS}"] if needs_run and not sorted_words.bare else []
    return runs, settings, problems + missing


def check_settings(settings: Sequence[str], is_multirun: bool) -> tuple[list[str], list[str]]:
    """The settings with every RUN among their values as a run folder, and an error message for each wrong one."""
    parser, problems, read = OverridesParser.create(), [], {}
    for word in settings:
        try:
            read[word] = parser.parse_override(word)
        except HydraException:
            problems.append(unreadable(word))
            continue
        problem = _kind_problem(word, read[word], is_multirun)
        problems += [problem] if problem else []
    named, outputs = [], _outputs(list(read))
    for word in settings:
        try:
            named.append(_with_run(word, read[word], outputs) if word in read else word)
        except ValueError as error:
            problems.append(str(error))
    return named, problems


def _kind_problem(word: str, read: Override, is_multirun: bool) -> str | None:
    """The error message for a sweep without -m, a kind of sweep that does not work here, and no choice of a group."""
    key, is_group = read.key_or_group, read.key_or_group in config_groups()
    if read.is_sweep_override():
        if not is_multirun:
            return sweep_without_m(word)
        if read.is_interval_sweep() or (read.value_type == ValueType.GLOB_CHOICE_SWEEP and not is_group):
            return f"{word}: no values to run; name them, e.g. -m {key}=1,2,3"
        return None
    is_choice = isinstance(read.value(), (str, dict)) or (key == "experiment" and isinstance(read.value(), list))
    if not is_group or read.is_add() or read.is_delete() or is_choice:
        return None
    choices = ",".join(map(str, read.value())) if isinstance(read.value(), list) else ""
    each = f"; a run for each is written -m {key}={choices}" if choices else ""
    return f"{word}: must be one of {', '.join(group_choices(key))}{each}"


def _outputs(settings: Sequence[str]) -> str:
    """paths.outputs under these settings."""
    words = [word for word in settings if word.lstrip("+").startswith("paths.outputs=")]
    return str(OverridesParser.create().parse_override(words[-1]).value()) if words else OUTPUTS


def _with_run(word: str, read: Override, outputs: str) -> str:
    """The setting with the run folder that its RUN names."""
    key = read.key_or_group
    if key not in RUN_KEYS or read.is_sweep_override() or read.is_delete():
        return word
    value = read_value(read)
    found = [_run_of(one, key, outputs) for one in value] if isinstance(value, list) else _run_of(value, key, outputs)
    return word if found == value else setting(word.partition("=")[0], found)


def _run_of(value: Any, key: str, outputs: str) -> Any:
    """The run folder that a value names.

    Other keys than `run` report a wrong RUN themselves, and also take a checkpoint.
    """
    path = Path(str(value)).expanduser()
    if value is None or (key == "resume" and value in ("never", "auto")):
        return value
    if key != "run" and value != LATEST and (CHECKPOINTS in path.parts or not path.exists()):
        return value
    run = str(find_run(str(value), outputs, f"{key}=", "unfinished" if key == "resume" else "finished"))
    return value if run == str(value).rstrip("/") else run


def _names_folder(word: str) -> bool:
    """Whether a bare word can only be a RUN."""
    return word == LATEST or "/" in word or Path(word).expanduser().exists()


def _is_setting(word: str) -> bool:
    """Whether the word is key=value or ~key. The path of a RUN may hold an `=`, too."""
    key, equals, _ = word.partition("=")
    if not equals:
        return word.startswith("~") and not word.startswith("~/")
    if key.startswith(("/", ".")) or not key or ("/" in word and Path(word).is_dir()):
        return False
    group, slash, _ = key.lstrip("+~").partition("/")
    return not slash or group in ("hydra", *config_groups())
