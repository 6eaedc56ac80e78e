"""Which keys a configuration may have, and the types of their values.

A section with a `_target_` has the constructor arguments of that class as keys; other sections those of their YAML.
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

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from breviary.config.cli.aliases import alias_of
from breviary.config.cli.choices import CONFIGS, choice_words, choices_with, config_groups
from breviary.config.cli.interpolations import value_message
from breviary.config.defaults import EXAMPLES, fill_defaults
from breviary.memory.budget import BudgetedCompressor
from breviary.runtime.spelling import override

CLASSES = ("backbone", "compressor", "dataset", "objective")  # sections with a _target_

GROUPS = {"engine": "engine/single.yaml", "paths": "paths/default.yaml"}  # other config groups

GIVEN = ("self", "backbone", "decoder", "objective", "tokenizer")  # constructor arguments passed by build_reader

# Keys that accept more types than that of their default.
TYPES = {
    "reader": str | None,
    "init_from": str | None,
    "sweep": str | None,
    "run": str | None,
    "examples": int | None,
    "questions_per_context": int | None,
    "limits.max_context_tokens": int | None,
    "limits.truncation": str | None,
    "prompt.instruction": str | None,
    "prompt.template": str | None,
    "prompt.answer_template": str | None,
    "prompt.chat": bool | None,
    "train.epochs": float | None,
    "train.global_batch": int | None,
    "train.pack_tokens": int | None,
    "train.save_every": int | str,
    "generation.max_new_tokens": int | None,
    "generation.stop": list[str] | None,
    "decoder.lora_targets": str | list[str],
    "engine.deepspeed": dict | None,
    "engine.fsdp": dict | None,
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
    """The type annotation of a key's value, and its default, or MISSING."""

    hint: Any
    default: Any = MISSING


def validate_keys(cfg: DictConfig) -> tuple[DictConfig, list[str]]:
    """A copy of `cfg` that later checks can rely on, and an error message for each wrong key.

    In the copy unknown keys are removed, every constructor argument is present, values of a wrong type are replaced by
    defaults, and keys whose null stands for a value have that value (`fill_defaults`).
    Raises: ValueError when a section is missing or its class cannot be imported, which makes further checks impossible.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        plain = (plain_keys("eval.yaml") if "run" in cfg else {}) | plain_keys("train.yaml")
        top = plain | {name: Key(dict) for name in (*CLASSES, *GROUPS)}
        problems = _fix_section(cfg, "", top, flat_keys(cfg))  # before any key is removed
        if any(cfg[name] is None for name in (*CLASSES, *GROUPS)):
            raise ValueError("\n".join(problems))
        for name, key in plain.items():
            if isinstance(key.default, Mapping):
                problems += _fix_section(cfg[name], f"{name}.", _keys_of(key.default, f"{name}."))
        for name, file in GROUPS.items():
            problems += _fix_section(cfg[name], f"{name}.", plain_keys(file, f"{name}."))
        for name in CLASSES:
            problems += _fix_classes(cfg, name, "")
        fill_defaults(cfg)
    return cfg, problems


def _fix_classes(section: DictConfig, name: str, prefix: str) -> list[str]:
    """As `_fix_section` for section.NAME, whose keys are a constructor's, and for objects nested in it."""
    problems = _fix_section(section[name], f"{prefix}{name}.", constructor_keys(target_class(section, name)))
    for inner in [key for key in section[name] if OmegaConf.is_dict(section[name][key])]:
        if "_target_" in section[name][inner]:
            problems += _fix_classes(section[name], inner, f"{prefix}{name}.")
            continue
        node = section[name][inner]  # a section of objects by name, such as the parts of a mixture
        for part in [key for key in node if OmegaConf.is_dict(node[key]) and "_target_" in node[key]]:
            problems += _fix_classes(node, part, f"{prefix}{name}.{inner}.")
    return problems


def drop_unused_keys(cfg: DictConfig, words: list[str]) -> list[str]:
    """Removes, in place, the keys of an experiment that the choices of the command line make meaningless.

    With experiment=X compressor=Y these are the keys of X that Y does not have. Keys set on the command line stay.
    Returns the removed keys.
    """
    overridden = {word.lstrip("+").partition("=")[0] for word in words}
    removed = []
    with open_dict(cfg):
        for section in overridden.intersection(CLASSES):
            known = constructor_keys(target_class(cfg, section))
            for name in [name for name in cfg[section] if name not in known and f"{section}.{name}" not in overridden]:
                del cfg[section][name]
                removed.append(f"{section}.{name}")
    return removed


def target_class(cfg: DictConfig, section: str) -> type:
    """The class that `section`._target_ names. Raises: ValueError when it cannot be imported, or is no class."""
    path = cfg[section].get("_target_")
    try:
        module, _, name = str(path).rpartition(".")
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: a name that begins with a dot
        raise ValueError(
            f"{section}._target_={path}: cannot be imported ({error}); give module.Class, with its folder "
            "in the checkout or in the environment variable PYTHONPATH"
        ) from error
    if not isinstance(found, type):
        raise ValueError(f"{section}._target_={path}: is a {type(found).__name__}, not a class; give module.Class")
    return found


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
    if issubclass(cls, BudgetedCompressor):
        keys["bytes"] = Key(int | None, None)  # ReaderSpec turns it into `slots`
    return keys


def plain_keys(file: str, prefix: str = "") -> dict[str, Key]:
    """The keys of configs/FILE, with the types of its values."""
    return _keys_of(
        {name: value for name, value in _yaml_values(file).items() if name not in ("defaults", "hydra")}, prefix
    )


@functools.cache
def _yaml_values(file: str) -> Mapping[str, Any]:
    """The content of configs/FILE. Cached: evaluations of several readers check the same files repeatedly."""
    return types.MappingProxyType(OmegaConf.to_container(OmegaConf.load(CONFIGS / file), resolve=False))


def known_keys(config: str, words: Iterable[str] | None = None) -> list[str]:
    """Every key (a.b.c) of configs/CONFIG.yaml under the group choices of a command line; None = of this process."""
    choices = choice_words(sys.argv[1:] if words is None else words)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            cfg = compose(config, choices, return_hydra_config=True)
        except ConfigCompositionException:  # a wrong choice, which is reported where the command line is composed
            cfg = compose(config, return_hydra_config=True)
    # experiment=NAME is valid, but composes to no key of that name.
    groups = [group for group in config_groups() if group in cfg.hydra.runtime.choices]
    with open_dict(cfg):
        del cfg.hydra
    return flat_keys(cfg) + groups


def allow_run_keys(words: list[str]) -> list[str]:
    """Command-line words in which keys of the run's sections (run=FOLDER) are marked as additions (`++`).

    Hydra composes before the run's configuration is loaded: compressor.keep of a RAM run, for example, is no key of the
    default compressor. Keys that the run does not have either are refused later (evaluation.resolve).
    """
    named = [word for word in words if word.lstrip("+").startswith("run=")]
    try:
        run = read_value(OverridesParser.create().parse_override(named[-1])) if named else None
    except OverrideParseException:  # reported by Hydra
        return words
    file = Path(str(run)) / "config.yaml"
    if run is None or not file.is_file():  # reported where the run is opened
        return words
    try:
        cfg = OmegaConf.load(file)
    except (yaml.YAMLError, UnicodeDecodeError):  # reported there, too
        return words
    names = cfg.items() if OmegaConf.is_dict(cfg) else ()
    sections = tuple(f"{name}." for name, value in names if OmegaConf.is_dict(value))
    return [f"++{word}" if word.startswith(sections) else word for word in words]


def read_value(setting: Override) -> Any:
    r"""A setting's value without Hydra's quotes and OmegaConf's backslash in \${."""
    value = setting.value()
    return value.replace(r"\${", "${") if isinstance(value, str) else value


def flat_keys(cfg: DictConfig) -> list[str]:
    """Every key of a configuration as a.b.c."""

    def walk(node: Any, prefix: str) -> Iterable[str]:
        for key in node:
            yield f"{prefix}{key}"
            value = node._get_node(key)
            if OmegaConf.is_dict(value) and not value._is_none():
                yield from walk(value, f"{prefix}{key}.")

    return list(walk(cfg, ""))


def suggest(key: str, known: Iterable[str], others: Iterable[str] = ()) -> str:
    """'; the nearest right one is X': the key that this is another name of, one of that name elsewhere, or a similar
    one in its section; '' for none.

    others  further keys that this may be another name of
    """
    known = list(known)
    section, _, name = key.rpartition(".")
    beside = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    alias = alias_of(key)
    owners = choices_with(key)
    if owners:
        return f"; it is a key of {', '.join(owners)}"
    near = [alias] if alias in (*known, *others) and ("." in str(alias) or not section) else []
    near += [other for other in known if other.endswith(f".{name}")]
    near += [f"{section}.{other}".lstrip(".") for other in difflib.get_close_matches(name, beside, n=1)]
    near += [] if beside else difflib.get_close_matches(key, known, n=1)
    return f"; the nearest right one is {near[0]}" if near else ""


# ------------------------------------------------------------------ sections and values


def _fix_section(section: DictConfig, prefix: str, keys: dict[str, Key], others: Iterable[str] = ()) -> list[str]:
    """Error messages for one section; in place, removes unknown keys and sets missing and wrongly typed ones.

    others  keys of other sections that an unknown key may be another name of
    """
    problems = []
    for name in [name for name in section if name not in keys]:
        near = suggest(f"{prefix}{name}", [f"{prefix}{key}" for key in keys], others)
        problems.append(f"{prefix}{name}: unknown key{near}")
        del section[name]
    for name in list(section.keys()):
        wrong = _value_problem(section, name, f"{prefix}{name}", keys[name])
        if wrong:
            problems.append(wrong)
            section[name] = None if keys[name].default is MISSING else keys[name].default
    for name in [name for name in keys if name not in section]:
        if keys[name].default is MISSING:
            problems.append(f"{prefix}{name}: missing; it must be {_words(keys[name].hint)}")
        section[name] = None if keys[name].default is MISSING else keys[name].default
    return problems


def _value_problem(section: DictConfig, name: str, key: str, allowed: Key) -> str | None:
    """The error message for a value of a wrong type, or None. In place, numbers become text where text is expected."""
    try:
        value = section[name]
    except OmegaConfBaseException as error:  # ??? or an interpolation that cannot be resolved
        return value_message(error, key)
    if _fits(value, allowed.hint):
        return None
    if _fits("", allowed.hint) and isinstance(value, (bool, int, float)):
        section[name] = str(value)
        return None
    has_example = allowed.default is not MISSING and not isinstance(allowed.default, Mapping)
    example = f", e.g. {_example(key, EXAMPLES.get(key, allowed.default))}" if has_example else ""
    sweep = ""
    if isinstance(value, ListConfig) and len(value) > 1 and all(_fits(one, allowed.hint) for one in value):
        sweep = f"; a sweep, a run for each value, is written -m {key}={','.join(map(_shown, value))}"
    return f"{key}={_shown(value)}: must be {_words(allowed.hint)}{example}{sweep}"


def _keys_of(values: Mapping[str, Any], prefix: str) -> dict[str, Key]:
    return {
        name: Key(TYPES.get(f"{prefix}{name}", dict if isinstance(value, Mapping) else type(value)), value)
        for name, value in values.items()
    }


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # a name imported under TYPE_CHECKING only: any value is accepted
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
    """'a whole number or null', 'a list of texts'."""
    origin = typing.get_origin(hint) or hint
    choices = typing.get_args(hint) if origin in (types.UnionType, typing.Union) else (hint,)
    return " or ".join(
        "a list of texts" if choice == list[str] else WORDS.get(typing.get_origin(choice) or choice, "a value")
        for choice in choices
    )


def _example(key: str, value: Any) -> str:
    """A value as it is written on the command line; with its key where the shell or Hydra need quotes."""
    word = override(key, value)
    return word.removeprefix(f"{key}=") if word.startswith(key) else word


def _shown(value: Any) -> str:
    """A value for a message."""
    if isinstance(value, DictConfig):
        return "{...}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
