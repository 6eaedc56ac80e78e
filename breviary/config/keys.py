"""Which keys a configuration may have, and values of what type.

For a section that names a class its constructor says it; for the others the YAML they come from.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from breviary.runtime.checkout import ROOT

CONFIGS = ROOT / "configs"

CLASSES = ("backbone", "compressor", "dataset", "objective")  # sections that name their class in _target_

GROUPS = {"engine": "engine/single.yaml", "paths": "paths/default.yaml"}  # others that have files of their own

GIVEN = ("self", "backbone", "decoder", "objective", "tokenizer")  # what build.py gives, not a key

# Keys of more than their default's own type.
TYPES = {
    "reader": str | None,
    "init_from": str | None,
    "run": str | None,
    "examples": int | None,
    "limits.max_context_tokens": int | None,
    "decoder.lora_targets": str | list[str],
    "engine.deepspeed": dict | None,
}

WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a section of keys",
    types.NoneType: "null",
}

MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class Key:
    """What a key may hold: a type annotation, and the default, or MISSING."""

    hint: Any
    default: Any = MISSING


def validate_keys(cfg: DictConfig) -> tuple[DictConfig, list[str]]:
    """A copy of `cfg` in which everything else can be checked, and a sentence for each fault of a key.

    The copy lacks unknown keys, has every key of its classes' constructors, and has defaults in place of values of a
    wrong type.
    Raises: ValueError when a section is missing or its class cannot be imported: no more can be said then.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        plain = (plain_keys("eval.yaml") if "run" in cfg else {}) | plain_keys("train.yaml")
        found = _settle(cfg, "", plain | {name: Key(dict) for name in (*CLASSES, *GROUPS)})
        if any(cfg[name] is None for name in (*CLASSES, *GROUPS)):
            raise ValueError("\n".join(found))
        for name, key in plain.items():
            if isinstance(key.default, Mapping):
                found += _settle(cfg[name], f"{name}.", _keys_of(key.default, f"{name}."))
        for name, file in GROUPS.items():
            found += _settle(cfg[name], f"{name}.", plain_keys(file, f"{name}."))
        for name in CLASSES:
            found += _settle(cfg[name], f"{name}.", constructor_keys(target_class(cfg, name)))
            for inner in [
                key for key in cfg[name] if OmegaConf.is_dict(cfg[name][key]) and "_target_" in cfg[name][key]
            ]:
                found += _settle(cfg[name][inner], f"{name}.{inner}.", constructor_keys(target_class(cfg[name], inner)))
    return cfg, found


def drop_unused_keys(cfg: DictConfig, words: list[str]) -> list[str]:
    """Removes, in place, keys that an experiment has for another choice than the command line's `words` made.

    experiment=X compressor=Y: X's keys that Y has not. Keys on the command line itself stay. Gives what was removed.
    """
    asked = {word.lstrip("+").partition("=")[0] for word in words}
    gone = []
    with open_dict(cfg):
        for section in asked.intersection(CLASSES):
            known = constructor_keys(target_class(cfg, section))
            for name in [name for name in cfg[section] if name not in known and f"{section}.{name}" not in asked]:
                del cfg[section][name]
                gone.append(f"{section}.{name}")
    return gone


def target_class(cfg: DictConfig, section: str) -> type:
    """The class that `section`._target_ names.

    Raises: ValueError when there is none.
    """
    path = cfg[section].get("_target_")
    try:
        module, _, name = str(path).rpartition(".")
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{section}._target_={path}: cannot be imported ({error}); give module.Class, with its folder "
            "in the checkout or in the environment variable PYTHONPATH"
        ) from error


def constructor_keys(cls: type) -> dict[str, Key]:
    """Keys that a class's constructor accepts.

    `**kwargs` are followed to the class's bases, then to the class that its attribute `forwards_kwargs_to` names.
    """
    keys: dict[str, Key] = {"_target_": Key(str)}
    bases = [*cls.__mro__, *([cls.forwards_kwargs_to] if hasattr(cls, "forwards_kwargs_to") else [])]
    for base in bases:
        if base is object or "__init__" not in vars(base):
            continue
        hints = _hints(base.__init__)
        parameters = inspect.signature(base.__init__).parameters.values()
        for p in parameters:
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in GIVEN:
                keys.setdefault(p.name, Key(hints.get(p.name, Any), p.default))
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return keys


def plain_keys(file: str, prefix: str = "") -> dict[str, Key]:
    """Keys of a YAML of configs/, by the values it has."""
    return _keys_of(
        {name: value for name, value in _values_of(file).items() if name not in ("defaults", "hydra")}, prefix
    )


@functools.cache
def _values_of(file: str) -> Mapping[str, Any]:
    """Read once: a sweep and an evaluation of several readers check the same files again and again."""
    return types.MappingProxyType(OmegaConf.to_container(OmegaConf.load(CONFIGS / file), resolve=False))


def known_keys(config: str) -> list[str]:
    """Every key (a.b.c) of configuration `config` under the group choices of this process's command line."""
    choices = [
        word
        for word in sys.argv[1:]
        if word.startswith("hydra.searchpath=") or ("=" in word and (CONFIGS / word.partition("=")[0]).is_dir())
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        groups = [
            folder.name for folder in CONFIGS.iterdir() if folder.is_dir()
        ]  # experiment=NAME leaves no key behind
        return flat_keys(compose(config, choices)) + groups


def allow_run_keys(words: list[str]) -> list[str]:
    """Command-line words; those that set a key in a section of the run named by run=FOLDER may add it (++).

    Hydra composes before it is known what the run has: compressor.keep of a RAM run, say, is no key of its default. What
    the run has not either is told later, with the nearest key that it has.
    """
    run = next((word.partition("=")[2] for word in words if word.startswith("run=")), "")
    file = Path(run) / "config.yaml"
    if not run or not file.is_file():  # told where the run is opened
        return words
    sections = tuple(f"{name}." for name, value in OmegaConf.load(file).items() if OmegaConf.is_dict(value))
    return [f"++{word}" if word.startswith(sections) else word for word in words]


def flat_keys(cfg: DictConfig) -> list[str]:
    """Every key of a configuration as a.b.c."""

    def walk(node: Any, prefix: str) -> Iterable[str]:
        for key in node:
            yield f"{prefix}{key}"
            value = node._get_node(key)
            if OmegaConf.is_dict(value) and not value._is_none():
                yield from walk(value, f"{prefix}{key}.")

    return list(walk(cfg, ""))


def suggest(key: str, known: Iterable[str]) -> str:
    """'; the nearest right one is X': of the same name elsewhere, or near in its section; nothing where there is none."""
    known = list(known)
    section, _, name = key.rpartition(".")
    beside = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    near = [other for other in known if other.endswith(f".{name}")]
    near += [f"{section}.{other}".lstrip(".") for other in difflib.get_close_matches(name, beside, n=1)]
    near += [] if beside else difflib.get_close_matches(key, known, n=1)
    return f"; the nearest right one is {near[0]}" if near else ""


# ------------------------------------------------------------------ pieces


def _settle(section: DictConfig, prefix: str, keys: dict[str, Key]) -> list[str]:
    """Sentences on one section's keys; in place: unknown ones removed, missing and wrongly typed ones set right."""
    found = []
    for name in [name for name in section.keys() if name not in keys]:
        found.append(f"{prefix}{name}: unknown key{suggest(f'{prefix}{name}', [f'{prefix}{key}' for key in keys])}")
        del section[name]
    for name in list(section.keys()):
        wrong = _value_problem(section, name, f"{prefix}{name}", keys[name])
        if wrong:
            found.append(wrong)
            section[name] = None if keys[name].default is MISSING else keys[name].default
    for name in [name for name in keys if name not in section.keys()]:
        if keys[name].default is MISSING:
            found.append(f"{prefix}{name}: missing; it must be {_words(keys[name].hint)}")
        section[name] = None if keys[name].default is MISSING else keys[name].default
    return found


def _value_problem(section: DictConfig, name: str, key: str, allowed: Key) -> str | None:
    """What is wrong with a value's type; numbers where text is wanted become text, in place: a file's name, say."""
    try:
        value = section[name]
    except OmegaConfBaseException as error:  # ??? or an interpolation that leads nowhere
        return f"{key}: {str(error).splitlines()[0]}"
    if _fits(value, allowed.hint):
        return None
    if _fits("", allowed.hint) and isinstance(value, (bool, int, float)):
        section[name] = str(value)
        return None
    has_example = allowed.default is not MISSING and not isinstance(allowed.default, Mapping)
    example = f", e.g. {_shown(allowed.default)}" if has_example else ""
    return f"{key}={_shown(value)}: must be {_words(allowed.hint)}{example}"


def _keys_of(values: Mapping[str, Any], prefix: str) -> dict[str, Key]:
    return {
        name: Key(TYPES.get(f"{prefix}{name}", dict if isinstance(value, Mapping) else type(value)), value)
        for name, value in values.items()
    }


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # names that its module imports for type checkers only: anything goes
        return {}


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, choice) for choice in arguments)
    if origin is list:
        return isinstance(value, (list, ListConfig)) and all(_fits(v, a) for v in value for a in arguments)
    if origin is dict:
        return isinstance(value, DictConfig | dict)
    if origin is bool or origin is str:
        return isinstance(value, origin)
    if origin in (int, float):
        return isinstance(value, (int, float) if origin is float else int) and not isinstance(value, bool)
    return value is None if origin is types.NoneType else True


def _words(hint: Any) -> str:
    """'a whole number or null'."""
    origin = typing.get_origin(hint) or hint
    choices = typing.get_args(hint) if origin in (types.UnionType, typing.Union) else (hint,)
    return " or ".join(WORDS.get(typing.get_origin(choice) or choice, "a value") for choice in choices)


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, DictConfig):
        return "{...}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
